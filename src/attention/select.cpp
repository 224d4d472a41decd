#include "attention/select.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "attention/rules.hpp"
#include "format/trellis.hpp"

namespace gearkv {
namespace {

struct Room {
    std::uint64_t stride;  // tiles padded to 16
    float* mass;           // [max_rows][stride] mean scores, then estimates, then weights
    float* spread;         // [max_rows][stride] half the variance of the scores
    float* share;          // [stride] of all rows together
    std::uint32_t* order;  // [stride] sections that may be left out
};

Room place_room(void* memory, std::uint64_t n_tiles) {
    Room room;
    room.stride = round_up(n_tiles, 16);
    room.mass = static_cast<float*>(memory);
    room.spread = room.mass + max_rows * room.stride;
    room.share = room.spread + max_rows * room.stride;
    room.order = reinterpret_cast<std::uint32_t*>(room.share + room.stride);
    return room;
}

// Tokens of a tile that are part of the sequence: n from `start` on, which is their place in it.
struct Shown {
    std::uint64_t start;
    std::uint32_t n_hidden, n;
};
Shown shown_of(const KvRun& run, std::uint64_t run_start, const Tile& tile) {
    const std::uint32_t n_hidden = std::min(std::max(run.n_hidden, tile.first) - tile.first, tile.n_tokens);
    return {run_start + tile.first + n_hidden - run.n_hidden, n_hidden, tile.n_tokens - n_hidden};
}
Tile tile_at(const KvRun& run, std::uint32_t i) {
    const std::uint32_t first = i * tile_tokens;
    return {first, std::min(run.n_tokens - first, tile_tokens), {}, {}};
}

constexpr float log_tokens = 4.85203026f;  // of section_tokens

bool has_rules(const RowGroup& rows, std::uint32_t row) {
    return rows.soft_cap > 0.0f || rows.slope[row] != 0.0f || rows.mask[row] != nullptr;
}

// The logarithm of what the tokens of a section weigh for a row at its sharpness, from mean and half variance
// of their scores. Rules enter with the most they leave: an estimate errs towards reading.
float section_mass(const RowGroup& rows, std::uint32_t row, float mean, float spread, float sharpness,
                   const Shown& shown) {
    const bool is_whole = shown.n == section_tokens && rows.first[row] <= shown.start &&
                          rows.visible[row] >= shown.start + section_tokens;
    if (is_whole && !has_rules(rows, row)) return sharpness * (mean + sharpness * spread) + log_tokens;
    const std::uint64_t first = std::max(rows.first[row], shown.start),
                        end = std::min(rows.visible[row], shown.start + shown.n);
    if (first >= end) return minus_infinity;
    float score = mean + sharpness * spread;
    if (rows.soft_cap > 0.0f) score = rows.soft_cap * std::tanh(score / rows.soft_cap);
    if (const float slope = rows.slope[row]; slope != 0.0f)
        score -= slope * static_cast<float>(rows.visible[row] - 1 - (slope > 0.0f ? end - 1 : first));
    std::uint64_t n = end - first;
    if (const float* mask = rows.mask[row]; mask != nullptr) {
        score += *std::max_element(mask + first, mask + end);
        n -= static_cast<std::uint64_t>(std::count(mask + first, mask + end, minus_infinity));
        if (n == 0) return minus_infinity;
    }
    return sharpness * score + (n == section_tokens ? log_tokens : std::log(static_cast<float>(n)));
}

// A section whose scores spread wider than this would weigh what its one heaviest token does, and the mean of
// exp(score) tells of tokens that are not there: by it a few sections would seem to have everything.
// Estimates are then compared at the sharpness, scores times less than 1, at which the widest section still
// weighs what many tokens do: about how likely a section has the heaviest one.
float sharpness_of(float most_spread) {
    return most_spread > log_tokens ? std::sqrt(log_tokens / most_spread) : 1.0f;
}

// What is known of the rows: the largest score, and the sum of weights beside it.
struct Known {
    float max[max_rows], sum[max_rows];
};

// Scores of rows that are attended in any case.
void add_scores(const RowPass& pass, const RowGroup& rows, const RowLift* lift, const KvRun& run,
                std::uint64_t start, Known* known) {
    RunScorer scorer(pass, run);
    for (std::uint32_t i = 0; i < tiles_of(run); ++i) {
        const Tile tile = tile_at(run, i);
        scorer.score(tile);
        for (std::uint32_t row = 0; row < pass.n_rows; ++row) {
            float* scores = pass.scratch.scores + row * tile_tokens;
            rule_scores(pass, rows, row, lift[row], start + tile.first, tile.n_tokens, scores);
            (void)pass.kernels.attention.softmax_tile(pass.scratch.weights, scores, tile.n_tokens,
                                                      &known->max[row], &known->sum[row]);
        }
    }
}

// Whether the run is rows where they were appended, at either end of the sequence: sinks and the buffer.
bool is_short(const KvRun& run, std::size_t i, std::size_t n_runs) {
    return run.key.block.header == nullptr && !run.is_gap() && (i == 0 || i + 1 == n_runs) &&
           run.n_hidden == 0 && run.shift == 0;
}
// Whether what is scored has sections, whose side information tells of it.
bool is_trellis(const KvRun& run, bool latent) {
    const auto is = [](const TensorRun& tensor) {
        return tensor.block.header != nullptr && tensor.block.trellis();
    };
    return is(run.key) && (!latent || is(run.value));
}

std::uint64_t choose_all(std::uint64_t* chosen, const KvRun* runs, std::size_t n_runs) {
    const std::uint64_t n_tiles = count_tiles(runs, n_runs);
    std::fill_n(chosen, chosen_words(n_tiles), ~std::uint64_t{0});
    if (n_tiles % 64 != 0) chosen[n_tiles / 64] = (std::uint64_t{1} << n_tiles % 64) - 1;
    return n_tiles;
}
void drop(std::uint64_t* chosen, std::uint64_t tile) {
    chosen[tile / 64] &= ~(std::uint64_t{1} << tile % 64);
}
void take(std::uint64_t* chosen, std::uint64_t tile) {
    chosen[tile / 64] |= std::uint64_t{1} << tile % 64;
}

bool sees(const RowGroup& rows, std::uint32_t row, const Shown& shown) {
    return rows.first[row] < shown.start + shown.n && rows.visible[row] > shown.start;
}

// The sections of a run that some row may see: `first` and the n from there on.
struct SeenSections {
    std::uint32_t first, n;
};
SeenSections sections_seen(const KvRun& run, std::uint64_t run_start, const RowGroup& rows,
                           std::uint32_t n_rows) {
    const std::uint64_t from = *std::min_element(rows.first, rows.first + n_rows),
                        to = *std::max_element(rows.visible, rows.visible + n_rows);
    const std::uint64_t run_end = run_start + run.n_tokens - run.n_hidden;
    const std::uint64_t first = std::max(from, run_start), end = std::min(to, run_end);
    if (first >= end) return {0, 0};
    const auto tile = static_cast<std::uint32_t>((first - run_start + run.n_hidden) / tile_tokens);
    return {tile, static_cast<std::uint32_t>(ceil_div(end - run_start + run.n_hidden, tile_tokens)) - tile};
}

// Mean and spread of the scores of all sections that a row sees, by tile; these sections are listed. Returns
// how many they are; *n_others gets the other tiles.
std::uint32_t measure_sections(const RowPass& pass, const RowGroup& rows, const RowLift* lift,
                               const KvRun* runs, std::size_t n_runs, float scale, const Room& room,
                               Known* known, std::uint32_t* n_others) {
    set_queries(pass, rows, lift, scale, {}, false);
    std::int64_t shift = 0;
    std::uint64_t start = 0;
    std::uint32_t tile = 0, n_listed = 0;
    for (std::size_t i = 0; i < n_runs; ++i) {
        const KvRun& run = runs[i];
        const std::uint32_t n_tiles = tiles_of(run);
        if (!is_trellis(run, pass.dims.latent)) {
            if (is_short(run, i, n_runs)) {
                if (shift != 0) set_queries(pass, rows, lift, scale, {}, false);
                shift = 0;
                add_scores(pass, rows, lift, run, start, known);
            }
            *n_others += n_tiles;
        } else {
            if (run.shift != shift) set_queries(pass, rows, lift, scale, run.turn, false);
            shift = run.shift;
            const SeenSections seen = sections_seen(run, start, rows, pass.n_rows);
            RunScorer(pass, run).estimate(seen.first, seen.n, room.mass + tile + seen.first,
                                          room.spread + tile + seen.first, room.stride);
            for (std::uint32_t t = seen.first; t < seen.first + seen.n; ++t) {
                const Shown shown = shown_of(run, start, tile_at(run, t));
                bool is_seen = false;
                for (std::uint32_t row = 0; row < pass.n_rows; ++row) {
                    constexpr float most = 0x1p101f;  // squares may be beyond floats where sums are not
                    float& spread = room.spread[row * room.stride + tile + t];
                    const bool is_seen_by = sees(rows, row, shown);
                    spread = is_seen_by ? std::min(spread, most) : 0.0f;
                    is_seen |= is_seen_by;
                }
                if (is_seen) room.order[n_listed++] = tile + t;
            }
        }
        start += run.n_tokens - run.n_hidden;
        tile += n_tiles;
    }
    return n_listed;
}

// What was measured becomes estimates, -Inf where nothing was; what is known is put beside it.
void estimate_sections(const RowPass& pass, const RowGroup& rows, const KvRun* runs, std::size_t n_runs,
                       const Room& room, std::uint32_t n_listed, Known* known) {
    float sharpness[max_rows];
    for (std::uint32_t row = 0; row < pass.n_rows; ++row) {
        float most = 0.0f;
        for (std::uint32_t i = 0; i < n_listed; ++i)
            most = std::max(most, room.spread[row * room.stride + room.order[i]]);
        sharpness[row] = sharpness_of(most);
        if (sharpness[row] == 1.0f || known->sum[row] == 0.0f) continue;
        known->max[row] = sharpness[row] * (known->max[row] + std::log(known->sum[row]));
        known->sum[row] = 1.0f;
    }
    std::uint64_t start = 0;
    std::uint32_t tile = 0, i = 0;
    for (std::size_t at = 0; at < n_runs; ++at) {
        const KvRun& run = runs[at];
        for (std::uint32_t t = 0; t < tiles_of(run); ++t, ++tile) {
            const bool is_listed = i < n_listed && room.order[i] == tile;
            i += is_listed ? 1 : 0;
            const Shown shown = is_listed ? shown_of(run, start, tile_at(run, t)) : Shown{};
            for (std::uint32_t row = 0; row < pass.n_rows; ++row) {
                float* mass = room.mass + row * room.stride + tile;
                *mass = is_listed ? section_mass(rows, row, *mass, room.spread[row * room.stride + tile],
                                                 sharpness[row], shown)
                                  : minus_infinity;
            }
        }
        start += run.n_tokens - run.n_hidden;
    }
    for (std::uint32_t row = 0; row < pass.n_rows; ++row)
        std::fill_n(room.mass + row * room.stride + tile, room.stride - tile, minus_infinity);
}

}  // namespace

std::uint64_t select_scratch_bytes(std::uint64_t n_tiles) noexcept {
    return round_up((2 * max_rows + 2) * round_up(n_tiles, 16) * sizeof(float), block_alignment);
}

SelectResult select_tiles(const RowPass& pass, const RowGroup& rows, const KvRun* runs, std::size_t n_runs,
                          float scale, const SelectRule& rule, void* memory, std::uint64_t* chosen) noexcept {
    const std::uint64_t n_tiles = choose_all(chosen, runs, n_runs);
    const auto has_sections = [&](const KvRun& run) { return is_trellis(run, pass.dims.latent); };
    if (std::none_of(runs, runs + n_runs, has_sections)) return {};
    RowLift lift[max_rows];
    Known known;
    for (std::uint32_t row = 0; row < pass.n_rows; ++row) {
        lift[row] = lift_of_row(pass, rows, row, scale, runs, n_runs);
        if (lift[row].is_lifted) return {};
        const bool sink = rows.has_sinks && rows.sink[row] > minus_infinity;
        known.max[row] = sink ? rows.sink[row] : minus_infinity;
        known.sum[row] = sink ? 1.0f : 0.0f;
    }
    const Room room = place_room(memory, n_tiles);
    std::uint32_t n_others = 0;
    const std::uint32_t n_listed =
        measure_sections(pass, rows, lift, runs, n_runs, scale, room, &known, &n_others);
    if (n_listed == 0) return {};
    estimate_sections(pass, rows, runs, n_runs, room, n_listed, &known);
    // Shares of each row's sum, and what it has in any case.
    float inverse[max_rows], held[max_rows];
    std::fill_n(room.share, room.stride, 0.0f);
    for (std::uint32_t row = 0; row < pass.n_rows; ++row) {
        float* mass = room.mass + row * room.stride;
        (void)pass.kernels.attention.softmax_tile(mass, mass, n_tiles, &known.max[row], &known.sum[row]);
        double in_sections = 0.0;
        for (std::uint32_t i = 0; i < n_listed; ++i)
            in_sections += static_cast<double>(mass[room.order[i]]);
        const float sum = known.sum[row];
        inverse[row] = sum > 0.0f ? 1.0f / sum : 0.0f;
        held[row] = sum > 0.0f ? 1.0f - static_cast<float>(in_sections) * inverse[row] : 1.0f;
        for (std::uint64_t t = 0; t < n_tiles; ++t)
            room.share[t] += mass[t] * inverse[row];
    }
    for (std::uint32_t i = 0; i < n_listed; ++i)
        drop(chosen, room.order[i]);
    // The last one first, then by what they have: integers, in the order of what is left over to one.
    auto* by_share = reinterpret_cast<std::uint64_t*>(room.spread);
    for (std::uint32_t i = 0; i < n_listed; ++i) {
        std::uint32_t bits;
        std::memcpy(&bits, &room.share[room.order[i]], sizeof(bits));
        by_share[i] = std::uint64_t{~bits} << 32 | room.order[i];
    }
    std::swap(by_share[0], by_share[n_listed - 1]);
    std::sort(by_share + 1, by_share + n_listed);
    // In float: a tenth of 10 sections is 1, though .1f is more than a tenth.
    const auto n_most = static_cast<std::uint32_t>(std::ceil(rule.most_share * static_cast<float>(n_listed)));
    float least = 0.0f;
    std::uint32_t n_taken = 0;
    while (n_taken < n_listed) {
        const auto tile = static_cast<std::uint32_t>(by_share[n_taken++]);
        take(chosen, tile);
        least = 1.0f;
        for (std::uint32_t row = 0; row < pass.n_rows; ++row) {
            held[row] += room.mass[row * room.stride + tile] * inverse[row];
            least = std::min(least, held[row]);
        }
        if (n_taken >= n_most || (rule.mass < 1.0f && least >= rule.mass)) break;
    }
    return {static_cast<double>(n_taken + n_others) / static_cast<double>(n_listed + n_others),
            n_taken == n_listed ? 1.0 : static_cast<double>(least)};
}

SelectResult list_tiles(const RowGroup& rows, const KvRun* runs, std::size_t n_runs,
                        std::uint64_t* chosen) noexcept {
    choose_all(chosen, runs, n_runs);
    std::uint64_t start = 0, tile = 0, n_seen = 0, n_read = 0;
    for (std::size_t i = 0; i < n_runs; ++i) {
        const std::uint32_t n_tiles = tiles_of(runs[i]);
        for (std::uint32_t t = 0; t < n_tiles; ++t, ++tile) {
            const Shown shown = shown_of(runs[i], start, tile_at(runs[i], t));
            if (shown.n == 0) continue;
            ++n_seen;
            const TokenRange* at = next_range(rows, shown.start);
            if (at != rows.ranges + rows.n_ranges && at->first < shown.start + shown.n) {
                ++n_read;
            } else {
                drop(chosen, tile);
            }
        }
        start += runs[i].n_tokens - runs[i].n_hidden;
    }
    return {n_seen == 0 ? 1.0 : static_cast<double>(n_read) / static_cast<double>(n_seen), 1.0};
}

}  // namespace gearkv
