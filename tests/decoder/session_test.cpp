// Sessions: their errors, their limits, and what they allocate.
#include <cmath>
#include <limits>
#include <string>

#include "decoder/network/model.hpp"
#include "gearkv/decoder.hpp"
#include "sessions.hpp"
#include "support/catch.hpp"
#include "support/count_memory.hpp"
#include "support/model_maker.hpp"
#include "support/temporary_file.hpp"

using namespace gearkv;
using namespace gearkv::test;

TEST_CASE("a session has no logits before its first token and after a reset") {
    Fixture fixture;
    const auto session = fixture.session();
    CHECK(session->logits() == nullptr);
    CHECK(session->n_tokens() == 0);
    CHECK(session->n_ctx() == 64);
    REQUIRE(session->decode(1).ok());
    CHECK(session->logits() != nullptr);
    CHECK(session->n_tokens() == 1);
    CHECK(session->cache().n_tokens(0) == 1);
    session->reset();
    CHECK(session->logits() == nullptr);
    CHECK(session->n_tokens() == 0);
    CHECK(session->cache().n_tokens(0) == 0);
}

TEST_CASE("a reset session repeats itself bit for bit") {
    for (const char* spec : {"f32", "f16", "paper:gear-4:g=32,nb=32", "kivi-2:g=32,nb=32"}) {
        CAPTURE(spec);
        Fixture fixture(spec);
        const auto session = fixture.session();
        const auto tokens = some_tokens(50);
        REQUIRE(session->prefill(tokens.data(), 40).ok());
        for (std::size_t i = 40; i < 50; i++) {
            REQUIRE(session->decode(tokens[i]).ok());
        }
        const auto first = copy_logits(*session, fixture.maker.n_vocab);
        session->reset();
        REQUIRE(session->prefill(tokens.data(), 40).ok());
        for (std::size_t i = 40; i < 50; i++) {
            REQUIRE(session->decode(tokens[i]).ok());
        }
        CHECK(copy_logits(*session, fixture.maker.n_vocab) == first);
    }
}

TEST_CASE("prompts that cannot be fed are refused and nothing is fed") {
    Fixture fixture;
    fixture.config.n_ctx = 10;
    const auto session = fixture.session();
    REQUIRE(session->decode(4).ok());
    const auto before = copy_logits(*session, fixture.maker.n_vocab);
    auto tokens = some_tokens(12);
    CHECK(session->prefill(tokens.data(), 0).code() == Code::empty_prompt);
    CHECK(session->prefill(nullptr, 3).code() == Code::invalid_argument);
    CHECK(session->prefill(tokens.data(), 3, nullptr).code() == Code::invalid_argument);
    CHECK(session->prefill(tokens.data(), 10).code() == Code::prompt_too_long);
    CHECK(session->prefill(tokens.data(), std::numeric_limits<std::size_t>::max()).code() ==
          Code::prompt_too_long);
    for (const Token bad : {-1, static_cast<Token>(fixture.maker.n_vocab), std::numeric_limits<Token>::max(),
                            std::numeric_limits<Token>::min()}) {
        tokens[2] = bad;
        CHECK(session->prefill(tokens.data(), 3).code() == Code::bad_token);
        CHECK(session->decode(bad).code() == Code::bad_token);
    }
    CHECK(session->n_tokens() == 1);
    CHECK(copy_logits(*session, fixture.maker.n_vocab) == before);
    CHECK(session->decode(7).ok());
}

TEST_CASE("the context fills to its last token and then says so") {
    Fixture fixture;
    fixture.config.n_ctx = 9;
    fixture.config.chunk = 4;
    const auto session = fixture.session();
    const auto tokens = some_tokens(9);
    REQUIRE(session->prefill(tokens.data(), 8).ok());
    REQUIRE(session->decode(tokens[8]).ok());
    CHECK(session->n_tokens() == 9);
    CHECK(session->decode(3).code() == Code::context_full);
    CHECK(session->prefill(tokens.data(), 1).code() == Code::prompt_too_long);
    CHECK(session->logits() != nullptr);
}

