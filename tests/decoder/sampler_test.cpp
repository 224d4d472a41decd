// Sampling from logits.
#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "gearkv/decoder.hpp"
#include "support/catch.hpp"

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
    CHECK(Sampler::create({}, nullptr).code() == Code::invalid_argument);
}
