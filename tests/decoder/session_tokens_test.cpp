// The tokens a session holds: what of them is computed again, and when.
#include <numeric>
#include <string>

#include "decoder/generation/saved_session.hpp"
#include "sessions.hpp"
#include "support/temporary_file.hpp"

using namespace gearkv;
using namespace gearkv::test;

namespace {

// Asks to stop at a chunk of a prompt, and counts how often it was asked.
struct StopAt {
    int chunk;
    int n_asked = 0;
    static bool wanted(void* context) {
        auto* self = static_cast<StopAt*>(context);
        return self->n_asked++ == self->chunk;
    }
};

std::vector<Token> concatenate(std::vector<Token> a, const std::vector<Token>& b) {
    a.insert(a.end(), b.begin(), b.end());
    return a;
}

}  // namespace

TEST_CASE("a session knows its tokens through all that can happen to them") {
    Fixture fixture("f16");
    fixture.config.chunk = 7;
    const auto session = fixture.session();
    CHECK(session->tokens().empty());
    std::vector<Token> expected = some_tokens(30);
    REQUIRE(session->prefill(expected.data(), expected.size()).ok());
    CHECK(session->tokens() == expected);
    REQUIRE(session->decode(5).ok());
    expected.push_back(5);
    CHECK(session->tokens() == expected);
    CHECK(session->decode(-1).code() == Code::bad_token);
    CHECK(session->prefill(expected.data(), 60).code() == Code::prompt_too_long);
    CHECK(session->tokens() == expected);
    const auto copy = fork(*session);
    REQUIRE(session->remove(3, 10).ok());
    expected.erase(expected.begin() + 3, expected.begin() + 13);
    CHECK(session->tokens() == expected);
    REQUIRE(session->truncate(11).ok());
    expected.resize(11);
    CHECK(session->tokens() == expected);
    CHECK(session->truncate(12).code() == Code::wrong_size);
    CHECK(session->remove(5, 0).code() == Code::wrong_size);
    CHECK(session->remove(5, 7).code() == Code::wrong_size);
    CHECK(session->tokens() == expected);
    CHECK(copy->tokens() == concatenate(some_tokens(30), {5}));
    session->reset();
    CHECK(session->tokens().empty());
}

TEST_CASE("what a session has at the beginning is not computed again") {
    Fixture fixture("f32");
    const std::size_t n_vocab = fixture.maker.n_vocab;
    const auto first = some_tokens(40);
    for (const std::size_t n_common : {0u, 1u, 17u, 39u, 40u}) {
        for (const std::size_t n_new : {0u, 1u, 9u}) {
            if (n_common + n_new == 0) continue;
            CAPTURE(n_common, n_new);
            std::vector<Token> second(first.begin(), first.begin() + static_cast<std::ptrdiff_t>(n_common));
            for (std::size_t i = 0; i < n_new; i++)
                second.push_back(static_cast<Token>(first[(n_common + i) % 40] == 200 ? 201 : 200));
            const auto session = fixture.session();
            REQUIRE(session->prefill(first.data(), first.size()).ok());
            std::uint64_t n_reused = 99;
            REQUIRE(session->sync(second.data(), second.size(), &n_reused).ok());
            const bool nothing_new = n_new == 0 && n_common == 40;
            CHECK(n_reused == (n_new == 0 && !nothing_new ? n_common - 1 : n_common));
            CHECK(session->tokens() == second);
            const auto plain = fixture.session();
            REQUIRE(plain->prefill(second.data(), second.size()).ok());
            const auto found = copy_logits(*session, n_vocab), expected = copy_logits(*plain, n_vocab);
            for (std::size_t i = 0; i < n_vocab; i++)
                REQUIRE(found[i] == Approx(expected[i]).margin(2e-4));
        }
    }
}

TEST_CASE("a sync that cannot be done leaves the session as it was") {
    Fixture fixture("f16");
    fixture.config.n_ctx = 20;
    const auto session = fixture.session();
    auto tokens = some_tokens(21);
    REQUIRE(session->prefill(tokens.data(), 10).ok());
    const auto before = copy_logits(*session, fixture.maker.n_vocab);
    CHECK(session->sync(nullptr, 3).code() == Code::invalid_argument);
    CHECK(session->sync(tokens.data(), 0).code() == Code::empty_prompt);
    CHECK(session->sync(tokens.data(), 21).code() == Code::prompt_too_long);
    tokens[15] = -4;
    CHECK(session->sync(tokens.data(), 20).code() == Code::bad_token);
    CHECK(session->n_tokens() == 10);
    CHECK(copy_logits(*session, fixture.maker.n_vocab) == before);
    tokens[15] = 4;
    CHECK(session->sync(tokens.data(), 20).ok());
    CHECK(session->n_tokens() == 20);
}

