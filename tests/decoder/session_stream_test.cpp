// Sessions through functions and memory, and parts of them.
#include "sessions.hpp"
#include "state/streams.hpp"
#include "support/count_memory.hpp"
#include "support/temporary_file.hpp"

namespace gearkv::test {
namespace {

using testing::Collector;
using testing::FileBytes;
using testing::Giver;

// A session with a sampler that has drawn.
struct Talk {
    Fixture fixture{"gear-3"};
    std::unique_ptr<Session> session;
    std::unique_ptr<Sampler> sampler = make_sampler(5);
    std::size_t n_vocab = fixture.model->params().n_vocab;

    Talk() {
        fixture.config.n_ctx = 512;
        session = fixture.session();
        const std::vector<Token> tokens = some_tokens(170);
        REQUIRE(session->prefill(tokens.data(), tokens.size()).ok());
        for (int i = 0; i < 3; ++i) {
            Token token = -1;
            REQUIRE(sampler->sample(session->logits(), n_vocab, &token).ok());
            REQUIRE(sampler->accept(token).ok());
            REQUIRE(session->decode(token).ok());
        }
    }
    static std::unique_ptr<Sampler> make_sampler(std::uint64_t seed) {
        SamplerConfig config;
        config.temperature = 1.0f;
        config.seed = seed;
        std::unique_ptr<Sampler> made;
        REQUIRE(Sampler::create(config, &made).ok());
        return made;
    }
    SessionAttachments attached() const { return {sampler.get(), "a note"}; }
    FileBytes bytes(const SessionAttachments& attached) const {
        Collector all;
        const Status status = session->save(all.sink(), attached);
        INFO(status.message());
        REQUIRE(status.ok());
        return all.bytes;
    }
    Status load(Giver* giver, std::unique_ptr<Session>* out, const LoadedAttachments& loaded = {}) const {
        return Session::load(giver->source(), fixture.model, fixture.config, serial_executor(), out, loaded);
    }
};

std::vector<unsigned char> state_of(const Sampler& sampler) {
    std::vector<unsigned char> bytes;
    REQUIRE(sampler.save(&bytes).ok());
    return bytes;
}

}  // namespace

TEST_CASE("a session is the same bytes in a file, in memory and through a function, and goes on alike") {
    Talk talk;
    const testing::TemporaryFile file;
    REQUIRE(talk.session->save(file.path(), talk.attached()).ok());
    const FileBytes bytes = file.read();
    CHECK((talk.bytes(talk.attached()) == bytes));
    std::uint64_t n_bytes = 0;
    bool lossless = false;
    REQUIRE(talk.session->saved_bytes(&n_bytes, talk.attached(), &lossless).ok());
    CHECK(n_bytes == bytes.size());
    CHECK(lossless);
    FileBytes memory(bytes.size());
    std::size_t n_written = 0;
    CHECK(talk.session->save(memory.data(), memory.size() - 1, talk.attached()).code() == Code::wrong_size);
    REQUIRE(talk.session->save(memory.data(), memory.size(), talk.attached(), &n_written).ok());
    CHECK(n_written == bytes.size());
    CHECK((memory == bytes));

    std::unique_ptr<Session> loaded[3];
    std::unique_ptr<Sampler> samplers[3];
    for (int i = 0; i < 3; ++i) {
        std::string note;
        samplers[i] = Talk::make_sampler(99);
        const LoadedAttachments wanted = {samplers[i].get(), &note};
        const Fixture& fixture = talk.fixture;
        Giver giver(bytes);
        giver.is_short = true;
        const Status status = i == 0
                                  ? Session::load(file.path(), fixture.model, fixture.config,
                                                  StateLoading::copy, serial_executor(), &loaded[i], wanted)
                              : i == 1 ? talk.load(&giver, &loaded[i], wanted)
                                       : Session::load(memory.data(), memory.size(), fixture.model,
                                                       fixture.config, serial_executor(), &loaded[i], wanted);
        CAPTURE(i, status.message());
        REQUIRE(status.ok());
        CHECK(note == "a note");
        CHECK(loaded[i]->tokens() == talk.session->tokens());
        CHECK(state_of(*samplers[i]) == state_of(*talk.sampler));
        CHECK(copy_logits(*loaded[i], talk.n_vocab) == copy_logits(*talk.session, talk.n_vocab));
    }
    const std::vector<float> expected = decode_all(talk.session.get(), some_tokens(100), talk.n_vocab);
    for (const auto& session : loaded)
        CHECK(decode_all(session.get(), some_tokens(100), talk.n_vocab) == expected);
}

TEST_CASE("the first tokens of a session are one that has only these") {
    Talk talk;
    const FileBytes whole = talk.bytes(talk.attached());
    for (const std::uint64_t n : {0, 1, 100, 172, 173}) {
        CAPTURE(n);
        SessionAttachments attached = talk.attached();
        attached.n_tokens = n;
        const FileBytes bytes = talk.bytes(attached);
        std::uint64_t n_bytes = 0;
        bool lossless = false, expected = false;
        REQUIRE(talk.session->saved_bytes(&n_bytes, attached, &lossless).ok());
        CHECK(n_bytes == bytes.size());
        const auto cut = fork(*talk.session);
        REQUIRE(cut->truncate(n, &expected).ok());
        CHECK(lossless == expected);
        Giver giver(bytes);
        std::unique_ptr<Session> loaded;
        const Status status = talk.load(&giver, &loaded);
        INFO(status.message());
        REQUIRE(status.ok());
        CHECK(loaded->tokens() == cut->tokens());
        CHECK((loaded->logits() != nullptr) == (n == 173));
        if (n == 173) CHECK((bytes == whole));
        CHECK(decode_all(loaded.get(), {4, 5, 6}, talk.n_vocab) ==
              decode_all(cut.get(), {4, 5, 6}, talk.n_vocab));
    }
    SessionAttachments attached;
    attached.n_tokens = 174;
    Collector none;
    CHECK(talk.session->save(none.sink(), attached).code() == Code::wrong_size);
    CHECK(none.calls == 0);
    CHECK((talk.bytes(talk.attached()) == whole));
}

TEST_CASE(
    "a function or an allocation that fails changes neither a session nor what it was to be loaded into") {
    Talk talk;
    const FileBytes whole = talk.bytes(talk.attached());
    long n = 0;
    for (Status status = Status::error(Code::write_failed, "."); !status.ok(); ++n) {
        REQUIRE(n < 1000);
        Collector all;
        all.most_calls = n;
        status = talk.session->save(all.sink(), talk.attached());
        CHECK((status.ok() || status.code() == Code::write_failed));
    }
    CHECK(n > 10);
    CHECK((talk.bytes(talk.attached()) == whole));

    auto sampler = Talk::make_sampler(99);
    const std::vector<unsigned char> before = state_of(*sampler);
    std::string note = "old";
    const auto each = [&](Code expected, const auto& limit, const auto& unlimit) {
        long calls = 0;
        for (Status status = Status::error(expected, "."); !status.ok(); ++calls) {
            REQUIRE(calls < 3000);
            Giver giver(whole);
            std::unique_ptr<Session> out;
            limit(&giver, calls);
            status = talk.load(&giver, &out, {sampler.get(), &note});
            unlimit();
            CAPTURE(calls, status.message());
            CHECK((status.ok() || status.code() == expected));
            CHECK((out != nullptr) == status.ok());
            CHECK((status.ok() || (state_of(*sampler) == before && note == "old")));
        }
        CHECK(note == "a note");
        CHECK(state_of(*sampler) == state_of(*talk.sampler));
        REQUIRE(sampler->restore(before.data(), before.size()).ok());
        note = "old";
        return calls;
    };
    CHECK(each(
              Code::read_failed, [](Giver* giver, long calls) { giver->most_calls = calls; }, [] {}) >= 4);
    CHECK(each(
              Code::out_of_memory, [](Giver*, long calls) { refuse_after(calls); },
              [] { refuse_after(-1); }) > 20);
}

}  // namespace gearkv::test
