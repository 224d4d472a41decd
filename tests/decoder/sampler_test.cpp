// Sampling from logits.
#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "decoder/network/model.hpp"
#include "gearkv/decoder.hpp"
#include "support/catch.hpp"
#include "support/count_memory.hpp"
#include "support/model_maker.hpp"

using namespace gearkv;

namespace {

std::unique_ptr<Sampler> make_sampler(const SamplerConfig& config) {
    std::unique_ptr<Sampler> sampler;
    const Status status = Sampler::create(config, &sampler);
    INFO(status.message());
    REQUIRE(status.ok());
    return sampler;
}

SamplerConfig warm(float temperature = 1.0f, std::uint64_t seed = 1) {
    SamplerConfig config;
    config.temperature = temperature;
    config.seed = seed;
    return config;
}

Token sample(Sampler& sampler, const std::vector<float>& logits) {
    Token token = -1;
    const Status status = sampler.sample(logits.data(), logits.size(), &token);
    INFO(status.message());
    REQUIRE(status.ok());
    return token;
}

// How often each token is drawn.
std::vector<int> count_draws(const SamplerConfig& config, const std::vector<float>& logits, int n_draws) {
    const auto sampler = make_sampler(config);
    std::vector<int> counts(logits.size());
    for (int i = 0; i < n_draws; i++) {
        counts[static_cast<std::size_t>(sample(*sampler, logits))]++;
    }
    return counts;
}

// Tokens of probability .5, .25, .125, .0625, .0625, in another order.
const std::vector<float> halves = {std::log(0.0625f), std::log(0.5f), std::log(0.125f), std::log(0.25f),
                                   std::log(0.0625f)};

}  // namespace

TEST_CASE("greedy takes the largest logit and the lowest token among equals") {
    const auto sampler = make_sampler({});
    CHECK(sample(*sampler, {1, 3, 2}) == 1);
    CHECK(sample(*sampler, {1, 3, 3}) == 1);
    CHECK(sample(*sampler, {-INFINITY, -INFINITY, -5}) == 2);
    CHECK(sample(*sampler, {1, INFINITY, 3}) == 1);
    CHECK(sample(*sampler, {7}) == 0);
}

TEST_CASE("at temperature 1 tokens come as often as their probability says") {
    const int n = 40000;
    const std::vector<int> counts = count_draws(warm(), halves, n);
    const double probabilities[] = {0.0625, 0.5, 0.125, 0.25, 0.0625};
    for (std::size_t i = 0; i < 5; i++) {
        const double deviation = std::sqrt(n * probabilities[i] * (1 - probabilities[i]));
        CHECK(std::fabs(counts[i] - n * probabilities[i]) < 4 * deviation);
    }
}

TEST_CASE("temperature flattens and sharpens") {
    const int n = 20000;
    // p^(1/T): with T = 2 the odds of .5 to .125 become 2, with T = 0.5 they become 16.
    const std::vector<int> flat = count_draws(warm(2.0f), halves, n);
    CHECK(static_cast<double>(flat[1]) / flat[2] == Approx(2.0).epsilon(0.1));
    const std::vector<int> sharp = count_draws(warm(0.5f), halves, n);
    CHECK(static_cast<double>(sharp[1]) / sharp[2] == Approx(16.0).epsilon(0.15));
    CHECK(count_draws(warm(1e-30f), halves, 100)[1] == 100);
}

TEST_CASE("top_k keeps the k best, the lower tokens among equals") {
    SamplerConfig config = warm();
    config.top_k = 4;
    const std::vector<int> counts = count_draws(config, halves, 4000);
    CHECK(counts[4] == 0);
    for (std::size_t i = 0; i < 4; i++) {
        CHECK(counts[i] > 0);
    }
    config.top_k = 1;
    CHECK(count_draws(config, halves, 100)[1] == 100);
    config.top_k = 100;
    CHECK(count_draws(config, halves, 4000)[4] > 0);
}

TEST_CASE("top_p keeps the fewest tokens that reach p") {
    SamplerConfig config = warm();
    config.top_p = 0.7f;
    const std::vector<int> counts = count_draws(config, halves, 4000);
    CHECK(counts[1] > 0);
    CHECK(counts[3] > 0);
    CHECK(counts[0] + counts[2] + counts[4] == 0);
    config.top_p = 1e-6f;
    CHECK(count_draws(config, halves, 100)[1] == 100);
}