TEST_CASE("a prompt is interrupted at a chunk's border, and goes on from there") {
    Fixture fixture("f32");
    const std::size_t n_vocab = fixture.maker.n_vocab;
    fixture.config.chunk = 8;
    const auto tokens = some_tokens(30);
    const auto plain = fixture.session();
    REQUIRE(plain->prefill(tokens.data(), tokens.size()).ok());
    for (const int chunk : {0, 1, 3, 4}) {
        CAPTURE(chunk);
        StopAt stop = {chunk};
        fixture.config.interrupt = {StopAt::wanted, &stop};
        const auto session = fixture.session();
        const Status status = session->prefill(tokens.data(), tokens.size());
        const std::size_t n_fed = std::min<std::size_t>(8 * static_cast<std::size_t>(chunk), 30);
        CHECK(status.code() == (chunk < 4 ? Code::interrupted : Code::ok));
        CHECK(session->n_tokens() == n_fed);
        CHECK(session->tokens() ==
              std::vector<Token>(tokens.begin(), tokens.begin() + static_cast<std::ptrdiff_t>(n_fed)));
        CHECK((session->logits() != nullptr) == (chunk == 4));
        std::uint64_t n_reused = 0;
        REQUIRE(session->sync(tokens.data(), tokens.size(), &n_reused).ok());
        CHECK(n_reused == n_fed);
        CHECK(copy_logits(*session, n_vocab) == copy_logits(*plain, n_vocab));
        CHECK(session->decode(1).ok());
        CHECK(stop.n_asked == 4 + (chunk < 4 ? 1 : 0));
    }
}

TEST_CASE("a saved session comes back with its tokens, its sampler and a note") {
    Fixture fixture("gear-4");
    const std::size_t n_vocab = fixture.maker.n_vocab;
    const auto tokens = some_tokens(40);
    const auto session = fixture.session();
    REQUIRE(session->prefill(tokens.data(), tokens.size()).ok());
    SamplerConfig config;
    config.temperature = 1.0f;
    config.presence_penalty = 2.0f;
    config.seed = 5;
    std::unique_ptr<Sampler> sampler, restored;
    REQUIRE(Sampler::create(config, &sampler).ok());
    REQUIRE(sampler->accept(tokens.data(), tokens.size()).ok());
    Token drawn;
    REQUIRE(sampler->sample(session->logits(), n_vocab, &drawn).ok());
    const testing::TemporaryFile file;
    REQUIRE(session->save(file.path(), {sampler.get(), std::string_view("a\0b", 3)}).ok());
    config.seed = 77;
    REQUIRE(Sampler::create(config, &restored).ok());
    std::unique_ptr<Session> loaded;
    std::string note = "old";
    const auto load = [&](const LoadedAttachments& attached) {
        return Session::load(file.path(), fixture.model, fixture.config, StateLoading::copy,
                             serial_executor(), &loaded, attached);
    };
    REQUIRE(load({restored.get(), &note}).ok());
    CHECK(note == std::string("a\0b", 3));
    CHECK(loaded->tokens() == tokens);
    for (int i = 0; i < 10; i++) {
        Token one = -1, other = -1;
        REQUIRE(sampler->sample(session->logits(), n_vocab, &one).ok());
        REQUIRE(restored->sample(loaded->logits(), n_vocab, &other).ok());
        REQUIRE(one == other);
        REQUIRE(sampler->accept(one).ok());
        REQUIRE(restored->accept(one).ok());
        REQUIRE(session->decode(one).ok());
        REQUIRE(loaded->decode(one).ok());
    }
    // Without a sampler in the file the tokens are what was accepted.
    REQUIRE(session->save(file.path()).ok());
    REQUIRE(load({restored.get(), &note}).ok());
    CHECK(note.empty());
    config.seed = 1;
    config.temperature = 0.0f;
    std::unique_ptr<Sampler> fresh, with_file;
    REQUIRE(Sampler::create(config, &fresh).ok());
    REQUIRE(Sampler::create(config, &with_file).ok());
    REQUIRE(fresh->accept(session->tokens().data(), session->tokens().size()).ok());
    REQUIRE(load({with_file.get(), nullptr}).ok());
    std::vector<unsigned char> one, other;
    REQUIRE(fresh->save(&one).ok());
    REQUIRE(with_file->save(&other).ok());
    CHECK(one == other);
}

