// Speculation: the logits, tokens and cache of a session without drafts, whoever guesses.
#include "gearkv/speculation.hpp"

#include <algorithm>

#include "sessions.hpp"

using namespace gearkv;
using namespace gearkv::test;

namespace {

constexpr std::uint32_t n_draft = 6;

std::vector<Token> repeating_prompt() {
    std::vector<Token> prompt = some_tokens(24);
    prompt.insert(prompt.end(), prompt.begin(), prompt.begin() + 12);
    return prompt;
}

struct Run {
    std::vector<Token> tokens;  // drawn
    std::vector<float> logits;  // by which they were
};

// Draws with decode() and logits() of a session or of a speculation, until the context is full.
template <class Decoder>
Run draw(Decoder& decoder, const SamplerConfig& config, std::size_t n_vocab, std::size_t n) {
    std::unique_ptr<Sampler> sampler;
    REQUIRE(Sampler::create(config, &sampler).ok());
    Run run;
    for (std::size_t i = 0; i < n; i++) {
        REQUIRE(decoder.logits() != nullptr);
        run.logits.insert(run.logits.end(), decoder.logits(), decoder.logits() + n_vocab);
        Token token;
        REQUIRE(sampler->sample(decoder.logits(), n_vocab, &token).ok());
        REQUIRE(sampler->accept(token).ok());
        run.tokens.push_back(token);
        const Status status = decoder.decode(token);
        INFO(status.message());
        REQUIRE(status.ok());
    }
    return run;
}

std::unique_ptr<Speculation> speculate(Session& session, Session* drafter = nullptr) {
    SpeculationConfig config;
    config.n_draft = n_draft;
    config.drafter = drafter;
    std::unique_ptr<Speculation> speculation;
    const Status status = Speculation::create(session, config, &speculation);
    INFO(status.message());
    REQUIRE(status.ok());
    return speculation;
}

std::vector<unsigned char> save(const Session& session) {
    std::uint64_t n = 0;
    REQUIRE(session.saved_bytes(&n).ok());
    std::vector<unsigned char> bytes(n);
    REQUIRE(session.save(bytes.data(), bytes.size()).ok());
    return bytes;
}

SamplerConfig at_temperature(float temperature) {
    SamplerConfig config;
    config.temperature = temperature;
    config.seed = 5;
    return config;
}

}  // namespace

TEST_CASE("with drafts every token is chosen by the same logits, and the cache ends up the same", "[draft]") {
    ModelShape shape;
    shape.own_output = true;  // or every token would be followed by itself
    ModelShape other_shape = shape;
    other_shape.seed = 77;
    Fixture other("f16", other_shape);
    for (const char* spec : {"f16", "gear-4:sinks=2", "kivi-2:g=32,nb=32"}) {
        for (const char* guesses : {"lookup", "itself", "other"}) {
            for (const float temperature : {0.0f, 1.0f}) {
                CAPTURE(spec, guesses, temperature);
                Fixture fixture(spec, shape);
                fixture.config.n_ctx = 220;
                fixture.config.rollback_tokens = n_draft;
                other.config.n_ctx = 180;  // ends before that of the session
                const auto plain = fixture.session(), drafted = fixture.session();
                std::unique_ptr<Session> drafter;
                if (guesses == std::string("itself")) drafter = fixture.session();
                if (guesses == std::string("other")) drafter = other.session();
                const auto prompt = repeating_prompt();
                REQUIRE(plain->prefill(prompt.data(), prompt.size()).ok());
                REQUIRE(drafted->prefill(prompt.data(), prompt.size()).ok());
                const auto speculation = speculate(*drafted, drafter.get());
                const std::size_t n_vocab = fixture.maker.n_vocab, n = 220 - prompt.size();
                const Run expected = draw(*plain, at_temperature(temperature), n_vocab, n);
                const Run found = draw(*speculation, at_temperature(temperature), n_vocab, n);
                CHECK(found.tokens == expected.tokens);
                CHECK(found.logits == expected.logits);
                CHECK(speculation->n_tokens() == 220);
                REQUIRE(speculation->settle().ok());
                CHECK(drafted->tokens() == plain->tokens());

                const SpeculationStats stats = speculation->stats();
                CAPTURE(stats.n_drafted, stats.n_right, stats.n_passes);
                CHECK(stats.n_tokens == n);
                CHECK(stats.n_passes + stats.n_right == n);
                if (guesses == std::string("itself") && temperature == 0.0f) CHECK(stats.n_passes < n / 2);
                if (guesses == std::string("other")) CHECK(stats.n_right < stats.n_drafted);
                if (guesses != std::string("lookup") || temperature == 0.0f) CHECK(stats.n_drafted > 0);

                REQUIRE(drafted->truncate(200).ok());
                REQUIRE(plain->truncate(200).ok());
                REQUIRE(drafted->decode(7).ok());
                REQUIRE(plain->decode(7).ok());
                CHECK(save(*drafted) == save(*plain));
                CHECK(speculation->decode(8).ok());
                CHECK(speculation->n_tokens() == 202);
            }
        }
    }
}

