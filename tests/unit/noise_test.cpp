// The noise of attention's arithmetic beside the error of the codecs it reads.
#include <cmath>

#include "caches.hpp"

using namespace gearkv;
using namespace gearkv::testing;

namespace {

struct Family {
    const char* name;
    Tensor keys, values;
};

template <class Change>
Tensor changed(Tensor x, const Change& change) {
    for (std::size_t t = 0; t < x.n_tokens; ++t) {
        for (std::size_t h = 0; h < x.n_heads; ++h) {
            for (std::size_t c = 0; c < x.dim; ++c)
                x.at(t, h, c) = change(x.at(t, h, c), t, c);
        }
    }
    return x;
}

std::vector<Family> families(std::size_t n, std::size_t n_heads, std::size_t dim) {
    const Tensor k = gaussian(n, n_heads, dim, 1), v = gaussian(n, n_heads, dim, 2);
    return {
        {"gaussian", k, v},
        {"structured", structured(n, n_heads, dim, 3), structured(n, n_heads, dim, 4)},
        {"outlier channels",
         changed(k, [](double x, std::size_t, std::size_t c) { return c % 32 == 7 ? 10 * x : x; }), v},
        {"key bias", changed(k, [](double x, std::size_t, std::size_t c) { return c % 16 == 3 ? x + 8 : x; }),
         v},
        {"sinks",
         changed(k, [](double x, std::size_t t, std::size_t c) { return t < 4 && c < 8 ? x + 6 : x; }),
         changed(v, [](double x, std::size_t t, std::size_t) { return t < 4 ? x / 20 : x; })},
        {"heavy values", k, changed(v, [](double x, std::size_t, std::size_t) { return x * x * x; })},
    };
}

void check_noise(const std::vector<const char*>& specs, std::size_t n, std::size_t dim) {
    constexpr std::size_t n_heads = 2;
    const Tensor q = gaussian(4, 2 * n_heads, dim, 5);
    const double scale = 1.0 / std::sqrt(static_cast<double>(dim));
    for (const Family& family : families(n, n_heads, dim)) {
        const Tensor exact = reference::attend(q, family.keys, family.values, scale, true);
        for (const char* spec : specs) {
            auto cache = make_cache(
                make_config(spec, n_heads, static_cast<std::uint32_t>(dim), static_cast<std::uint32_t>(dim)));
            REQUIRE(append(cache.get(), family.keys, family.values, 0, n).ok());
            REQUIRE(cache->compress(0, serial_executor()).ok());
            const auto [k, v] = read_all(cache.get());
            const Tensor coded = reference::attend(q, k, v, scale, true);
            const double error = reference::relative_error(exact, coded);
            const double noise = reference::relative_error(coded, attend(cache.get(), q, dim, true));
            CAPTURE(spec, family.name, dim, error, noise);
            CHECK(error > 0.0);
            CHECK(noise < error / 10);
        }
    }
}

}  // namespace

TEST_CASE("the noise of attention is less than a tenth of the codec's error", "[noise]") {
    check_noise({"gear-2", "gear-4", "paper:gear-3", "kivi-4", "q8"}, 260, 64);
}

TEST_CASE("so it is for every preset, in long contexts and large heads", "[noise][slow]") {
    for (const std::size_t dim : {64u, 128u}) {
        check_noise(
            {"gear-2", "gear-3", "gear-4", "paper:gear-2", "paper:gear-3", "paper:gear-4", "paper:gearl-2",
             "paper:gearl-4", "kivi-2", "kivi-4", "kcvt-4", "token-4", "gear-8", "q8"},
            516, dim);
    }
}
