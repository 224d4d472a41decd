// The decoder's own arithmetic, whatever mode the threads are in.
#include "support/float_modes.hpp"

#include "sessions.hpp"

using namespace gearkv;
using namespace gearkv::test;
using gearkv::testing::float_ways;
using gearkv::testing::FloatWay;
using gearkv::testing::InFloatWay;

namespace {

// Every kind of arithmetic there is: both gates, norms of heads, soft caps, scales, RoPE with factors.
ModelShape shape_of(const std::string& family, std::uint32_t matrix_type) {
    ModelShape shape;
    shape.family = family;
    shape.n_embd = 64;
    shape.n_layers = 2;
    shape.head_dim = shape.rope_dim = 16;
    shape.n_ff = 96;
    shape.n_ctx = 128;
    shape.matrix_type = matrix_type;
    if (family == "gemma2") {
        shape.attention_cap = 20.0f;
        shape.logit_cap = 15.0f;
        shape.window = 32;
    }
    if (family == "llama") shape.rope_factors = true;
    if (family == "granite") {
        shape.attention_scale = 0.3f;
        shape.embedding_scale = 3.1f;
        shape.residual_scale = 0.7f;
        shape.logit_scale = 1.3f;
    }
    return shape;
}

// Tokens and logits of a life: load, a prompt of vectors that go together, single tokens, a rollback, a
// fork, a saved sampler's draws.
std::vector<float> live(Fixture& fixture, unsigned n_threads) {
    fixture.load();
    std::unique_ptr<Executor> executor;
    REQUIRE(create_threads_executor(n_threads, &executor).ok());
    std::unique_ptr<Session> session;
    REQUIRE(Session::create(fixture.model, fixture.config, *executor, &session).ok());
    const std::size_t n_vocab = fixture.model->params().n_vocab;
    const auto prompt = some_tokens(80);
    REQUIRE(session->prefill(prompt.data(), prompt.size()).ok());
    std::vector<float> all = copy_logits(*session, n_vocab);
    SamplerConfig sampling;
    sampling.temperature = 0.9f;
    sampling.top_p = 0.9f;
    sampling.typical_p = 0.95f;
    sampling.repeat_penalty = 1.2f;
    sampling.frequency_penalty = 0.3f;
    sampling.min_p = 0.001f;
    std::unique_ptr<Sampler> sampler;
    REQUIRE(Sampler::create(sampling, &sampler).ok());
    for (int i = 0; i < 6; i++) {
        Token token;
        REQUIRE(sampler->sample(session->logits(), n_vocab, &token).ok());
        REQUIRE(sampler->accept(&token, 1).ok());
        REQUIRE(session->decode(token).ok());
        all.push_back(static_cast<float>(token));
    }
    REQUIRE(session->truncate(82).ok());
    const auto other = fork(*session);
    for (Session* one : {session.get(), other.get()}) {
        const std::vector<float> more = decode_all(one, {5, 77}, n_vocab);
        all.insert(all.end(), more.begin(), more.end());
    }
    return all;
}

}  // namespace

TEST_CASE("rounding and denormals of no thread change a bit of the decoder, and stay as they were") {
    struct Case {
        const char* family;
        std::uint32_t matrix_type;
        bool float_products;
    };
    for (const Case& one : {Case{"llama", gguf_f32, false}, Case{"gemma2", gguf_q8_0, false},
                            Case{"granite", gguf_f16, false}, Case{"qwen3", gguf_q8_0, true}}) {
        Fixture fixture("kivi-4", shape_of(one.family, one.matrix_type));
        fixture.config.float_products = one.float_products;
        const std::vector<float> expected = live(fixture, 1);
        for (const FloatWay& way : float_ways()) {
            CAPTURE(one.family, way.rounding, way.flushes);
            std::vector<float> found;
            bool kept;
            {
                const InFloatWay here(way);
                // Threads are born in the mode of this one.
                found = live(fixture, way.flushes ? 2 : 1);
                kept = here.kept();
            }
            CHECK((found == expected));
            CHECK(kept);
        }
    }
}