TEST_CASE("a session may be used by itself once it has settled", "[draft]") {
    Fixture fixture("f16");
    fixture.config.n_ctx = 200;
    fixture.config.rollback_tokens = n_draft;
    const std::size_t n_vocab = fixture.maker.n_vocab;
    const auto session = fixture.session(), plain = fixture.session(), drafter = fixture.session();
    const auto prompt = repeating_prompt();
    REQUIRE(session->prefill(prompt.data(), prompt.size()).ok());
    REQUIRE(plain->prefill(prompt.data(), prompt.size()).ok());
    const auto speculation = speculate(*session, drafter.get());
    for (int round = 0; round < 12; round++) {
        const auto n = static_cast<std::size_t>(1 + round % 5);
        const Run expected = draw(*plain, {}, n_vocab, n), found = draw(*speculation, {}, n_vocab, n);
        CHECK(found.tokens == expected.tokens);
        CHECK(found.logits == expected.logits);
        const std::vector<float> after = copy_logits(*plain, n_vocab);
        REQUIRE(speculation->settle().ok());
        REQUIRE(speculation->logits() != nullptr);
        CHECK(std::equal(after.begin(), after.end(), speculation->logits()));
        CHECK(session->tokens() == plain->tokens());
        if (round % 3 == 0) {
            REQUIRE(session->decode(11).ok());
            REQUIRE(plain->decode(11).ok());
        } else if (round % 3 == 1) {
            REQUIRE(session->remove(2, 1).ok());
            REQUIRE(plain->remove(2, 1).ok());
        } else {
            const std::uint64_t n_kept = plain->n_tokens() - 1;
            REQUIRE(session->truncate(n_kept).ok());
            REQUIRE(plain->truncate(n_kept).ok());
            CHECK(speculation->logits() == nullptr);
        }
        CHECK(speculation->n_tokens() == plain->n_tokens());
        REQUIRE(speculation->decode(3).ok());
        REQUIRE(plain->decode(3).ok());
    }
}

TEST_CASE("without drafts a speculation is its session", "[draft]") {
    Fixture fixture("f16");
    const auto session = fixture.session();
    SpeculationConfig config;
    config.n_draft = 0;
    std::unique_ptr<Speculation> speculation;
    REQUIRE(Speculation::create(*session, config, &speculation).ok());
    CHECK(speculation->logits() == nullptr);
    REQUIRE(speculation->decode(4).ok());
    CHECK(speculation->logits() == session->logits());
    CHECK(speculation->n_tokens() == 1);
    CHECK(speculation->stats().n_drafted == 0);
    CHECK(speculation->decode(-1).code() == Code::bad_token);
    CHECK(session->n_tokens() == 1);
}