TEST_CASE(
    "session files that were changed or come from before tokens were saved are refused, and nothing with "
    "them") {
    Fixture fixture("f16");
    const auto tokens = some_tokens(12);
    const auto session = fixture.session();
    REQUIRE(session->prefill(tokens.data(), tokens.size()).ok());
    const std::uint32_t n_vocab = fixture.maker.n_vocab;
    SavedSession saved;
    saved.n_vocab = n_vocab;
    saved.tokens = tokens;
    saved.logits.assign(session->logits(), session->logits() + n_vocab);
    const std::vector<unsigned char> sound = write_saved_session(saved);
    const testing::TemporaryFile file;
    std::unique_ptr<Sampler> sampler;
    REQUIRE(Sampler::create({}, &sampler).ok());
    const auto load = [&](const std::vector<unsigned char>& extra) {
        SaveOptions options;
        options.model = fixture.model->fingerprint();
        options.extra = extra.data();
        options.n_extra = extra.size();
        REQUIRE(save_state(session->cache(), file.path(), options, serial_executor()).ok());
        std::unique_ptr<Session> loaded;
        std::string note = "untouched";
        const Status status = Session::load(file.path(), fixture.model, fixture.config, StateLoading::copy,
                                            serial_executor(), &loaded, {sampler.get(), &note});
        CHECK(status.ok() == (loaded != nullptr));
        CHECK(status.ok() == (note != "untouched"));
        return status.code();
    };
    CHECK(load(sound) == Code::ok);
    for (std::size_t n = 0; n < sound.size(); n += 1 + n / 8) {
        CAPTURE(n);
        CHECK(load({sound.begin(), sound.begin() + static_cast<std::ptrdiff_t>(n)}) == Code::corrupt_state);
    }
    const auto changed = [&](std::size_t at, auto value) {
        auto bytes = sound;
        std::memcpy(bytes.data() + at, &value, sizeof(value));
        return bytes;
    };
    CHECK(load(changed(0, 'x')) == Code::corrupt_state);
    CHECK(load(changed(8, 2u)) == Code::bad_version);
    CHECK(load(changed(12, n_vocab + 1)) == Code::corrupt_state);
    for (const std::uint64_t n : {std::uint64_t{0}, std::uint64_t{11}, std::uint64_t{1} << 62, UINT64_MAX}) {
        CHECK(load(changed(16, n)) == Code::corrupt_state);
        CHECK(load(changed(24, n)) == Code::corrupt_state);
        if (n > 0) CHECK(load(changed(32, n)) == Code::corrupt_state);
        if (n > 0) CHECK(load(changed(40, n)) == Code::corrupt_state);
    }
    CHECK(load(changed(48, Token{-1})) == Code::corrupt_state);
    CHECK(load(changed(48, static_cast<Token>(n_vocab))) == Code::corrupt_state);
    saved.tokens.pop_back();
    CHECK(load(write_saved_session(saved)) == Code::corrupt_state);
    saved.tokens = tokens;
    saved.sampler = {1, 2, 3};
    CHECK(load(write_saved_session(saved)) == Code::not_a_state);
    // Number of tokens, vocabulary, whether there are logits, and these.
    std::vector<unsigned char> old(16);
    const std::uint64_t n_tokens = tokens.size();
    std::memcpy(old.data(), &n_tokens, sizeof(n_tokens));
    std::memcpy(old.data() + 8, &n_vocab, sizeof(n_vocab));
    CHECK(load(old) == Code::bad_version);
}

namespace {

// Every other layer sees 20 tokens.
ModelShape windowed_shape() {
    ModelShape shape;
    shape.family = "gemma2";
    shape.n_layers = 2;
    shape.n_ctx = 400;
    shape.window = 20;
    return shape;
}

// Logits of a session that never had any other tokens, after each of `next`.
void check_as_new(Fixture& fixture, Session* session, const std::vector<Token>& tokens) {
    const std::size_t n_vocab = fixture.model->params().n_vocab;
    CHECK(session->tokens() == tokens);
    const Interrupt before = fixture.config.interrupt;
    fixture.config.interrupt = {};
    const auto plain = fixture.session();
    fixture.config.interrupt = before;
    REQUIRE(plain->prefill(tokens.data(), tokens.size()).ok());
    for (const Token next : {5, 6, 250, 7}) {
        REQUIRE(session->decode(next).ok());
        REQUIRE(plain->decode(next).ok());
        const auto found = copy_logits(*session, n_vocab), expected = copy_logits(*plain, n_vocab);
        for (std::size_t i = 0; i < n_vocab; i++)
            REQUIRE(found[i] == Approx(expected[i]).margin(3e-4));
    }
}

std::vector<Token> first_of(const std::vector<Token>& tokens, std::size_t n) {
    return {tokens.begin(), tokens.begin() + static_cast<std::ptrdiff_t>(n)};
}

}  // namespace

