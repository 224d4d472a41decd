// One step of many sessions: each ends as it would alone, to the bit, and alone with its errors.
#include <cstring>
#include <limits>
#include <string>

#include "sessions.hpp"
#include "support/count_memory.hpp"
#include "support/float_modes.hpp"

using namespace gearkv;
using namespace gearkv::test;
using gearkv::testing::float_ways;
using gearkv::testing::FloatWay;
using gearkv::testing::InFloatWay;

namespace {

struct Pair {
    std::unique_ptr<Session> together, alone;
};

std::unique_ptr<Session> make(const Fixture& fixture, const SessionConfig& config, Executor& executor) {
    std::unique_ptr<Session> session;
    const Status status = Session::create(fixture.model, config, executor, &session);
    INFO(status.message());
    REQUIRE(status.ok());
    return session;
}

// Behind prompts of different lengths.
std::vector<Pair> make_pairs(const Fixture& fixture, std::size_t n, Workspace* workspace,
                             Executor& executor = serial_executor()) {
    std::vector<Pair> pairs(n);
    for (std::size_t i = 0; i < n; i++) {
        SessionConfig config = fixture.config;
        pairs[i].alone = make(fixture, config, executor);
        config.workspace = workspace;
        pairs[i].together = make(fixture, config, executor);
        const auto tokens = some_tokens(i * 5 % 13);
        if (tokens.empty()) continue;
        REQUIRE(pairs[i].alone->prefill(tokens.data(), tokens.size()).ok());
        REQUIRE(pairs[i].together->prefill(tokens.data(), tokens.size()).ok());
    }
    return pairs;
}

Token token_of(std::size_t session, std::size_t step) {
    return static_cast<Token>((session * 31 + step * 7) % 290);
}

std::vector<DecodeRequest> requests_of(std::vector<Pair>& pairs, std::size_t step) {
    std::vector<DecodeRequest> requests(pairs.size());
    for (std::size_t i = 0; i < pairs.size(); i++) {
        requests[i].session = pairs[i].together.get();
        requests[i].token = token_of(i, step);
    }
    return requests;
}

bool is_same(const Session& a, const Session& b, std::size_t n_vocab) {
    if ((a.logits() == nullptr) != (b.logits() == nullptr) || a.tokens() != b.tokens()) return false;
    return a.logits() == nullptr || std::memcmp(a.logits(), b.logits(), n_vocab * sizeof(float)) == 0;
}

void step_and_compare(std::vector<Pair>& pairs, std::size_t step, std::size_t n_vocab) {
    std::vector<DecodeRequest> requests = requests_of(pairs, step);
    const Status status = Session::decode_batch(requests.data(), requests.size());
    INFO(status.message());
    REQUIRE(status.ok());
    for (std::size_t i = 0; i < pairs.size(); i++) {
        CAPTURE(step, i);
        REQUIRE(requests[i].status.ok());
        REQUIRE(pairs[i].alone->decode(token_of(i, step)).ok());
        REQUIRE(is_same(*pairs[i].together, *pairs[i].alone, n_vocab));
    }
}

std::unique_ptr<Workspace> make_workspace() {
    std::unique_ptr<Workspace> workspace;
    REQUIRE(Workspace::create(default_allocator(), &workspace).ok());
    return workspace;
}

}  // namespace

TEST_CASE("sessions of a batch have the bits of sessions alone, also where blocks close", "[batch]") {
    for (const char* spec : {"f16", "gear-4:sinks=2", "paper:gear-4:g=32,nb=32"}) {
        for (const bool shared : {false, true}) {
            CAPTURE(spec, shared);
            ModelShape shape;
            shape.matrix_type = shared ? gguf_q8_0 : gguf_f16;
            shape.n_layers = 2;
            Fixture fixture(spec, shape);
            fixture.config.n_ctx = 200;
            const auto workspace = make_workspace();
            std::vector<Pair> pairs = make_pairs(fixture, shared ? 9 : 3, shared ? workspace.get() : nullptr);
            for (std::size_t step = 0; step < 150; step++)
                step_and_compare(pairs, step, fixture.maker.n_vocab);
            // One leaves, another takes its place as a fork, and the last comes first.
            pairs.erase(pairs.begin());
            pairs[0] = {fork(*pairs[1].together), fork(*pairs[1].alone)};
            std::swap(pairs.front(), pairs.back());
            for (std::size_t step = 0; step < 3; step++)
                step_and_compare(pairs, step, fixture.maker.n_vocab);
        }
    }
}

