// What a session takes of memory, foretold and counted.
#include <string>

#include "decoder/generation/session_parts.hpp"
#include "gearkv/fit.hpp"
#include "sessions.hpp"
#include "support/count_memory.hpp"

using namespace gearkv;
using namespace gearkv::test;

namespace {

ModelShape wide_shape() {
    ModelShape shape;
    shape.n_layers = 3;
    shape.n_embd = 64;
    shape.n_heads = 8;
    shape.n_kv_heads = 4;
    shape.head_dim = 32;
    shape.rope_dim = 32;
    shape.n_ff = 96;
    shape.n_ctx = 800;
    return shape;
}

SessionBytes bytes_of(const Fixture& fixture, Executor& executor = serial_executor()) {
    SessionBytes bytes;
    const Status status = session_bytes(*fixture.model, fixture.config, executor, &bytes);
    INFO(status.message());
    REQUIRE(status.ok());
    return bytes;
}

}  // namespace

TEST_CASE("a session takes what was foretold, and little less", "[fit]") {
    for (const char* spec : {"f16", "gear-4", "paper:gear-4", "q8;layers-1=gear-3", "auto:4.5", "auto:2.5"}) {
        for (const std::uint32_t chunk : {1u, 64u, 512u}) {
            for (const std::uint32_t n_prompt : {790u, 300u}) {
                // Token by token is slow, and the same for all codecs but for their blocks.
                if ((chunk == 1 || n_prompt == 300) && std::string(spec) != "gear-4" &&
                    std::string(spec) != "auto:4.5")
                    continue;
                if (chunk == 1 && n_prompt == 300) continue;
                CAPTURE(spec, chunk, n_prompt);
                Fixture fixture(spec, wide_shape());
                fixture.config.chunk = chunk;
                if (chunk == 64) fixture.config.rollback_tokens = 16;
                const SessionBytes foretold = bytes_of(fixture);
                const auto tokens = some_tokens(n_prompt);
                const long before = count_bytes();
                reset_peak();
                const auto session = fixture.session();
                REQUIRE(session->prefill(tokens.data(), tokens.size()).ok());
                while (session->n_tokens() < session->n_ctx())
                    REQUIRE(session->decode(7).ok());
                const double taken = static_cast<double>(peak_bytes() - before);
                const auto expected = static_cast<double>(foretold.cache + foretold.scratch);
                // What is counted includes what malloc rounds up: for each block, and for large ones to
                // pages.
                const double n_rounded = 3.0 * 800 / 64;
                CHECK(taken < expected + n_rounded * 112 + 16384);
                CHECK(taken > 0.8 * expected);
                CHECK(foretold.weights < fixture.bytes.size());
                CHECK(foretold.weights > fixture.bytes.size() / 2);
            }
        }
    }
}

TEST_CASE("activations are counted to the byte, without taking room for a chunk") {
    Fixture fixture("f16", wide_shape());
    const auto& model = dynamic_cast<const FileModel&>(*fixture.model);
    for (const unsigned n_threads : {1u, 3u}) {
        std::unique_ptr<Executor> executor;
        REQUIRE(create_executor(n_threads, &executor).ok());
        for (const std::uint32_t chunk : {1u, 2u, 3u, 100u, 800u}) {
            CAPTURE(chunk, n_threads);
            SessionParts parts;
            fixture.config.chunk = chunk;
            REQUIRE(make_parts(model, fixture.config, &parts).ok());
            const long before = count_bytes();
            const Forward forward(model, *find_linear_kernels(Level::scalar), parts.integer, 800, chunk,
                                  *executor);
            const long counted = count_bytes() - before;
            const std::uint64_t beside = model.params().n_vocab * sizeof(float) + 800 * sizeof(Token);
            const std::uint64_t foretold =
                session_scratch_bytes(parts, *find_linear_kernels(Level::scalar), *executor);
            CHECK(foretold == forward.n_bytes() + beside);
            // What malloc rounds up, and some vectors of a few numbers.
            CHECK(counted >= static_cast<long>(forward.n_bytes()));
            CHECK(counted < static_cast<long>(forward.n_bytes()) + 12 * 4096);
        }
    }
}

TEST_CASE("a session keeps below the bytes its cache is allowed") {
    Fixture fixture("f16", wide_shape());
    fixture.config.max_cache_bytes = 400000;
    const auto session = fixture.session();
    const auto tokens = some_tokens(790);
    CHECK(session->prefill(tokens.data(), tokens.size()).code() == Code::over_budget);
    CHECK(session->cache().stats().bytes.bytes <= 400000 + 4096);
}

namespace {

Fit fit(const Fixture& fixture, const FitRequest& request) {
    Fit fit;
    const Status status = fit_session(*fixture.model, request, serial_executor(), &fit);
    INFO(status.message());
    REQUIRE(status.ok());
    CHECK_FALSE(fit.reason.empty());
    CHECK_FALSE(fit.table.empty());
    return fit;
}

std::uint64_t total(const Fixture& fixture, const char* spec, std::uint32_t n_ctx,
                    std::uint32_t chunk = 512) {
    SessionConfig config;
    REQUIRE(parse_spec(spec, &config.spec).ok());
    config.n_ctx = n_ctx;
    config.chunk = chunk;
    SessionBytes bytes;
    REQUIRE(session_bytes(*fixture.model, config, serial_executor(), &bytes).ok());
    return bytes.total();
}

}  // namespace