TEST_CASE("a session is made only from sound arguments") {
    Fixture fixture;
    std::unique_ptr<Session> session;
    CHECK(Session::create(nullptr, fixture.config, serial_executor(), &session).code() ==
          Code::invalid_argument);
    CHECK(Session::create(fixture.model, fixture.config, serial_executor(), nullptr).code() ==
          Code::invalid_argument);
    SessionConfig config = fixture.config;
    config.chunk = 0;
    CHECK(Session::create(fixture.model, config, serial_executor(), &session).code() ==
          Code::invalid_argument);
    config = fixture.config;
    config.spec.key.bits = 5;
    CHECK(Session::create(fixture.model, config, serial_executor(), &session).code() == Code::bad_spec);
    config = fixture.config;
    config.level = static_cast<Level>(99);
    CHECK(Session::create(fixture.model, config, serial_executor(), &session).code() == Code::unknown_level);
    CHECK(session == nullptr);
}

TEST_CASE("any way of cutting a prompt gives nearly the same logits") {
    ModelShape shape;
    shape.n_layers = 2;
    shape.n_ctx = 256;
    Fixture fixture("f32", shape);
    const auto tokens = some_tokens(200);
    std::vector<float> expected;
    for (const std::uint32_t chunk : {1, 7, 31, 32, 64, 199, 200, 512}) {
        fixture.config.chunk = chunk;
        const auto session = fixture.session();
        REQUIRE(session->prefill(tokens.data(), tokens.size()).ok());
        const auto logits = copy_logits(*session, fixture.maker.n_vocab);
        if (expected.empty()) expected = logits;
        for (std::size_t i = 0; i < logits.size(); i++) {
            REQUIRE(logits[i] == Approx(expected[i]).margin(2e-4));
        }
    }
}

TEST_CASE("logits do not depend on the number of threads", "[thread]") {
    ModelShape shape;
    shape.n_ctx = 128;
    shape.n_layers = 2;
    for (const char* spec : {"f32", "paper:gear-4:g=32,nb=32"}) {
        Fixture fixture(spec, shape);
        const auto tokens = some_tokens(100);
        std::vector<float> serial(100 * fixture.maker.n_vocab);
        REQUIRE(fixture.session()->prefill(tokens.data(), tokens.size(), serial.data()).ok());
        for (const unsigned n_threads : {2u, 3u, 8u}) {
            std::unique_ptr<Executor> executor;
            REQUIRE(create_executor(n_threads, &executor).ok());
            std::unique_ptr<Session> session;
            REQUIRE(Session::create(fixture.model, fixture.config, *executor, &session).ok());
            std::vector<float> logits(serial.size());
            REQUIRE(session->prefill(tokens.data(), tokens.size(), logits.data()).ok());
            CHECK(logits == serial);
        }
    }
}

TEST_CASE("the logits of all tokens are those of each prefix") {
    Fixture fixture;
    fixture.config.chunk = 7;
    const auto tokens = some_tokens(20);
    const std::size_t n_vocab = fixture.maker.n_vocab;
    std::vector<float> all(20 * n_vocab);
    const auto session = fixture.session();
    REQUIRE(session->prefill(tokens.data(), 20, all.data()).ok());
    CHECK(copy_logits(*session, n_vocab) ==
          std::vector<float>(all.end() - static_cast<std::ptrdiff_t>(n_vocab), all.end()));
    const auto step = fixture.session();
    for (std::size_t t = 0; t < 20; t++) {
        REQUIRE(step->decode(tokens[t]).ok());
        for (std::size_t i = 0; i < n_vocab; i++) {
            REQUIRE(all[t * n_vocab + i] == Approx(step->logits()[i]).margin(1e-4));
        }
    }
}