TEST_CASE("speculations that cannot be are refused", "[draft]") {
    Fixture fixture("f16");
    fixture.config.n_ctx = 64;
    fixture.config.rollback_tokens = 8;
    fixture.config.chunk = 6;
    const auto session = fixture.session();
    std::unique_ptr<Speculation> speculation;
    SpeculationConfig config;
    config.n_draft = 6;  // beside the token more than a chunk
    CHECK(Speculation::create(*session, config, &speculation).code() == Code::wrong_size);
    config.n_draft = 5;
    CHECK(Speculation::create(*session, config, nullptr).code() == Code::invalid_argument);
    config.n_match = 1;
    CHECK(Speculation::create(*session, config, &speculation).code() == Code::wrong_size);
    config.n_match = 2;
    config.drafter = session.get();
    CHECK(Speculation::create(*session, config, &speculation).code() == Code::invalid_argument);
    Fixture other("f16");
    std::vector<std::string> texts = test_vocabulary();
    texts.back() += 'x';
    other.maker.file.set_array("tokenizer.ggml.tokens", texts);
    other.load();
    const auto stranger = other.session();
    config.drafter = stranger.get();
    CHECK(Speculation::create(*session, config, &speculation).code() == Code::other_model);
    CHECK(speculation == nullptr);
    fixture.config.rollback_tokens = 4;
    const auto short_session = fixture.session();
    config.drafter = nullptr;
    CHECK(Speculation::create(*short_session, config, &speculation).code() == Code::wrong_size);
    config.n_draft = 4;
    CHECK(Speculation::create(*short_session, config, &speculation).ok());
}

TEST_CASE("a drafter that fails costs nothing but its guess", "[draft]") {
    static bool stops = false;
    Fixture fixture("f16");
    fixture.config.rollback_tokens = n_draft;
    const auto session = fixture.session();
    fixture.config.interrupt.wanted = [](void*) { return stops; };
    const auto drafter = fixture.session();
    const auto speculation = speculate(*session, drafter.get());
    REQUIRE(speculation->decode(4).ok());
    stops = true;
    Token next = 5;  // none that was guessed, in all likelihood
    Status status;
    for (int i = 0; i < 20 && status.ok(); i++)
        status = speculation->decode(next = static_cast<Token>((next * 31 + 7) % 250));
    CHECK(status.code() == Code::interrupted);
    const std::uint64_t n_tokens = speculation->n_tokens();
    REQUIRE(speculation->logits() != nullptr);
    stops = false;
    REQUIRE(speculation->decode(next).ok());
    CHECK(speculation->n_tokens() == n_tokens + 1);
}

TEST_CASE("a draft that the budget of the cache has no room for costs no token that has", "[draft]") {
    ModelShape shape;
    shape.own_output = true;
    for (const char* spec : {"f16", "gear-4:sinks=2"}) {
        Fixture fixture(spec, shape);
        fixture.config.n_ctx = 400;
        fixture.config.rollback_tokens = n_draft;
        const auto drafter = fixture.session(), empty = fixture.session();
        const std::vector<Token> prompt = repeating_prompt();
        // How many tokens there is room for.
        const auto count = [&](Session& session, auto& decoder) {
            REQUIRE(session.prefill(prompt.data(), prompt.size()).ok());
            std::size_t n = 0;
            for (Status status; status.ok() && n < 300; n++) {
                const float* logits = decoder.logits();
                REQUIRE(logits != nullptr);
                const std::size_t n_vocab = session.model().params().n_vocab;
                status =
                    decoder.decode(static_cast<Token>(std::max_element(logits, logits + n_vocab) - logits));
                if (!status.ok()) CHECK(status.code() == Code::over_budget);
            }
            return n;
        };
        for (const std::uint64_t more : {4000, 8000}) {
            fixture.config.max_cache_bytes = empty->cache().stats().bytes.bytes + more;
            const auto plain = fixture.session(), drafted = fixture.session();
            const auto speculation = speculate(*drafted, drafter.get());
            const std::size_t n_plain = count(*plain, *plain), n_drafted = count(*drafted, *speculation);
            drafter->reset();
            CAPTURE(spec, more, n_plain);
            CHECK(n_plain < 300);
            CHECK(n_drafted + 1 >= n_plain);
        }
    }
}
