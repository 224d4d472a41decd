#include "attention/select.hpp"

#include <algorithm>
#include <cmath>

#include "attention/rules.hpp"
#include "format/trellis.hpp"

namespace gearkv {
namespace {

struct Room {
    std::uint64_t stride;  // tiles padded to 16
    float* mass;           // [max_rows][stride] estimates, then weights
    float* share;          // [stride] of all rows together
    std::uint32_t* order;  // [stride] sections that may be left out
};

Room place_room(void* memory, std::uint64_t n_tiles) {
    Room room;
    room.stride = round_up(n_tiles, 16);
    room.mass = static_cast<float*>(memory);
    room.share = room.mass + max_rows * room.stride;
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

// The logarithm of what the tokens of a section weigh for a row, from that of a token's mean weight. Rules
// enter with the most they leave: an estimate errs towards reading.
float section_mass(const RowGroup& rows, std::uint32_t row, float score, const Shown& shown) {
    const std::uint64_t first = std::max(rows.first[row], shown.start),
                        end = std::min(rows.visible[row], shown.start + shown.n);
    if (first >= end) return minus_infinity;
    score = std::min(score, 0x1p101f);  // squares may be beyond floats where sums of the scores are not
    if (rows.soft_cap > 0.0f) score = rows.soft_cap * std::tanh(score / rows.soft_cap);
    if (const float slope = rows.slope[row]; slope != 0.0f)
        score -= slope * static_cast<float>(rows.visible[row] - 1 - (slope > 0.0f ? end - 1 : first));
    std::uint64_t n = end - first;
    if (const float* mask = rows.mask[row]; mask != nullptr) {
        score += *std::max_element(mask + first, mask + end);
        n -= static_cast<std::uint64_t>(std::count(mask + first, mask + end, minus_infinity));
        if (n == 0) return minus_infinity;
    }
    constexpr float whole = 4.85203026f;  // log of section_tokens
    return score + (n == section_tokens ? whole : std::log(static_cast<float>(n)));
}

// What is known of the rows: the largest score, and the sum of weights beside it.
struct Known {
    float max[max_rows], sum[max_rows];
};

// Scores of rows that are attended in any case.
void add_scores(const RowPass& pass, const RowGroup& rows, const RowLift* lift, const KvRun& run,
                std::uint64_t start, Known* known) {
    KeyScorer scorer(pass, run.key);
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
bool is_trellis(const KvRun& run) {
    return run.key.block.header != nullptr && run.key.block.trellis();
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

// Estimates of all sections that a row sees, by tile, and -Inf elsewhere; these sections are listed. Returns
// how many they are; *n_others gets the other tiles.
std::uint32_t estimate_sections(const RowPass& pass, const RowGroup& rows, const RowLift* lift,
                                const KvRun* runs, std::size_t n_runs, float scale, const Room& room,
                                Known* known, std::uint32_t* n_others) {
    set_queries(pass, rows, lift, scale, {}, false);
    std::int64_t shift = 0;
    std::uint64_t start = 0;
    std::uint32_t tile = 0, n_listed = 0;
    for (std::size_t i = 0; i < n_runs; ++i) {
        const KvRun& run = runs[i];
        const std::uint32_t n_tiles = tiles_of(run);
        for (std::uint32_t row = 0; row < pass.n_rows; ++row)
            std::fill_n(room.mass + row * room.stride + tile, n_tiles, minus_infinity);
        if (!is_trellis(run)) {
            if (is_short(run, i, n_runs)) {
                if (shift != 0) set_queries(pass, rows, lift, scale, {}, false);
                shift = 0;
                add_scores(pass, rows, lift, run, start, known);
            }
            *n_others += n_tiles;
        } else {
            if (run.shift != shift) set_queries(pass, rows, lift, scale, run.turn, false);
            shift = run.shift;
            const KeyScorer scorer(pass, run.key);
            for (std::uint32_t t = 0; t < n_tiles; ++t) {
                const Shown shown = shown_of(run, start, tile_at(run, t));
                const auto sees = [&](std::uint32_t row) {
                    return rows.first[row] < shown.start + shown.n && rows.visible[row] > shown.start;
                };
                bool is_seen = false;
                for (std::uint32_t row = 0; row < pass.n_rows; ++row)
                    is_seen |= sees(row);
                if (shown.n == 0 || !is_seen) continue;
                float estimates[max_rows];
                scorer.estimate(t, estimates);
                for (std::uint32_t row = 0; row < pass.n_rows; ++row) {
                    room.mass[row * room.stride + tile + t] = section_mass(rows, row, estimates[row], shown);
                }
                room.order[n_listed++] = tile + t;
            }
        }
        start += run.n_tokens - run.n_hidden;
        tile += n_tiles;
    }
    for (std::uint32_t row = 0; row < pass.n_rows; ++row)
        std::fill_n(room.mass + row * room.stride + tile, room.stride - tile, minus_infinity);
    return n_listed;
}

}  // namespace

std::uint64_t select_scratch_bytes(std::uint64_t n_tiles) noexcept {
    return round_up((max_rows + 2) * round_up(n_tiles, 16) * sizeof(float), block_alignment);
}

SelectResult select_tiles(const RowPass& pass, const RowGroup& rows, const KvRun* runs, std::size_t n_runs,
                          float scale, const SelectRule& rule, void* memory, std::uint64_t* chosen) noexcept {
    const std::uint64_t n_tiles = choose_all(chosen, runs, n_runs);
    if (std::none_of(runs, runs + n_runs, is_trellis)) return {};
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
        estimate_sections(pass, rows, lift, runs, n_runs, scale, room, &known, &n_others);
    if (n_listed == 0) return {};
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
    // The last one first, then by what they have.
    std::swap(room.order[0], room.order[n_listed - 1]);
    std::sort(room.order + 1, room.order + n_listed, [&](std::uint32_t a, std::uint32_t b) {
        return room.share[a] != room.share[b] ? room.share[a] > room.share[b] : a < b;
    });
    const auto n_most = static_cast<std::uint32_t>(
        std::ceil(static_cast<double>(rule.most_share) * static_cast<double>(n_listed)));
    float least = 0.0f;
    std::uint32_t n_taken = 0;
    while (n_taken < n_listed) {
        const std::uint32_t tile = room.order[n_taken++];
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