TEST_CASE("a truncation behind a window is computed anew, and never attends what was given back") {
    Fixture fixture("f32", windowed_shape());
    StopAt stop = {-1};
    fixture.config.interrupt = {StopAt::wanted, &stop};
    fixture.config.chunk = 50;
    const auto tokens = some_tokens(300);
    int n_anew = 0, n_kept = 0;
    for (const std::size_t n : {299u, 290u, 281u, 270u, 257u, 200u, 150u, 64u, 20u, 3u, 1u, 0u}) {
        CAPTURE(n);
        const auto session = fixture.session();
        REQUIRE(session->prefill(tokens.data(), tokens.size()).ok());
        LayerStats stats;
        REQUIRE(session->cache().layer_stats(0, &stats).ok());
        REQUIRE(stats.n_forgotten > 200);
        stop.n_asked = 0;
        REQUIRE(session->truncate(n).ok());
        CHECK(session->logits() == nullptr);
        const bool anew = stop.n_asked > 0;
        CHECK(anew == (n > 0 && n + 1 < stats.n_forgotten + 20));
        n_anew += anew;
        n_kept += !anew;
        if (n > 0) check_as_new(fixture, session.get(), first_of(tokens, n));
    }
    CHECK(n_anew > 3);
    CHECK(n_kept > 3);
}

TEST_CASE("a sync behind a window computes all of it, once, and one within it only the rest") {
    Fixture fixture("f32", windowed_shape());
    fixture.config.chunk = 50;
    auto tokens = some_tokens(300);
    for (const std::size_t n_common : {295u, 100u}) {
        const auto session = fixture.session();
        REQUIRE(session->prefill(tokens.data(), tokens.size()).ok());
        auto other = first_of(tokens, n_common);
        other.push_back(tokens[n_common] == 9 ? 8 : 9);
        other.push_back(11);
        std::uint64_t n_reused = 99;
        REQUIRE(session->sync(other.data(), other.size(), &n_reused).ok());
        CHECK(n_reused == (n_common == 295 ? 295 : 0));
        check_as_new(fixture, session.get(), other);
    }
}

TEST_CASE("a removal that pulls what was given back into a window is computed anew") {
    Fixture fixture("f32", windowed_shape());
    StopAt stop = {-1};
    fixture.config.interrupt = {StopAt::wanted, &stop};
    const auto tokens = some_tokens(300);
    for (const std::size_t first : {10u, 270u}) {
        CAPTURE(first);
        const auto session = fixture.session();
        REQUIRE(session->prefill(tokens.data(), tokens.size()).ok());
        stop.n_asked = 0;
        REQUIRE(session->remove(first, 28).ok());
        CHECK((stop.n_asked > 0) == (first == 270));
        auto left = tokens;
        left.erase(left.begin() + static_cast<std::ptrdiff_t>(first),
                   left.begin() + static_cast<std::ptrdiff_t>(first) + 28);
        CHECK(session->tokens() == left);
        CHECK((session->logits() == nullptr) == (first == 270));
        // Tokens that move up keep what they saw, those computed anew do not.
        if (first == 270) check_as_new(fixture, session.get(), left);
        CHECK(session->remove(300, 1).code() == Code::wrong_size);
    }
}

TEST_CASE("tokens that are computed anew may be interrupted, and what is there then goes on") {
    Fixture fixture("f32", windowed_shape());
    StopAt stop = {8};
    fixture.config.interrupt = {StopAt::wanted, &stop};
    fixture.config.chunk = 50;
    const auto tokens = some_tokens(300);
    const auto session = fixture.session();
    REQUIRE(session->prefill(tokens.data(), tokens.size()).ok());
    CHECK(session->truncate(200).code() == Code::interrupted);
    CHECK(session->n_tokens() == 100);
    check_as_new(fixture, session.get(), first_of(tokens, 100));
}