TEST_CASE("top_p counts the probability that top_k left") {
    SamplerConfig config = warm();
    config.top_k = 2;  // leaves .5 and .25, which are 2/3 and 1/3
    config.top_p = 0.6f;
    CHECK(count_draws(config, halves, 200)[1] == 200);
    config.top_p = 0.7f;
    CHECK(count_draws(config, halves, 2000)[3] > 0);
}

TEST_CASE("min_p keeps what is at least a fraction of the best") {
    SamplerConfig config = warm();
    config.min_p = 0.2f;
    const std::vector<int> counts = count_draws(config, halves, 4000);
    CHECK(counts[2] > 0);
    CHECK(counts[0] + counts[4] == 0);
}

TEST_CASE("filters look at probabilities before temperature") {
    SamplerConfig config = warm(100.0f);
    config.min_p = 0.4f;
    const std::vector<int> counts = count_draws(config, halves, 4000);
    CHECK(counts[0] + counts[2] + counts[4] == 0);
    CHECK(static_cast<double>(counts[1]) / counts[3] == Approx(1.0).epsilon(0.15));
}

TEST_CASE("equal seeds draw equal tokens, whose list is part of the interface") {
    std::vector<float> logits(1000);
    for (std::size_t i = 0; i < logits.size(); i++) {
        logits[i] = static_cast<float>(static_cast<int>(i * 7919 % 1000)) / 150.0f;
    }
    SamplerConfig filtered = warm(0.8f, 42);
    filtered.top_k = 50;
    filtered.top_p = 0.9f;
    filtered.min_p = 0.01f;
    for (const SamplerConfig& config : {warm(0.8f, 42), filtered}) {
        const auto first = make_sampler(config);
        const auto second = make_sampler(config);
        SamplerConfig other = config;
        other.seed = 43;
        const auto third = make_sampler(other);
        int n_different = 0;
        for (int i = 0; i < 200; i++) {
            const Token token = sample(*first, logits);
            REQUIRE(token == sample(*second, logits));
            n_different += token != sample(*third, logits) ? 1 : 0;
        }
        CHECK(n_different > 100);
    }
    std::vector<Token> drawn;
    const auto sampler = make_sampler(filtered);
    for (int i = 0; i < 8; i++) {
        drawn.push_back(sample(*sampler, logits));
    }
    CHECK(drawn == std::vector<Token>{272, 247, 531, 494, 642, 519, 889, 235});
}

TEST_CASE("logits that are no numbers are refused and the draw is not lost") {
    const auto sampler = make_sampler(warm(1.0f, 5));
    const auto untouched = make_sampler(warm(1.0f, 5));
    Token token = 77;
    const float with_nan[] = {1.0f, NAN, 2.0f};
    const float all_low[] = {-INFINITY, -INFINITY};
    CHECK(sampler->sample(with_nan, 3, &token).code() == Code::non_finite);
    CHECK(sampler->sample(all_low, 2, &token).code() == Code::non_finite);
    CHECK(sampler->sample(nullptr, 3, &token).code() == Code::invalid_argument);
    CHECK(sampler->sample(with_nan, 0, &token).code() == Code::invalid_argument);
    CHECK(sampler->sample(halves.data(), halves.size(), nullptr).code() == Code::invalid_argument);
    CHECK(token == 77);
    for (int i = 0; i < 20; i++) {
        CHECK(sample(*sampler, halves) == sample(*untouched, halves));
    }
    CHECK(sample(*sampler, {1.0f, INFINITY, 3.0f}) == 1);
    CHECK(sample(*sampler, {-INFINITY, 3.0f, -INFINITY}) == 1);
}

