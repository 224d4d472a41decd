// The trellis kernels at every level: the search against the reference to the last bit, the products against
// sums in double.
#include <algorithm>
#include <array>
#include <iterator>

#include "format/trellis.hpp"
#include "inputs.hpp"

namespace gearkv::test {
namespace {

constexpr std::size_t n_entries = section_tokens * lane_tile;

// ---- search ----

struct Encoded {
    std::vector<std::uint8_t> codes;
    std::vector<std::int8_t> chosen;
};

struct Table {
    const char* name;
    std::uint32_t width;
    std::vector<std::int8_t> levels;  // empty: uniform
};

std::vector<Table> all_tables() {
    std::vector<Table> tables;
    const auto add = [&](const char* name, std::uint32_t width, const std::int8_t* levels) {
        tables.push_back({name, width, {levels, levels + (2u << width)}});
    };
    for (std::uint32_t width = 1; width <= max_value_width; ++width) {
        add("keys", width, trellis_levels(TensorKind::key, width));
        add("values", width, trellis_levels(TensorKind::value, width));
    }
    for (std::uint32_t width = 2; width <= max_key_width; ++width) {
        tables.push_back({"uniform", width, {}});
        // Neighbours close together, and levels that are equal.
        std::vector<std::int8_t> close(2u << width), equal(2u << width);
        for (std::size_t i = 0; i < close.size(); ++i) {
            close[i] = static_cast<std::int8_t>(static_cast<int>(i) - 40);
            equal[i] = static_cast<std::int8_t>(static_cast<int>(i / 12) * 20 - 60);
        }
        tables.push_back({"close", width, close});
        tables.push_back({"equal", width, equal});
    }
    return tables;
}

Encoded encode(const Kernels& kernels, const Table& table, const std::vector<float>& x, Place place) {
    GuardedArray<float> entries(x, place);
    GuardedArray<std::int8_t> levels(table.levels, place);
    GuardedArray<std::uint8_t> codes(n_entries, place);
    GuardedArray<std::int8_t> chosen(n_entries, place);
    GuardedArray<unsigned char> scratch(encode_scratch_bytes, Place::at_end);
    kernels.codec.encode_trellis({entries.data(), table.levels.empty() ? nullptr : levels.data(), table.width,
                                  codes.data(), chosen.data(), scratch.data()});
    CHECK(codes.is_intact());
    CHECK(chosen.is_intact());
    CHECK(scratch.is_intact());
    return {{codes.data(), codes.data() + n_entries}, {chosen.data(), chosen.data() + n_entries}};
}

void check_search(const Table& table, const std::vector<float>& x, const char* input) {
    const Encoded want = encode(*kernels_scalar(), table, x, Place::at_end);
    for (const Kernels* kernels : all_kernels()) {
        for (Place place : all_places) {
            const Encoded got = encode(*kernels, table, x, place);
            CAPTURE(level_name(kernels->level), place_name(place), table.name, table.width, input);
            CHECK(first_difference(got.codes.data(), want.codes.data(), n_entries) == n_entries);
            CHECK(first_difference(got.chosen.data(), want.chosen.data(), n_entries) == n_entries);
        }
    }
}

template <class Entry>
void check_search_all(const char* input, const Entry& entry) {
    for (const Table& table : all_tables()) {
        Random random(table.width);
        std::vector<float> x(n_entries);
        for (float& value : x)
            value = entry(random, table);
        check_search(table, x, input);
    }
}

int table_level(const Table& table, std::uint32_t i) {
    return table.levels.empty() ? trellis_level(TensorKind::key, 6, i) >> (6 - table.width) : table.levels[i];
}

TEST_CASE("the trellis search finds the codes of the reference") {
    check_search_all("within the levels",
                     [](Random& random, const Table&) { return 130.0f * random.real(); });
    check_search_all("a normal distribution", [](Random& random, const Table&) {
        float sum = 0.0f;
        for (int i = 0; i < 6; ++i)
            sum += random.real();
        return 40.0f * sum;
    });
    check_search_all("far beyond the levels", [](Random& random, const Table&) {
        return std::ldexp(random.real(), static_cast<int>(random.below(18)));
    });
    check_search_all("tiny", [](Random& random, const Table&) {
        return std::ldexp(random.real(), -static_cast<int>(random.below(149)));
    });
}

TEST_CASE("the trellis search breaks ties as the reference does") {
    check_search_all("zero", [](Random&, const Table&) { return 0.0f; });
    check_search_all("one number", [](Random&, const Table&) { return 17.5f; });
    check_search_all("small integers and halves", [](Random& random, const Table&) {
        return static_cast<float>(random.below(520)) * 0.5f - 130.0f;
    });
    check_search_all("multiples of 8", [](Random& random, const Table&) {
        return static_cast<float>(random.below(40)) * 8.0f - 160.0f;
    });
    // Where two squares agree after rounding though one level is nearer.
    check_search_all("beside midpoints and cells", [](Random& random, const Table& table) {
        const std::uint32_t n = 2u << table.width;
        const std::uint32_t apart = std::min(4u, n - 1), i = random.below(n - apart);
        float x = 0.5f * static_cast<float>(table_level(table, i) + table_level(table, i + apart));
        if (random.below(3) == 0) x = static_cast<float>(random.below(17)) * 16.0f - 128.0f;
        const float to = random.below(2) == 0 ? 1e9f : -1e9f;
        for (std::uint32_t step = random.below(40); step > 0; --step)
            x = std::nextafter(x, to);
        return x;
    });
}

TEST_CASE("the trellis search takes huge entries as the reference does") {
    check_search_all("huge", [](Random& random, const Table&) {
        return std::ldexp(random.real(), static_cast<int>(random.below(60)));
    });
    check_search_all("largest",
                     [](Random& random, const Table&) { return random.below(2) == 0 ? 1e18f : -1e18f; });
    check_search_all("one huge entry", [](Random& random, const Table&) {
        return random.below(2000) == 0 ? 1e12f : 100.0f * random.real();
    });
    // On both sides of where the fast search ends.
    check_search_all("near 2^18", [](Random& random, const Table&) {
        const float x = 0x1p18f + 300.0f * random.real();
        return random.below(2) == 0 ? x : -x;
    });
    check_search_all("at most 2^18", [](Random& random, const Table&) {
        const float x = 0x1p18f - 300.0f * std::fabs(random.real());
        return random.below(2) == 0 ? x : -x;
    });
}

// ---- products ----

struct SectionCase {
    TensorKind kind;
    std::vector<std::uint8_t> widths;
    std::uint32_t n_rows;
    Pattern pattern;
};

std::vector<SectionCase> section_cases(TensorKind kind) {
    const std::uint32_t most = kind == TensorKind::key ? max_key_width : max_value_width;
    std::vector<SectionCase> cases;
    for (std::uint32_t n_rows = 1; n_rows <= max_rows; ++n_rows) {
        for (std::uint8_t width = 0; width <= most; ++width) {
            cases.push_back({kind, {width}, n_rows, Pattern::random});
            cases.push_back({kind, std::vector<std::uint8_t>(9, width), n_rows, Pattern::wide});
        }
        Random random(n_rows);
        for (std::size_t n : {2, 7, 32, 33, 65}) {
            std::vector<std::uint8_t> widths(n);
            for (std::uint8_t& width : widths) {
                width = static_cast<std::uint8_t>(random.below(most + 1));
            }
            cases.push_back({kind, widths, n_rows, n % 2 == 0 ? Pattern::random : Pattern::wide});
        }
        cases.push_back({kind, {}, n_rows, Pattern::random});
    }
    return cases;
}

std::vector<std::uint32_t> make_planes(const SectionCase& shape) {
    std::size_t n_planes = 0;
    for (std::uint8_t width : shape.widths)
        n_planes += width;
    std::vector<std::uint32_t> words(n_planes * plane_words(shape.kind));
    Random random(shape.widths.size() + shape.n_rows);
    for (std::uint32_t& word : words)
        word = static_cast<std::uint32_t>(random.bits());
    return words;
}

// [token][channel], from the layout as format/trellis.hpp tells it.
std::vector<int> section_levels(const SectionCase& shape, const std::vector<std::uint32_t>& words) {
    const bool is_key = shape.kind == TensorKind::key;
    const std::size_t granule = granule_channels(shape.kind), n_channels = shape.widths.size() * granule;
    std::vector<int> levels(section_tokens * n_channels);
    std::size_t first_plane = 0;
    for (std::size_t c = 0; c < n_channels; ++c) {
        const std::size_t in_granule = c % granule;
        if (c > 0 && in_granule == 0) first_plane += shape.widths[c / granule - 1];
        const std::uint32_t width = shape.widths[c / granule];
        const auto bit = [&](std::size_t plane, std::size_t t) {
            const std::uint32_t* at = words.data() + (first_plane + plane) * plane_words(shape.kind);
            return is_key ? at[t / 8] >> (8 * in_granule + t % 8) & 1
                          : at[t / 32 * 16 + in_granule] >> (t % 32) & 1;
        };
        for (std::size_t t = 0; t < section_tokens && width > 0; ++t) {
            std::uint32_t index = t >= 1 ? bit(0, t - 1) : 0;
            index |= (bit(0, t) ^ (t >= 2 ? bit(0, t - 2) : 0)) << 1;
            for (std::uint32_t i = 1; i < width; ++i)
                index |= bit(i, t) << (i + 1);
            levels[t * n_channels + c] = trellis_level(shape.kind, width, index);
        }
    }
    return levels;
}

// Factors are folded before they meet the levels, which takes roundings of its own: each term is counted once
// more.
void add_term(ExactSum& sum, float factor, int level) {
    const double term = static_cast<double>(factor) * level;
    sum.add(term);
    sum.magnitude += std::fabs(term);
    ++sum.n_terms;
}
// Folded factors are 2^-24 of the factors and meet numbers of up to 2^31: what they lose below the normal
// floats.
constexpr double lost_below = 0x1p-117;

bool accepts(const ExactSum& sum, float value, double rounding) {
    const double error = std::fabs(static_cast<double>(value) - sum.sum);
    return error <= sum.tolerance() + rounding + lost_below * static_cast<double>(sum.n_terms);
}

void check_score(const Kernels& kernels, const SectionCase& shape, Place place) {
    const std::vector<std::uint32_t> planes = make_planes(shape);
    const std::vector<int> levels = section_levels(shape, planes);
    const std::size_t n_channels = shape.widths.size() * key_granule;
    const std::size_t query_stride = n_channels + shape.n_rows % 3,
                      score_stride = section_tokens + shape.n_rows % 3;
    GuardedArray<std::uint32_t> words(planes, place);
    GuardedArray<std::uint8_t> widths(shape.widths, place);
    GuardedArray<float> query(make_floats((shape.n_rows - 1) * query_stride + n_channels, shape.pattern, 3),
                              place);
    const std::vector<float> before =
        make_floats((shape.n_rows - 1) * score_stride + section_tokens, Pattern::random, 4);
    GuardedArray<float> scores(before, place);
    kernels.attention.score_trellis({words.data(), widths.data(),
                                     static_cast<std::uint32_t>(shape.widths.size()), query.data(),
                                     query_stride, scores.data(), score_stride, shape.n_rows});
    std::size_t n_wrong = 0;
    for (std::size_t i = 0; i < before.size(); ++i) {
        const std::size_t row = i / score_stride, t = i % score_stride;
        ExactSum sum;
        FactorRounding rounding;
        const auto add = [&](float factor, int level) {
            add_term(sum, factor, level);
            rounding.add(static_cast<double>(factor), level);
        };
        sum.add(static_cast<double>(before[i]));
        for (std::size_t c = 0; c < n_channels && t < section_tokens; ++c)
            add(query[row * query_stride + c], levels[t * n_channels + c]);
        if (t >= section_tokens ? scores[i] != before[i] : !accepts(sum, scores[i], rounding.most(kernels)))
            ++n_wrong;
    }
    if (n_wrong == 0 && scores.is_intact()) return;
    CAPTURE(level_name(kernels.level), place_name(place), shape.widths, shape.n_rows);
    CHECK(n_wrong == 0);
    CHECK(scores.is_intact());
}

// Of values, and of keys that are values too, whose sums are padded to 16 channels.
void check_mix(const Kernels& kernels, const SectionCase& shape, Place place) {
    const std::vector<std::uint32_t> planes = make_planes(shape);
    const std::vector<int> levels = section_levels(shape, planes);
    const bool is_key = shape.kind == TensorKind::key;
    const std::size_t n_held = shape.widths.size() * granule_channels(shape.kind);
    const std::size_t n_channels = round_up(n_held, lane_tile);
    const std::size_t weight_stride = section_tokens + shape.n_rows % 3,
                      out_stride = n_channels + shape.n_rows % 3;
    GuardedArray<std::uint32_t> words(planes, place);
    GuardedArray<std::uint8_t> widths(shape.widths, place);
    GuardedArray<float> weight(
        make_floats((shape.n_rows - 1) * weight_stride + section_tokens, shape.pattern, 3), place);
    const std::vector<float> before =
        make_floats((shape.n_rows - 1) * out_stride + n_channels, Pattern::random, 4);
    GuardedArray<float> out(before, place);
    const auto mix = is_key ? kernels.attention.mix_keys : kernels.attention.mix_trellis;
    mix({words.data(), widths.data(), static_cast<std::uint32_t>(shape.widths.size()), weight.data(),
         weight_stride, out.data(), out_stride, shape.n_rows});
    std::size_t n_wrong = 0;
    for (std::size_t i = 0; i < before.size(); ++i) {
        const std::size_t row = i / out_stride, c = i % out_stride;
        ExactSum sum;
        FactorRounding rounding;
        for (std::size_t t = 0; t < section_tokens && c < n_channels; ++t) {
            const int level = c < n_held ? levels[t * n_held + c] : 0;
            add_term(sum, weight[row * weight_stride + t], level);
            rounding.add(static_cast<double>(weight[row * weight_stride + t]), level);
        }
        if (c >= n_channels ? out[i] != before[i] : !accepts(sum, out[i], rounding.most(kernels))) ++n_wrong;
    }
    if (n_wrong == 0 && out.is_intact()) return;
    CAPTURE(level_name(kernels.level), place_name(place), shape.widths, shape.n_rows);
    CHECK(n_wrong == 0);
    CHECK(out.is_intact());
}

TEST_CASE("scores of a trellis section are sums of query and level") {
    for (const SectionCase& shape : section_cases(TensorKind::key)) {
        for (const Kernels* kernels : all_kernels()) {
            for (Place place : all_places)
                check_score(*kernels, shape, place);
        }
    }
}

TEST_CASE("mixing a trellis section sums weight and level") {
    for (const SectionCase& shape : section_cases(TensorKind::value)) {
        for (const Kernels* kernels : all_kernels()) {
            for (Place place : all_places)
                check_mix(*kernels, shape, place);
        }
    }
}

TEST_CASE("mixing a trellis section of keys sums weight and level") {
    for (const SectionCase& shape : section_cases(TensorKind::key)) {
        for (const Kernels* kernels : all_kernels()) {
            for (Place place : all_places)
                check_mix(*kernels, shape, place);
        }
    }
}

TEST_CASE("slices of a trellis section without a weight may be left out, whichever they are") {
    for (const Kernels* kernels : all_kernels()) {
        for (std::uint32_t n_rows = 1; n_rows <= max_rows; ++n_rows) {
            const SectionCase shape = {TensorKind::value, {4, 2, 0, 3}, n_rows, Pattern::random};
            const std::vector<std::uint32_t> planes = make_planes(shape);
            GuardedArray<std::uint32_t> words(planes, Place::at_end);
            const std::vector<float> weight = make_floats(n_rows * section_tokens, shape.pattern, 3);
            const std::size_t n_out = n_rows * shape.widths.size() * value_granule;
            std::uint32_t n_wrong = 0;
            for (std::uint32_t slices = 0; slices <= all_slices; ++slices) {
                std::vector<float> some = weight;
                for (std::size_t i = 0; i < some.size(); ++i) {
                    if ((slices >> i % section_tokens / slice_tokens & 1) == 0) some[i] = 0.0f;
                }
                GuardedArray<float> given(some, Place::at_end);
                const auto mix = [&](std::uint32_t taken) {
                    GuardedArray<float> out(n_out, Place::at_end);
                    MixTrellis args = {words.data(),
                                       shape.widths.data(),
                                       static_cast<std::uint32_t>(shape.widths.size()),
                                       given.data(),
                                       section_tokens,
                                       out.data(),
                                       shape.widths.size() * value_granule,
                                       n_rows};
                    args.slices = taken;
                    kernels->attention.mix_trellis(args);
                    CHECK(out.is_intact());
                    return std::vector<float>(out.data(), out.data() + n_out);
                };
                n_wrong += mix(slices) != mix(all_slices);
            }
            CAPTURE(level_name(kernels->level), n_rows);
            CHECK(n_wrong == 0);
        }
    }
}

TEST_CASE("slices with a weight that counts are found as the reference finds them") {
    Random random(5);
    for (int i = 0; i < 500; ++i) {
        std::vector<float> weight(tile_tokens);
        for (float& x : weight)
            x = std::ldexp(1.0f, -static_cast<int>(random.below(12)));
        // Also a limit that is met, one that none meets, and one below all.
        const float least = std::ldexp(i % 2 == 0 ? 1.0f : 0.9f, 1 - static_cast<int>(random.below(14)));
        GuardedArray<float> given(weight, Place::at_end);
        const std::uint32_t want = kernels_scalar()->attention.find_slices(given.data(), least);
        for (const Kernels* kernels : all_kernels()) {
            CAPTURE(level_name(kernels->level), least);
            CHECK(kernels->attention.find_slices(given.data(), least) == want);
        }
    }
}

TEST_CASE("a factor of one and zeros beside it gives the levels themselves") {
    for (const Kernels* kernels : all_kernels()) {
        const std::uint32_t granules = 6;
        const SectionCase shape = {TensorKind::key, {1, 2, 3, 4, 5, 6}, 1, Pattern::random};
        const std::vector<std::uint32_t> planes = make_planes(shape);
        const std::vector<int> levels = section_levels(shape, planes);
        for (std::size_t c = 0; c < granules * key_granule; ++c) {
            std::vector<float> query(granules * key_granule), scores(section_tokens);
            query[c] = 1.0f;
            kernels->attention.score_trellis({planes.data(), shape.widths.data(), granules, query.data(),
                                              query.size(), scores.data(), section_tokens, 1});
            double worst = 0.0;
            for (std::size_t t = 0; t < section_tokens; ++t) {
                const double level = levels[t * granules * key_granule + c];
                worst = std::max(worst, std::fabs(static_cast<double>(scores[t]) - level));
            }
            CAPTURE(level_name(kernels->level), c);
            CHECK(worst <= 0x1p-15);
        }
    }
}

// ---- sides ----

std::vector<std::uint8_t> random_bytes(std::size_t n, std::uint64_t seed) {
    Random random(seed);
    std::vector<std::uint8_t> bytes(n);
    for (std::uint8_t& byte : bytes)
        byte = static_cast<std::uint8_t>(random.bits());
    return bytes;
}

// In and beyond the range of normal floats.
const int all_bases[] = {-160, 0, -255, -2100, -1900, 1700, 2100, -32768, 32767};

TEST_CASE("sides of key sections are folded as by the reference, at every length") {
    for (std::uint32_t dim = 8; dim <= 144; dim += 8) {
        for (const int base : all_bases) {
            const std::uint32_t n_rows = dim / 8 % max_rows + 1;
            const std::size_t padded = round_to(dim, 16), stride = padded + dim % 3;
            const std::vector<std::uint8_t> scale_bytes = random_bytes(padded, dim),
                                            zero_bytes = random_bytes(padded, dim + 1);
            std::vector<std::uint8_t> width_nibbles = random_bytes(padded, dim + 2);
            for (std::uint8_t& byte : width_nibbles)
                byte = static_cast<std::uint8_t>((byte & 15) % 7 | (byte >> 4) % 7 << 4);
            std::vector<float> rows = make_floats((n_rows - 1) * stride + padded, Pattern::random, dim);
            for (std::size_t i = 0; i < rows.size(); ++i) {
                if (i % stride >= dim) rows[i] = 0.0f;
            }
            for (const Kernels* kernels : all_kernels()) {
                for (const Place place : all_places) {
                    GuardedArray<std::uint8_t> scales(scale_bytes, place), widths(width_nibbles, place);
                    GuardedArray<std::int8_t> zeros(
                        std::vector<std::int8_t>(zero_bytes.begin(), zero_bytes.end()), place);
                    GuardedArray<float> query(rows, place), folded(rows.size(), place), bias(n_rows, place);
                    std::fill_n(bias.data(), n_rows, 0.5f);
                    kernels->attention.fold_keys({scales.data(), zeros.data(), widths.data(), base, dim,
                                                  query.data(), folded.data(), stride, bias.data(), n_rows});
                    std::size_t n_wrong = folded.is_intact() && bias.is_intact() ? 0 : 1;
                    for (std::size_t row = 0; row < n_rows; ++row) {
                        ExactSum sum;
                        sum.add(0.5);
                        for (std::uint32_t c = 0; c < dim; ++c) {
                            const std::size_t at = row * stride + c;
                            const float want = rows[at] * exp2_sixteenths(base + scale_bytes[c]);
                            if (folded[at] != want) ++n_wrong;
                            const float zero = static_cast<float>(static_cast<std::int8_t>(zero_bytes[c])) *
                                               zero_unit(read_nibble(width_nibbles.data(), c / key_granule));
                            sum.add(static_cast<double>(want) * static_cast<double>(zero));
                        }
                        if (sum.magnitude < 1e37 && !sum.accepts(bias[row])) ++n_wrong;
                    }
                    CAPTURE(level_name(kernels->level), place_name(place), dim, base, n_rows);
                    CHECK(n_wrong == 0);
                }
            }
        }
    }
}

// Sections as they lie in a block, behind which 16 bytes may be read.
TEST_CASE("scores of key sections are estimated as by the reference, at every length") {
    for (std::uint32_t dim = 8; dim <= 144; dim += 8) {
        for (const int base : all_bases) {
            const std::uint32_t n_rows = dim / 8 % max_rows + 1, n_sections = dim / 8 % 11;
            const std::size_t stride = round_to(dim, 16) + dim % 3, out_stride = n_sections + dim % 5;
            const SectionLayout at = section_layout(TensorKind::key, dim);
            std::vector<std::uint8_t> bytes = random_bytes(n_sections * at.n_bytes + 16, dim);
            for (std::size_t i = 0; i < n_sections; ++i) {
                std::uint8_t* side = bytes.data() + i * at.n_bytes;
                const auto own_base = static_cast<std::int16_t>(base);
                std::memcpy(side + at.base, &own_base, sizeof(own_base));
                for (std::size_t j = at.widths; j < at.n_bytes; ++j)
                    side[j] = static_cast<std::uint8_t>((side[j] & 15) % 7 | (side[j] >> 4) % 7 << 4);
            }
            std::vector<float> rows =
                make_floats((n_rows - 1) * stride + round_to(dim, 16), Pattern::random, dim);
            for (std::size_t i = 0; i < rows.size(); ++i) {
                if (i % stride >= dim) rows[i] = 0.0f;
            }
            for (const Kernels* kernels : all_kernels()) {
                for (const Place place : all_places) {
                    GuardedArray<std::uint8_t> sections(bytes, place);
                    GuardedArray<float> query(rows, place), mean(n_rows * out_stride + 1, place),
                        spread(n_rows * out_stride + 1, place);
                    std::fill_n(mean.data(), n_rows * out_stride + 1, 0.5f);
                    std::fill_n(spread.data(), n_rows * out_stride + 1, 0.25f);
                    kernels->attention.estimate_keys({sections.data(), at.n_bytes, n_sections, dim,
                                                      query.data(), stride, mean.data(), spread.data(),
                                                      out_stride, n_rows});
                    std::size_t n_wrong = mean.is_intact() && spread.is_intact() ? 0 : 1;
                    for (std::size_t j = 0; j < n_rows * out_stride + 1; ++j) {
                        const std::size_t row = j / std::max<std::size_t>(out_stride, 1),
                                          i = j % std::max<std::size_t>(out_stride, 1);
                        if (row >= n_rows || i >= n_sections) {
                            n_wrong += mean[j] != 0.5f || spread[j] != 0.25f;
                            continue;
                        }
                        const std::uint8_t* side = bytes.data() + i * at.n_bytes;
                        ExactSum sum, squares;
                        sum.add(0.5);
                        squares.add(0.25);
                        for (std::uint32_t c = 0; c < dim; ++c) {
                            const float folded =
                                rows[row * stride + c] * exp2_sixteenths(base + side[at.scales + c]);
                            const std::uint32_t width = read_nibble(side + at.widths, c / key_granule);
                            const float zero =
                                static_cast<float>(static_cast<std::int8_t>(side[at.zeros + c])) *
                                zero_unit(width);
                            sum.add(static_cast<double>(folded) * static_cast<double>(zero));
                            squares.add(std::pow(
                                static_cast<double>(folded) * static_cast<double>(key_spread(width)), 2));
                            squares.add(0.0);  // its factors are rounded
                            squares.add(0.0);  // a term is rounded once more
                        }
                        // Squares of the smallest are lost below the normal floats.
                        squares.magnitude += 1e-30;
                        if (squares.magnitude < 1e37 && !squares.accepts(spread[j])) ++n_wrong;
                        if (sum.magnitude < 1e37 && !sum.accepts(mean[j])) ++n_wrong;
                    }
                    CAPTURE(level_name(kernels->level), place_name(place), dim, base, n_rows);
                    CHECK(n_wrong == 0);
                }
            }
        }
    }
}

TEST_CASE("gains and scales of value sections are applied as by the reference") {
    for (std::uint32_t n_rows = 1; n_rows <= max_rows; ++n_rows) {
        const std::size_t stride = section_tokens + n_rows % 3;
        const std::vector<std::uint8_t> nibbles = random_bytes(section_tokens / 2, n_rows);
        const std::vector<float> rows =
            make_floats((n_rows - 1) * stride + section_tokens, Pattern::wide, n_rows);
        // Both sums, and origins at the ends of their range.
        const bool sums_scaled = n_rows % 2 == 0;
        const int origin =
            std::array{least_gain_origin, first_gain_origin, -13, most_gain_origin}[n_rows / 2 % 4];
        const std::vector<float> table(gains_of(origin), gains_of(origin) + 16);
        for (const Kernels* kernels : all_kernels()) {
            for (const Place place : all_places) {
                GuardedArray<std::uint8_t> gains(nibbles, place);
                GuardedArray<float> gain_of(table, place), weight(rows, place), scaled(rows.size(), place),
                    sum(n_rows, place);
                std::fill_n(sum.data(), n_rows, 0.25f);
                kernels->attention.fold_weights({gains.data(), gain_of.data(), sums_scaled, weight.data(),
                                                 scaled.data(), stride, sum.data(), n_rows});
                std::size_t n_wrong = scaled.is_intact() && sum.is_intact() ? 0 : 1;
                for (std::size_t row = 0; row < n_rows; ++row) {
                    ExactSum want;
                    want.add(0.25);
                    for (std::uint32_t t = 0; t < section_tokens; ++t) {
                        const std::size_t at = row * stride + t;
                        const float by = rows[at] * gain_of[read_nibble(nibbles.data(), t)];
                        if (scaled[at] != by) ++n_wrong;
                        want.add(static_cast<double>(sums_scaled ? by : rows[at]));
                    }
                    if (!want.accepts(sum[row])) ++n_wrong;
                }
                CAPTURE(level_name(kernels->level), place_name(place), n_rows);
                CHECK(n_wrong == 0);
            }
        }
        for (std::uint32_t dim = 8; dim <= 80; dim += 8) {
            const int base = all_bases[dim / 8 % std::size(all_bases)];
            const std::size_t padded = round_to(dim, 16), row_stride = padded + dim % 3;
            const std::vector<std::uint8_t> scale_bytes = random_bytes(padded, dim);
            const std::vector<float> x = make_floats((n_rows - 1) * row_stride + padded, Pattern::random, 1),
                                     before = make_floats(x.size(), Pattern::random, 2);
            for (const Kernels* kernels : all_kernels()) {
                for (const Place place : all_places) {
                    GuardedArray<std::uint8_t> scales(scale_bytes, place);
                    GuardedArray<float> from(x, place), out(before, place);
                    kernels->attention.add_scaled(
                        {scales.data(), base, dim, from.data(), out.data(), row_stride, n_rows});
                    std::size_t n_wrong = out.is_intact() ? 0 : 1;
                    for (std::size_t i = 0; i < x.size(); ++i) {
                        if (i % row_stride >= padded && out[i] != before[i]) ++n_wrong;
                        if (i % row_stride >= dim) continue;
                        ExactSum want;
                        want.add(static_cast<double>(before[i]));
                        const float scale = exp2_sixteenths(base + scale_bytes[i % row_stride]);
                        want.add(static_cast<double>(scale) * static_cast<double>(x[i]));
                        if (want.magnitude < 1e38 && !want.accepts(out[i])) ++n_wrong;
                    }
                    CAPTURE(level_name(kernels->level), place_name(place), dim, base, n_rows);
                    CHECK(n_wrong == 0);
                }
            }
        }
    }
}

}  // namespace
}  // namespace gearkv::test