TEST_CASE("weights that are no numbers end the session with an error until it is reset") {
    // Where the poison sits decides who notices: the cache, or the check of the logits.
    for (const char* name : {"token_embd.weight", "blk.0.attn_k.weight", "blk.1.attn_v.weight",
                             "blk.1.ffn_up.weight", "output_norm.weight"}) {
        for (const float poison : {NAN, INFINITY}) {
            CAPTURE(name, poison);
            ModelShape shape;
            shape.n_layers = 2;
            Fixture fixture("f16", shape);
            Bytes& data = fixture.maker.file.tensor(name).data;
            for (std::size_t i = 0; i < data.size(); i += sizeof(float)) {
                overwrite(data, i, poison);
            }
            fixture.load();
            const auto session = fixture.session();
            const auto tokens = some_tokens(10);
            const Status status = session->prefill(tokens.data(), 10);
            INFO(status.message());
            CHECK(status.code() == Code::non_finite);
            CHECK(session->logits() == nullptr);
            CHECK(session->n_tokens() == 0);
            CHECK(session->decode(3).code() == Code::non_finite);
            session->reset();
            CHECK(session->prefill(tokens.data(), 10).code() == Code::non_finite);
        }
    }
}

TEST_CASE("keys beyond half precision are refused by a half cache and taken by a float cache") {
    for (const bool half : {true, false}) {
        Fixture fixture(half ? "f16" : "f32");
        Bytes& data = fixture.maker.file.tensor("blk.0.attn_k.weight").data;
        for (std::size_t i = 0; i < data.size(); i += sizeof(float)) {
            overwrite(data, i, 1e6f);
        }
        fixture.load();
        const auto session = fixture.session();
        const Status status = session->decode(5);
        CHECK(status.code() == (half ? Code::not_representable : Code::ok));
    }
}

TEST_CASE("a decode step allocates nothing beyond what the cache needs for its blocks") {
    Fixture fixture("f16:nb=64");
    const auto session = fixture.session();
    const auto tokens = some_tokens(30);
    REQUIRE(session->prefill(tokens.data(), 20).ok());
    REQUIRE(session->decode(tokens[20]).ok());
    const long before = count_allocations();
    for (std::size_t i = 21; i < 30; i++) {
        REQUIRE(session->decode(tokens[i]).ok());
    }
    CHECK(count_allocations() == before);
}

TEST_CASE("without memory, creating a session or encoding a text fails cleanly at every allocation") {
    Fixture fixture;
    for (long n = 0;; n++) {
        std::unique_ptr<Session> session;
        std::vector<Token> tokens;
        Status created, encoded;
        {
            const RefuseAfter refuse(n);
            created = Session::create(fixture.model, fixture.config, serial_executor(), &session);
        }
        {
            const RefuseAfter refuse(n);
            encoded = fixture.model->tokenizer().encode("the and then", {}, &tokens);
        }
        CHECK((created.ok() || created.code() == Code::out_of_memory));
        CHECK(created.ok() == (session != nullptr));
        CHECK((encoded.ok() || encoded.code() == Code::out_of_memory));
        CHECK(encoded.ok() == !tokens.empty());
        if (created.ok() && encoded.ok()) break;
        REQUIRE(n < 1000);
    }
}

TEST_CASE("without memory, loading a model fails cleanly at every allocation") {
    const Bytes bytes = ModelMaker({}).file.write();
    std::shared_ptr<const FileModel> model;
    const long before = count_allocations();
    REQUIRE(FileModel::load_bytes(bytes.data(), bytes.size(), &model).ok());
    const long n_needed = count_allocations() - before;
    model.reset();
    for (long n = 0; n < n_needed; n++) {
        bool refused = false;
        {
            const RefuseAfter refuse(n);
            try {
                const Status status = FileModel::load_bytes(bytes.data(), bytes.size(), &model);
                refused = !status.ok();
            } catch (const std::bad_alloc&) {
                refused = true;
            }
        }
        REQUIRE(refused);
        REQUIRE(model == nullptr);
    }
}