TEST_CASE("a banned token is never drawn, and a ban of all is an error that draws nothing") {
    SamplerConfig config = warm(1.0f, 3);
    config.logit_bias = {{1, -INFINITY}, {3, -INFINITY}};
    const std::vector<int> counts = count_draws(config, halves, 2000);
    CHECK(counts[1] + counts[3] == 0);
    CHECK(counts[2] > counts[0]);
    const auto sampler = make_sampler(config);
    CHECK(sample(*sampler, {-60, INFINITY, 3, INFINITY}) == 2);
    Token token = 77;
    const float only[] = {-INFINITY, 5.0f, -INFINITY, 5.0f};
    CHECK(sampler->sample(only, 4, &token).code() == Code::non_finite);
    const Status status = sampler->sample(only, 3, &token);
    CHECK(status.code() == Code::invalid_argument);
    CHECK(std::string(status.message()).find("logit_bias") == 0);
    CHECK(token == 77);
    config.logit_bias = {{2, 100.0f}};
    config.temperature = 0.0f;
    CHECK(sample(*make_sampler(config), halves) == 2);
}

TEST_CASE("penalties leave finite logits finite, however large they are") {
    SamplerConfig config;
    config.repeat_penalty = 3e38f;
    config.frequency_penalty = 3e38f;
    config.dry_multiplier = 3e38f;
    const auto sampler = make_sampler(config);
    for (int i = 0; i < 100; i++) {
        REQUIRE(sampler->accept(i % 2).ok());
    }
    CHECK(sample(*sampler, {-3e38f, -3e38f}) == 0);
    CHECK(sample(*sampler, {1.0f, 1.0f, -3e38f}) == 2);
    CHECK(sample(*sampler, {INFINITY, 1.0f, 5.0f}) == 0);
}

TEST_CASE("only the last tokens count, and tokens beyond the vocabulary do not matter") {
    SamplerConfig config;
    config.presence_penalty = 10.0f;
    config.penalty_last_n = 2;
    const auto sampler = make_sampler(config);
    const std::vector<float> logits = {3, 2, 1};
    const Token prompt[] = {0, 1, 0, 2000000000, 1};
    REQUIRE(sampler->accept(prompt, 5).ok());
    CHECK(sample(*sampler, logits) == 0);
    REQUIRE(sampler->accept(0).ok());
    CHECK(sample(*sampler, logits) == 2);
    sampler->forget();
    CHECK(sample(*sampler, logits) == 0);
    const Token wrong[] = {0, -1};
    CHECK(sampler->accept(wrong, 2).code() == Code::bad_token);
    CHECK(sampler->accept(nullptr, 2).code() == Code::invalid_argument);
    CHECK(sampler->accept(nullptr, 0).ok());
    CHECK(sample(*sampler, logits) == 0);
}

TEST_CASE("a breaker keeps a repetition from reaching across it") {
    SamplerConfig config;
    config.dry_multiplier = 5.0f;
    const std::vector<Token> history = {1, 2, 3, 4, 1, 2, 3};  // 4 would make three tokens four
    const std::vector<float> logits = {0, 0, 0, 0, 4};
    auto sampler = make_sampler(config);
    REQUIRE(sampler->accept(history.data(), history.size()).ok());
    CHECK(sample(*sampler, logits) == 0);
    for (const Token breaker : {2, 3, 4}) {
        config.dry_breakers = {breaker};
        sampler = make_sampler(config);
        REQUIRE(sampler->accept(history.data(), history.size()).ok());
        CHECK(sample(*sampler, logits) == 4);
    }
    config.dry_breakers = {1};
    sampler = make_sampler(config);
    REQUIRE(sampler->accept(history.data(), history.size()).ok());
    CHECK(sample(*sampler, logits) == 0);
}

TEST_CASE("a vocabulary of one token and one of equal logits are sampled with any filter") {
    for (int field = 0; field < 6; field++) {
        SamplerConfig config = warm(1.0f, 11);
        if (field == 0) config.top_k = 1;
        if (field == 1) config.top_p = 1e-7f;
        if (field == 2) config.min_p = 0.999f;
        if (field == 3) config.typical_p = 1e-7f;
        if (field == 4) config.top_n_sigma = 1e-7f;
        if (field == 5) config.xtc_probability = 1.0f, config.xtc_threshold = 0.0f;
        CAPTURE(field);
        CHECK(sample(*make_sampler(config), {-3.0f}) == 0);
        CHECK(sample(*make_sampler(config), {-INFINITY, -1e30f, -INFINITY}) == 1);
        CHECK(sample(*make_sampler(config), {INFINITY, 0.0f, -INFINITY}) == (field == 5 ? 1 : 0));
        const Token token = sample(*make_sampler(config), std::vector<float>(7, 2.0f));
        if (field == 0 || field == 1 || field == 3) CHECK(token == 0);
        if (field == 5) CHECK(token == 6);
    }
}