TEST_CASE("batches of every family and of any size have the bits of sessions alone", "[batch][thread]") {
    std::unique_ptr<Executor> executor;
    REQUIRE(create_executor(3, &executor).ok());
    ModelShape windowed;
    windowed.family = "gemma3";
    windowed.n_layers = 3;
    windowed.window = 6;
    windowed.window_period = 3;
    windowed.local_base = 1000.0f;
    ModelShape capped;
    capped.family = "gemma2";
    capped.attention_cap = 20.0f;
    capped.logit_cap = 5.0f;
    capped.window = 8;
    ModelShape fused;
    fused.family = "phi3";
    fused.fused_qkv = true;
    ModelShape scaled;
    scaled.family = "granite";
    scaled.logit_scale = 4.0f;
    scaled.residual_scale = 0.5f;
    scaled.embedding_scale = 3.0f;
    for (const ModelShape& shape : {windowed, capped, fused, scaled}) {
        CAPTURE(shape.family);
        Fixture fixture("f16", shape);
        const auto workspace = make_workspace();
        for (const std::size_t n : {1, 2, 5}) {
            std::vector<Pair> pairs = make_pairs(fixture, n, workspace.get(), *executor);
            for (std::size_t step = 0; step < 12; step++)
                step_and_compare(pairs, step, fixture.maker.n_vocab);
        }
    }
}

TEST_CASE("a batch has no other bits where a BLAS would take its float weights, or a chunk is no larger",
          "[batch]") {
    Fixture fixture("f16");
    fixture.config.chunk = 40;
    fixture.config.n_ctx = 40;
    const auto workspace = make_workspace();
    std::vector<Pair> pairs = make_pairs(fixture, 40, workspace.get());
    for (std::size_t step = 0; step < 2; step++)
        step_and_compare(pairs, step, fixture.maker.n_vocab);
}

TEST_CASE("what cannot be of a batch is refused with its number, and nothing is fed", "[batch]") {
    Fixture fixture("f16");
    fixture.config.n_ctx = 16;
    fixture.config.chunk = 4;
    const auto workspace = make_workspace();
    std::vector<Pair> pairs = make_pairs(fixture, 3, workspace.get());
    step_and_compare(pairs, 0, fixture.maker.n_vocab);
    const auto refuse = [&](Code code, const char* message, auto&& change) {
        std::vector<DecodeRequest> requests = requests_of(pairs, 1);
        change(requests);
        const Status status = Session::decode_batch(requests.data(), requests.size());
        INFO(message << ": " << status.message());
        CHECK(status.code() == code);
        CHECK(std::strstr(status.message(), message) != nullptr);
        for (const Pair& pair : pairs)
            CHECK(is_same(*pair.together, *pair.alone, fixture.maker.n_vocab));
    };
    refuse(Code::invalid_argument, "request 1", [](auto& requests) { requests[1].session = nullptr; });
    refuse(Code::invalid_argument, "request 0", [](auto& requests) { requests[0].session = nullptr; });
    refuse(Code::invalid_argument, "request 2", [](auto& requests) { requests[2] = requests[0]; });
    refuse(Code::bad_token, "request 2", [](auto& requests) { requests[2].token = -1; });
    refuse(Code::bad_token, "request 0", [](auto& requests) { requests[0].token = 1 << 20; });
    refuse(Code::wrong_size, "expected at most the 4 tokens", [](auto& requests) { requests.resize(5); });

    Fixture other("f16");
    const auto stranger = other.session();
    refuse(Code::other_model, "request 1", [&](auto& requests) { requests[1].session = stranger.get(); });
    SessionConfig floats = fixture.config;
    floats.float_products = true;
    const auto in_floats = make(fixture, floats, serial_executor());
    refuse(Code::invalid_argument, "request 1: products",
           [&](auto& requests) { requests[1].session = in_floats.get(); });
    const auto full = make(fixture, fixture.config, serial_executor());
    const auto tokens = some_tokens(16);
    REQUIRE(full->prefill(tokens.data(), tokens.size()).ok());
    refuse(Code::context_full, "request 2", [&](auto& requests) { requests[2].session = full.get(); });
    CHECK(full->n_tokens() == 16);
    CHECK(full->logits() != nullptr);

    CHECK(Session::decode_batch(nullptr, 1).code() == Code::invalid_argument);
    CHECK(Session::decode_batch(nullptr, 0).ok());
    // None was marked for good.
    step_and_compare(pairs, 1, fixture.maker.n_vocab);
}

TEST_CASE("an error on the way strikes the session that it would strike alone", "[batch]") {
    Fixture fixture("kivi-2:g=32,nb=32");
    fixture.config.n_ctx = 200;
    const auto workspace = make_workspace(), other = make_workspace();
    std::vector<Pair> pairs = make_pairs(fixture, 4, workspace.get());
    // The second may hold no more than it does now, and so no block.
    fixture.config.max_cache_bytes = pairs[1].together->cache().stats().bytes.bytes;
    fixture.config.workspace = workspace.get();
    pairs[1].together = fixture.session();
    fixture.config.workspace = other.get();
    pairs[1].alone = fixture.session();
    std::size_t n_refused = 0;
    for (std::size_t step = 0; step < 100 && n_refused < 3; step++) {
        std::vector<DecodeRequest> requests = requests_of(pairs, step);
        const Status status = Session::decode_batch(requests.data(), requests.size());
        for (std::size_t i = 0; i < pairs.size(); i++) {
            CAPTURE(step, i);
            const Status expected = pairs[i].alone->decode(token_of(i, step));
            INFO(expected.message() << " / " << requests[i].status.message());
            REQUIRE(requests[i].status.code() == expected.code());
            REQUIRE(is_same(*pairs[i].together, *pairs[i].alone, fixture.maker.n_vocab));
            REQUIRE((i == 1 || expected.ok()));
            if (i != 1) continue;
            n_refused += !expected.ok();
            CHECK(status.code() == expected.code());
            CHECK((status.ok() || std::strstr(status.message(), "request 1") != nullptr));
        }
    }
    CHECK(n_refused == 3);
}