TEST_CASE("a session that ran out of memory between two layers says so until it is reset, and then works") {
    ModelShape shape;
    shape.n_layers = 3;
    Fixture fixture("paper:gear-4:g=32,nb=32", shape);
    const auto tokens = some_tokens(50);
    std::vector<float> expected;
    {
        const auto session = fixture.session();
        REQUIRE(session->prefill(tokens.data(), tokens.size()).ok());
        expected = copy_logits(*session, fixture.maker.n_vocab);
    }
    const auto session = fixture.session();
    bool failed_between = false;
    for (long n = 0;; n++) {
        REQUIRE(n < 10000);
        Status status;
        {
            const RefuseAfter refuse(n);
            status = session->prefill(tokens.data(), tokens.size());
        }
        if (status.ok()) break;
        CHECK(status.code() == Code::out_of_memory);
        const bool failed = std::string(status.message()).find("needs a reset") != std::string::npos;
        failed_between = failed_between || failed;
        if (!failed) continue;  // nothing was fed, the next round starts from the same state
        const Status later = session->decode(1);
        CHECK(later.code() == Code::out_of_memory);
        CHECK(session->prefill(tokens.data(), 1).code() == Code::out_of_memory);
        CHECK(session->logits() == nullptr);
        session->reset();
    }
    CHECK(failed_between);
    CHECK(copy_logits(*session, fixture.maker.n_vocab) == expected);
}

TEST_CASE("a truncated session and a fork go on as if nothing had come between") {
    Fixture fixture("gear-4");
    const std::size_t n_vocab = fixture.model->params().n_vocab;
    const std::vector<Token> tokens = some_tokens(40), others = {7, 8, 9};
    const auto session = fixture.session();
    REQUIRE(session->prefill(tokens.data(), 30).ok());
    const auto copy = fork(*session);
    CHECK(copy->n_tokens() == 30);
    CHECK(copy_logits(*copy, n_vocab) == copy_logits(*session, n_vocab));
    const std::vector<float> expected = decode_all(session.get(), others, n_vocab);
    decode_all(copy.get(), {1, 2, 3, 4}, n_vocab);
    bool lossless = false;
    REQUIRE(copy->truncate(30, &lossless).ok());
    CHECK(lossless);
    CHECK(copy->logits() == nullptr);
    CHECK(decode_all(copy.get(), others, n_vocab) == expected);
    CHECK(session->truncate(34).code() == Code::wrong_size);
    CHECK(session->n_tokens() == 33);
    CHECK(session->logits() != nullptr);
}

TEST_CASE("drafts that are taken back leave no trace, also when a block was closed on their account") {
    Fixture fixture("kivi-2:nb=64");
    fixture.config.n_ctx = 256;
    fixture.config.rollback_tokens = 6;
    fixture.config.error_every = 1;
    const std::size_t n_vocab = fixture.model->params().n_vocab;
    const auto drafting = fixture.session();
    const auto plain = fixture.session();
    const std::vector<Token> draft = {3, 1, 4, 1, 5, 9};
    for (const Token token : some_tokens(180)) {
        CAPTURE(drafting->n_tokens());
        REQUIRE(drafting->prefill(draft.data(), draft.size()).ok());
        bool lossless = false;
        REQUIRE(drafting->truncate(drafting->n_tokens() - draft.size(), &lossless).ok());
        REQUIRE(lossless);
        CHECK(decode_all(drafting.get(), {token}, n_vocab) == decode_all(plain.get(), {token}, n_vocab));
    }
    CHECK(drafting->cache().stats().compressed_tokens == 128);
    LayerStats stats;
    REQUIRE(plain->cache().layer_stats(0, &stats).ok());
    CHECK(stats.n_sampled == 2);
    CHECK(stats.output_error > 0.0);
    CHECK(stats.output_error < 1.0);
}