TEST_CASE("a restored sampler goes on exactly as the saved one") {
    SamplerConfig config = warm(1.3f, 6);
    config.repeat_penalty = 1.2f;
    config.frequency_penalty = 0.1f;
    config.penalty_last_n = 20;
    config.dry_multiplier = 0.8f;
    config.dry_last_n = 50;
    config.xtc_probability = 0.5f;
    const std::vector<float> logits(40, 0.5f);
    for (const int n_before : {0, 1, 30, 200}) {
        const auto sampler = make_sampler(config);
        for (int i = 0; i < n_before; i++) {
            REQUIRE(sampler->accept(sample(*sampler, logits)).ok());
        }
        std::vector<unsigned char> state;
        REQUIRE(sampler->save(&state).ok());
        CHECK(state.size() <= 28 + 4 * 50);
        SamplerConfig other_seed = config;
        other_seed.seed = 99;
        const auto restored = make_sampler(other_seed);
        REQUIRE(restored->accept(7).ok());
        REQUIRE(restored->restore(state.data(), state.size()).ok());
        for (int i = 0; i < 100; i++) {
            const Token token = sample(*sampler, logits);
            REQUIRE(sample(*restored, logits) == token);
            REQUIRE(sampler->accept(token).ok());
            REQUIRE(restored->accept(token).ok());
        }
        std::vector<unsigned char> one, other;
        REQUIRE(sampler->save(&one).ok());
        REQUIRE(restored->save(&other).ok());
        CHECK(one == other);
    }
}

TEST_CASE("the bytes of a saved sampler are these on every machine, and others are refused") {
    SamplerConfig config;
    config.presence_penalty = 1.0f;
    config.seed = 0x0102030405060708u;
    const auto sampler = make_sampler(config);
    REQUIRE(sampler->accept(258).ok());
    std::vector<unsigned char> state;
    REQUIRE(sampler->save(&state).ok());
    const std::vector<unsigned char> expected = {'G', 'K', 'V', 'D', 'R', 'A', 'W', '\n', 1, 0, 0,
                                                 0,   8,   7,   6,   5,   4,   3,   2,    1, 1, 0,
                                                 0,   0,   0,   0,   0,   0,   2,   1,    0, 0};
    CHECK(state == expected);
    const auto code = [&](const std::vector<unsigned char>& bytes) {
        return sampler->restore(bytes.data(), bytes.size()).code();
    };
    for (std::size_t n = 0; n < state.size(); n++) {
        CHECK(code({state.begin(), state.begin() + static_cast<std::ptrdiff_t>(n)}) != Code::ok);
    }
    auto changed = state;
    changed[0] = 'X';
    CHECK(code(changed) == Code::not_a_state);
    changed = state;
    changed[8] = 2;
    CHECK(code(changed) == Code::bad_version);
    changed = state;
    changed.push_back(0);
    CHECK(code(changed) == Code::corrupt_state);
    changed = state;
    changed[27] = 0x40;  // 2^62 tokens
    CHECK(code(changed) == Code::truncated);
    changed = state;
    changed[31] = 0x80;
    CHECK(code(changed) == Code::corrupt_state);
    CHECK(sampler->restore(nullptr, 0).code() == Code::truncated);
    CHECK(sampler->save(nullptr).code() == Code::invalid_argument);
    std::vector<unsigned char> after;
    REQUIRE(sampler->save(&after).ok());
    CHECK(after == state);
}

TEST_CASE("sampling allocates only for more logits or tokens than before") {
    SamplerConfig config = warm();
    config.repeat_penalty = 1.1f;
    config.typical_p = 0.9f;
    config.top_p = 0.9f;
    const auto sampler = make_sampler(config);
    std::vector<float> logits(500, 1.0f);
    for (Token token = 0; token < 70; token++) {
        REQUIRE(sampler->accept(token).ok());
    }
    sample(*sampler, logits);
    const long before = test::count_allocations();
    for (Token token = 0; token < 300; token++) {
        Token drawn;
        REQUIRE(sampler->accept(token).ok());
        REQUIRE(sampler->sample(logits.data(), logits.size(), &drawn).ok());
    }
    CHECK(test::count_allocations() == before);
}