TEST_CASE("keys that a cache cannot hold end one session of a batch until it is reset", "[batch]") {
    // One token whose embedding leads to keys that no half holds.
    ModelShape shape;
    shape.own_output = true;
    Fixture fixture("f16", shape);
    auto& tensor = fixture.maker.file.tensor("token_embd.weight");
    const std::size_t row = 9 * shape.n_embd * sizeof(float);
    for (std::size_t i = 0; i < shape.n_embd; i++)
        overwrite(tensor.data, row + i * sizeof(float), std::numeric_limits<float>::infinity());
    fixture.load();
    const auto workspace = make_workspace();
    std::vector<Pair> pairs = make_pairs(fixture, 3, workspace.get());
    std::vector<DecodeRequest> requests = requests_of(pairs, 0);
    requests[1].token = 9;
    const Status status = Session::decode_batch(requests.data(), requests.size());
    const Status expected = pairs[1].alone->decode(9);
    REQUIRE(!expected.ok());
    CHECK(status.code() == expected.code());
    CHECK(requests[1].status.code() == expected.code());
    for (const std::size_t i : {0, 1, 2}) {
        if (i != 1) {
            CHECK(requests[i].status.ok());
            REQUIRE(pairs[i].alone->decode(token_of(i, 0)).ok());
        }
        CHECK(is_same(*pairs[i].together, *pairs[i].alone, fixture.maker.n_vocab));
    }
    pairs[1].alone->reset();
    pairs[1].together->reset();
    step_and_compare(pairs, 1, fixture.maker.n_vocab);
}

TEST_CASE("a batch has the same bits whatever mode the threads are in", "[batch]") {
    ModelShape shape;
    shape.matrix_type = gguf_q8_0;
    Fixture fixture("f16", shape);
    for (const FloatWay& way : float_ways()) {
        const auto workspace = make_workspace();
        std::vector<Pair> pairs = make_pairs(fixture, 3, workspace.get());
        for (std::size_t step = 0; step < 2; step++) {
            std::vector<DecodeRequest> requests = requests_of(pairs, step);
            Status status;
            {
                const InFloatWay in(way);
                status = Session::decode_batch(requests.data(), requests.size());
            }
            REQUIRE(status.ok());
            for (std::size_t i = 0; i < pairs.size(); i++) {
                REQUIRE(pairs[i].alone->decode(token_of(i, step)).ok());
                CHECK(is_same(*pairs[i].together, *pairs[i].alone, fixture.maker.n_vocab));
            }
        }
    }
}

TEST_CASE("after its first step a batch takes no memory", "[batch]") {
    Fixture fixture("f16");
    const auto workspace = make_workspace();
    std::vector<Pair> pairs = make_pairs(fixture, 6, workspace.get());
    step_and_compare(pairs, 0, fixture.maker.n_vocab);
    for (std::size_t step = 1; step < 5; step++) {
        std::vector<DecodeRequest> requests = requests_of(pairs, step);
        const long before = count_allocations();
        REQUIRE(Session::decode_batch(requests.data(), requests.size()).ok());
        CHECK(count_allocations() == before);
    }
}

TEST_CASE("without memory a batch is refused, or some of its sessions end, and it goes on", "[batch]") {
    Fixture fixture("f16");
    bool succeeded = false;
    for (long n = 0; n < 60 && !succeeded; n++) {
        CAPTURE(n);
        std::vector<Pair> pairs = make_pairs(fixture, 3, nullptr);
        std::vector<DecodeRequest> requests = requests_of(pairs, 0);
        Status status;
        {
            RefuseAfter refuse(n);
            status = Session::decode_batch(requests.data(), requests.size());
        }
        succeeded = status.ok();
        if (!succeeded) CHECK(status.code() == Code::out_of_memory);
        for (std::size_t i = 0; i < pairs.size(); i++) {
            Session& session = *pairs[i].together;
            const bool fed = session.n_tokens() == pairs[i].alone->n_tokens() + 1;
            if (succeeded) CHECK(fed);
            if (!session.decode(5).ok()) {
                session.reset();
                CHECK(session.decode(5).ok());
            }
        }
    }
    CHECK(succeeded);
}