TEST_CASE("after a context shift the rest is attended at its new place") {
    // Without a difference of places nothing tells the two apart but where the tokens lie.
    ModelShape shape;
    shape.n_layers = 1;
    Fixture fixture("f32", shape);
    const std::size_t n_vocab = fixture.model->params().n_vocab;
    const std::vector<Token> tokens = some_tokens(40);
    const auto shifted = fixture.session();
    REQUIRE(shifted->prefill(tokens.data(), 40).ok());
    REQUIRE(shifted->remove(5, 12).ok());
    CHECK(shifted->n_tokens() == 28);
    // Of one layer keys and values depend on token and place alone.
    std::vector<Token> rest(tokens.begin(), tokens.begin() + 5);
    rest.insert(rest.end(), tokens.begin() + 17, tokens.end());
    const auto never = fixture.session();
    REQUIRE(never->prefill(rest.data(), rest.size()).ok());
    const std::vector<float> a = decode_all(shifted.get(), {3, 4}, n_vocab),
                             b = decode_all(never.get(), {3, 4}, n_vocab);
    for (std::size_t i = 0; i < a.size(); ++i)
        CHECK(a[i] == Approx(b[i]).margin(1e-4));
    CHECK(shifted->remove(20, 20).code() == Code::wrong_size);
    CHECK(shifted->n_tokens() == 30);
}

TEST_CASE("a session is not saved over its own model") {
    Fixture fixture("gear-4");
    const gearkv::testing::TemporaryFile model, other;
    model.write(fixture.bytes);
    REQUIRE(Model::load(model.path(), &fixture.model).ok());
    auto session = fixture.session();
    REQUIRE(session->prefill(some_tokens(3).data(), 3).ok());
    CHECK(session->check_save(model.path()).code() == Code::protected_file);
    CHECK(session->save(model.path()).code() == Code::protected_file);
    CHECK(model.read() == fixture.bytes);
    CHECK(session->check_save(other.path()).ok());
    CHECK(session->save(other.path()).ok());
}

TEST_CASE("a loaded session gives the logits of the saved one") {
    Fixture fixture("gear-3");
    const std::size_t n_vocab = fixture.model->params().n_vocab;
    const std::vector<Token> tokens = some_tokens(20), others = {5, 6, 7, 8};
    const auto session = fixture.session();
    REQUIRE(session->prefill(tokens.data(), tokens.size()).ok());
    const gearkv::testing::TemporaryFile file;
    REQUIRE(session->save(file.path()).ok());
    const std::vector<float> at_save = copy_logits(*session, n_vocab);
    const std::vector<float> expected = decode_all(session.get(), others, n_vocab);
    for (const StateLoading loading : {StateLoading::copy, StateLoading::map}) {
        std::unique_ptr<Session> loaded;
        const Status status =
            Session::load(file.path(), fixture.model, fixture.config, loading, serial_executor(), &loaded);
        INFO(status.message());
        REQUIRE(status.ok());
        CHECK(loaded->n_tokens() == tokens.size());
        CHECK(copy_logits(*loaded, n_vocab) == at_save);
        CHECK(decode_all(loaded.get(), others, n_vocab) == expected);
    }
    const auto load = [&](const std::shared_ptr<const Model>& model, const SessionConfig& config) {
        std::unique_ptr<Session> loaded;
        const Status status =
            Session::load(file.path(), model, config, StateLoading::copy, serial_executor(), &loaded);
        CHECK((loaded == nullptr) == !status.ok());
        return status.code();
    };
    SessionConfig config = fixture.config;
    REQUIRE(parse_spec("gear-2", &config.spec).ok());
    CHECK(load(fixture.model, config) == Code::other_codec);
    config = fixture.config;
    config.n_ctx = 19;
    CHECK(load(fixture.model, config) == Code::capacity_exceeded);
    // The same shapes, and one weight that differs.
    Fixture other("gear-3");
    other.bytes[other.bytes.size() - 3] ^= 1;
    std::shared_ptr<const FileModel> changed;
    REQUIRE(FileModel::load_bytes(other.bytes.data(), other.bytes.size(), &changed).ok());
    CHECK(load(changed, fixture.config) == Code::other_model);
    CHECK(load(nullptr, fixture.config) == Code::invalid_argument);
    // A cache of the same shape that is no session.
    REQUIRE(save_state(session->cache(), file.path(), {fixture.model->fingerprint(), nullptr, 0},
                       serial_executor())
                .ok());
    CHECK(load(fixture.model, fixture.config) == Code::corrupt_state);
}