TEST_CASE("impossible settings are refused by name") {
    std::unique_ptr<Sampler> sampler;
    const auto refused = [&](const SamplerConfig& config, const char* field) {
        const Status status = Sampler::create(config, &sampler);
        return status.code() == Code::invalid_argument && std::string(status.message()).find(field) == 0 &&
               sampler == nullptr;
    };
    for (const float value : {-1.0f, NAN, INFINITY}) {
        SamplerConfig config;
        config.temperature = value;
        CHECK(refused(config, "temperature"));
    }
    for (const float value : {0.0f, -0.5f, 1.5f, NAN}) {
        SamplerConfig config;
        config.top_p = value;
        CHECK(refused(config, "top_p"));
    }
    for (const float value : {1.0f, -0.5f, NAN}) {
        SamplerConfig config;
        config.min_p = value;
        CHECK(refused(config, "min_p"));
    }
    const auto refuses = [&](float SamplerConfig::*field, const char* name, std::vector<float> values) {
        for (const float value : values) {
            CAPTURE(name, value);
            SamplerConfig config;
            config.*field = value;
            CHECK(refused(config, name));
        }
    };
    refuses(&SamplerConfig::repeat_penalty, "repeat_penalty", {0.0f, -1.0f, NAN, INFINITY});
    refuses(&SamplerConfig::frequency_penalty, "frequency_penalty", {NAN, INFINITY, -INFINITY});
    refuses(&SamplerConfig::presence_penalty, "presence_penalty", {NAN, INFINITY, -INFINITY});
    refuses(&SamplerConfig::dry_multiplier, "dry_multiplier", {-1.0f, NAN, INFINITY});
    refuses(&SamplerConfig::dry_base, "dry_base", {0.5f, NAN, INFINITY});
    refuses(&SamplerConfig::top_n_sigma, "top_n_sigma", {-1.0f, NAN, INFINITY});
    refuses(&SamplerConfig::typical_p, "typical_p", {0.0f, 1.5f, NAN});
    refuses(&SamplerConfig::xtc_probability, "xtc_probability", {-0.1f, 1.1f, NAN});
    refuses(&SamplerConfig::xtc_threshold, "xtc_threshold", {-0.1f, 0.6f, NAN});
    SamplerConfig config;
    config.dry_allowed_length = 0;
    CHECK(refused(config, "dry_allowed_length"));
    config = {};
    config.dry_breakers = {-1};
    CHECK(refused(config, "dry_breakers"));
    for (const LogitBias bias : {LogitBias{-1, 0.0f}, LogitBias{0, NAN}, LogitBias{0, INFINITY}}) {
        config = {};
        config.logit_bias = {bias};
        CHECK(refused(config, "logit_bias"));
    }
    CHECK(Sampler::create({}, nullptr).code() == Code::invalid_argument);
}

TEST_CASE("a file's suppressed tokens are told, and refused when they are none") {
    test::ModelMaker maker({});
    test::Bytes bytes;
    const auto load = [&](std::shared_ptr<const FileModel>* model) {
        bytes = maker.file.write();
        return FileModel::load_bytes(bytes.data(), bytes.size(), model);
    };
    std::shared_ptr<const FileModel> model;
    REQUIRE(load(&model).ok());
    CHECK(model->tokenizer().suppressed().empty());
    maker.file.set_array("tokenizer.ggml.suppress_tokens", std::vector<std::int32_t>{7, 3});
    REQUIRE(load(&model).ok());
    CHECK(model->tokenizer().suppressed() == std::vector<Token>{7, 3});
    for (const std::int32_t bad : {-1, 100000}) {
        maker.file.set_array("tokenizer.ggml.suppress_tokens", std::vector<std::int32_t>{7, bad});
        CHECK(load(&model).code() == Code::bad_tokenizer);
    }
    maker.file.set_array("tokenizer.ggml.suppress_tokens", std::vector<std::int32_t>(1000, 1));
    CHECK(load(&model).code() == Code::bad_tokenizer);
    maker.file.set("tokenizer.ggml.suppress_tokens", std::uint32_t{4});
    CHECK(load(&model).code() == Code::bad_tokenizer);
}