TEST_CASE("as many bits are chosen as the trained context leaves room for") {
    ModelShape shape = wide_shape();
    shape.n_ctx = 20000;
    Fixture fixture("f16", shape);
    const char* specs[] = {"f16", "gear-4", "gear-3", "gear-2"};
    for (int i = 0; i < 4; i++) {
        FitRequest request;
        request.max_bytes = total(fixture, specs[i], 20000);
        const Fit exact = fit(fixture, request);
        CHECK(exact.fits);
        CHECK(exact.choice.spec == specs[i]);
        CHECK(exact.choice.n_ctx == 20000);
        CHECK(exact.choice.bytes.total() == request.max_bytes);
        request.other_bytes = 1;
        const Fit less = fit(fixture, request);
        CHECK(less.fits);
        CHECK(less.choice.spec == (i < 3 ? specs[i + 1] : "gear-4"));
        if (i == 3) {
            CHECK(less.choice.n_ctx < 20000);
            CHECK(less.choice.n_ctx % 256 == 0);
            CHECK(total(fixture, "gear-4", less.choice.n_ctx + 256) > request.max_bytes);
            CHECK(less.reason.find("trained context of 20000 does not fit") != std::string::npos);
        }
    }
}

TEST_CASE("the fewest bits are for tokens that are asked for, and do not fit otherwise") {
    ModelShape shape = wide_shape();
    shape.n_ctx = 20000;
    Fixture fixture("f16", shape);
    FitRequest request;
    request.session.chunk = 64;
    request.n_ctx = 20000;
    request.max_bytes = total(fixture, "gear-2", 20000, 64);
    CHECK(fit(fixture, request).choice.spec == "gear-2");
    request.max_bytes -= 1;
    Fit found = fit(fixture, request);
    CHECK(found.fits);
    CHECK(found.choice.spec == "gear-1");
    CHECK(found.choice.n_ctx == 20000);
    request.max_bytes = total(fixture, "gear-1", 20000, 64) - 1;
    CHECK_FALSE(fit(fixture, request).fits);
    request.n_ctx = 0;  // gear-1 would hold them all
    request.max_bytes += 1;
    found = fit(fixture, request);
    CHECK(found.choice.spec == "gear-4");
    CHECK(found.choice.n_ctx < 20000);
}

TEST_CASE("less memory takes fewer bits before it takes fewer than 4096 tokens") {
    ModelShape shape = wide_shape();
    shape.n_ctx = 100000;
    Fixture fixture("f16", shape);
    FitRequest request;
    for (const char* spec : {"gear-4", "gear-3", "gear-2", "gear-1"}) {
        request.max_bytes = total(fixture, spec, 4096);
        const Fit found = fit(fixture, request);
        CHECK(found.fits);
        CHECK(found.choice.spec == spec);
        CHECK(found.choice.n_ctx == 4096);
    }
    request.max_bytes -= 1;
    const Fit found = fit(fixture, request);
    CHECK(found.choice.spec == "gear-1");
    CHECK(found.choice.n_ctx < 4096);
}

TEST_CASE("what is asked for is kept to, or it is said what would fit") {
    ModelShape shape = wide_shape();
    shape.n_ctx = 20000;
    Fixture fixture("f16", shape);
    FitRequest request;
    request.session.chunk = 64;
    request.spec = "gear-3";
    request.n_ctx = 9000;
    request.max_bytes = total(fixture, "gear-3", 9000, 64);
    Fit found = fit(fixture, request);
    CHECK(found.fits);
    CHECK(found.choice.n_ctx == 9000);
    request.max_bytes = total(fixture, "gear-3", 5000, 64);
    found = fit(fixture, request);
    CHECK_FALSE(found.fits);
    CHECK(found.reason.find("gear-3 with 9000 tokens does not fit") == 0);
    CHECK(found.reason.find("gear-3 with 4864 tokens would") != std::string::npos);
    request.spec.clear();
    request.n_ctx = 20000;
    found = fit(fixture, request);
    CHECK_FALSE(found.fits);
    CHECK(found.reason.find("no SPEC with 20000 tokens fits") == 0);
    request.n_ctx = 0;
    request.max_bytes = 1000;
    found = fit(fixture, request);
    CHECK_FALSE(found.fits);
    CHECK(found.reason.find("nothing fits 0.0 MiB: the weights take") == 0);
    CHECK(found.choice.bytes.total() > 1000);
    request.spec = "gear-5";
    Fit none;
    CHECK(fit_session(*fixture.model, request, serial_executor(), &none).code() == Code::bad_spec);
    CHECK(fit_session(*fixture.model, request, serial_executor(), nullptr).code() == Code::invalid_argument);
}

TEST_CASE("auto:BITS fits what its even share takes, and holds it") {
    Fixture fixture("auto:4", wide_shape());
    FitRequest request;
    request.spec = "auto:4";
    request.max_bytes = total(fixture, "auto:4", 800, 128);
    request.session.chunk = 128;
    const Fit found = fit(fixture, request);
    CHECK(found.fits);
    CHECK(found.choice.n_ctx == 800);
    // In a long context, where what it takes to choose does not weigh.
    CHECK(total(fixture, "auto:4", 20000) < total(fixture, "f16", 20000) / 2);
    CHECK(total(fixture, "auto:2.5", 20000) < total(fixture, "auto:4", 20000));
    fixture.config.chunk = 128;
    fixture.config.max_cache_bytes = request.max_bytes - found.choice.bytes.weights;
    const auto session = fixture.session();
    const auto tokens = some_tokens(800);
    CHECK(session->prefill(tokens.data(), tokens.size()).ok());
}

TEST_CASE("smaller chunks of the prompt are taken where nothing else fits") {
    Fixture fixture("f16", wide_shape());
    FitRequest request;
    request.max_bytes = total(fixture, "gear-1", 256, 64);
    const Fit found = fit(fixture, request);
    CHECK(found.fits);
    CHECK(found.choice.chunk == 64);
}
