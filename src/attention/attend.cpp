#include "attention/attend.hpp"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>

#include "attention/rules.hpp"
#include "attention/select.hpp"
#include "format/trellis.hpp"

namespace gearkv {
namespace {

// Per row: the largest score so far and the sum of exp(score - largest).
struct RowState {
    float max[max_rows];
    float sum[max_rows];
    RowLift lift[max_rows];
    // With RowGroup::negligible: a score that there is, whether it was met yet or not, and the weight that
    // makes a slice worth its values as long as `max` is least_max.
    float known[max_rows];
    float least[max_rows];
    float least_max[max_rows];
};

std::uint64_t scratch_floats(const HeadDims& dims) {
    const auto of_queries = [](std::uint64_t dim) { return 3 * round_up(dim, 32) + dim; };
    const std::uint64_t per_row = of_queries(dims.key_dim) + (dims.latent ? of_queries(dims.value_dim) : 0) +
                                  3 * tile_tokens + 2 * round_up(dims.value_dim, 16) + 2 * max_rank + 1 +
                                  dims.key_dim + dims.value_dim;
    return max_rows * per_row;
}

// The slices in which the row has a weight that is worth the values.
std::uint32_t find_slices(const RowPass& pass, const RowGroup& rows, std::uint32_t row, RowState* state) {
    if (const float max = state->max[row]; state->least_max[row] != max) {
        state->least_max[row] = max;
        const float known = state->known[row];
        state->least[row] = rows.negligible * (known > max ? std::exp(known - max) : 1.0f);
    }
    return pass.kernels.attention.find_slices(pass.scratch.weights + row * tile_tokens, state->least[row]);
}

// Folds the scores of one tile into weights and state. Returns the slices whose values are worth reading; the
// weights of others become 0 in all rows.
std::uint32_t soften_tile(const RowPass& pass, const RowGroup& rows, const Tile& tile, std::uint32_t n_hidden,
                          std::uint64_t start, RowState* state, ValueMixer* mixer) {
    const AttendScratch& s = pass.scratch;
    std::uint32_t slices = rows.negligible == 0.0f ? all_slices : 0;
    for (std::uint32_t row = 0; row < pass.n_rows; ++row) {
        float* scores = s.scores + row * tile_tokens;
        float* weights = s.weights + row * tile_tokens;
        std::fill_n(scores, n_hidden, minus_infinity);
        const std::uint32_t n_shown = tile.n_tokens - n_hidden;
        const RowLift& lift = state->lift[row];
        rule_scores(pass, rows, row, lift, start, n_shown, scores + n_hidden);
        float* max = &state->max[row];
        float lowered = *max, most = 0.0f;
        if (lift.is_lifted) {
            most = lower_lifted(lift, scores, tile.n_tokens, &lowered);
            max = &lowered;
        }
        const float alpha =
            pass.kernels.attention.softmax_tile(weights, scores, tile.n_tokens, max, &state->sum[row]);
        if (lift.is_lifted) state->max[row] = most;
        std::fill(weights + tile.n_tokens, weights + tile_tokens, 0.0f);
        if (alpha != 1.0f) mixer->rescale(row, alpha);
        if (slices != all_slices) slices |= find_slices(pass, rows, row, state);
    }
    for (std::uint32_t left = slices == 0 ? 0 : all_slices & ~slices; left != 0; left &= left - 1) {
        const auto first = static_cast<std::size_t>(std::countr_zero(left)) * slice_tokens;
        for (std::uint32_t row = 0; row < pass.n_rows; ++row)
            std::fill_n(s.weights + row * tile_tokens + first, slice_tokens, 0.0f);
    }
    return slices;
}

// Before the first tile: where the heaviest tokens are as a rule, the first and the last ones, the largest
// score that a row has. Left out where they are not rows that lie where they were appended.
void look_ahead(const RowPass& pass, const RowGroup& rows, const KvRun* runs, std::size_t n_runs,
                RowState* state) {
    constexpr std::uint32_t most = 32;
    std::fill_n(state->known, pass.n_rows, minus_infinity);
    std::fill_n(state->least_max, pass.n_rows, std::numeric_limits<float>::infinity());
    std::uint64_t start = 0;
    for (std::size_t i = 0; i < n_runs; ++i) {
        const KvRun& run = runs[i];
        const std::uint64_t first = start;
        start += run.n_tokens - run.n_hidden;
        if (i > 0 && i + 1 < n_runs) continue;
        if (run.key.block.header != nullptr || run.is_gap() || run.n_hidden > 0 || run.shift != 0) continue;
        if (pass.dims.latent && run.value.block.header != nullptr) continue;
        const std::uint32_t n = std::min(run.n_tokens, most);
        RunScorer(pass, run).score({run.n_tokens - n, n, {}, {}});
        for (std::uint32_t row = 0; row < pass.n_rows; ++row) {
            if (state->lift[row].is_lifted) continue;
            float* scores = pass.scratch.scores + row * tile_tokens;
            rule_scores(pass, rows, row, state->lift[row], first + run.n_tokens - n, n, scores);
            state->known[row] = std::max(state->known[row], *std::max_element(scores, scores + n));
        }
    }
}

// What the tile at token `first` of a run reads most of.
Ahead tile_bytes(const TensorRun& run, std::uint32_t dim, std::uint32_t n_tokens, std::uint32_t head,
                 std::uint32_t first) {
    const BlockView& block = run.block;
    const std::uint32_t n = std::min(n_tokens - first, tile_tokens);
    if (block.header == nullptr) {
        const std::size_t entry_bytes = run.is_float ? sizeof(float) : sizeof(std::uint16_t);
        const std::size_t at = head * run.head_stride + first * run.row_stride;
        const auto* bytes = static_cast<const unsigned char*>(run.rows) + at * entry_bytes;
        return {bytes, dim * entry_bytes, run.row_stride * entry_bytes, n};
    }
    if (block.trellis()) {
        const std::uint32_t index = first / section_tokens;
        const unsigned char* side = block.section(head, index);
        for (std::uint32_t at = 0; at < block.sizes.section_bytes; at += 64)
            __builtin_prefetch(side + at, 0, 2);
        const std::size_t n_words = std::size_t{block.n_planes(head)} * plane_words(block.kind());
        return {block.section_codes(head, index), n_words * sizeof(std::uint32_t)};
    }
    // Code words of whole tiles of tokens follow each other, for keys and for values.
    const std::uint64_t tile_words = block.sizes.code_words * tile_tokens / block.header->n_tokens;
    const std::uint64_t at = tile_words * (first / tile_tokens);
    return {
        block.codes(head) + at,
        static_cast<std::size_t>(std::min(tile_words, block.sizes.code_words - at)) * sizeof(std::uint32_t)};
}

// Of the tiles of a run those to attend: of [first, end) the chosen ones.
struct RunTiles {
    const std::uint64_t* chosen;
    std::uint64_t start;  // number of the run's first tile among those of all runs
    std::uint32_t first, end;

    bool is_chosen(std::uint32_t i) const { return gearkv::is_chosen(chosen, start + i); }
    // The next chosen one of n, or n.
    std::uint32_t after(std::uint32_t i, std::uint32_t n) const {
        do
            ++i;
        while (i < n && !is_chosen(i));
        return i;
    }
    bool any(std::uint32_t i, std::uint32_t n) const { return i < n && (is_chosen(i) || after(i, n) < n); }
};

// A tile of another run, or of none.
struct NextTile {
    const KvRun* run = nullptr;
    std::uint32_t tile = 0;
};
// The first that is attended of some runs, of which `tile` is the first.
NextTile find_next(const RowGroup& rows, const KvRun* runs, const KvRun* end, std::uint64_t tile) {
    for (; runs < end; ++runs) {
        const std::uint32_t n_tiles = tiles_of(*runs);
        const RunTiles tiles = {rows.chosen, tile, 0, n_tiles};
        if (!tiles.any(0, n_tiles)) {
            tile += n_tiles;
            continue;
        }
        return {runs, tiles.is_chosen(0) ? 0 : tiles.after(0, n_tiles)};
    }
    return {};
}

// Attends some tiles of a run, at least one of them chosen; `next` comes after it. Tiles that no row sees are
// left out.
void attend_run(const RowPass& pass, const RowGroup& rows, const KvRun& run, const NextTile& next,
                std::uint64_t run_start, const RunTiles& tiles, RowState* state) {
    const std::uint64_t first_seen = *std::min_element(rows.first, rows.first + pass.n_rows),
                        end_seen = *std::max_element(rows.visible, rows.visible + pass.n_rows);
    if (run_start + run.n_tokens - run.n_hidden <= first_seen || run_start >= end_seen) return;
    RunScorer scorer(pass, run);
    ValueMixer mixer(pass, run.value);
    bool is_asked_for = true;  // the values of the next tile, if it is not the first
    for (std::uint32_t i = 0; i < tiles.end; ++i) {
        const std::uint32_t first = i * tile_tokens;
        Tile tile = {first, std::min(run.n_tokens - first, tile_tokens), {}, {}};
        // Tokens of the tile that are hidden, and the place of the first that is not.
        const std::uint32_t n_hidden = std::min(std::max(run.n_hidden, first) - first, tile.n_tokens);
        const std::uint64_t start = run_start + first + n_hidden - run.n_hidden;
        const std::uint32_t n_shown = tile.n_tokens - n_hidden;
        if (n_shown > 0 && start >= end_seen) break;
        if (i < tiles.first || n_shown == 0 || start + n_shown <= first_seen || !tiles.is_chosen(i)) {
            scorer.skip(tile);
            mixer.skip(tile);
            continue;
        }
        const std::uint32_t n_tiles = tiles_of(run), following = tiles.after(i, n_tiles);
        const bool is_last = following == n_tiles;
        if (const KvRun* after = is_last ? next.run : &run; after != nullptr) {
            const std::uint32_t then = (is_last ? next.tile : following) * tile_tokens;
            tile.key = tile_bytes(after->key, pass.dims.key_dim, after->n_tokens, pass.head, then);
            tile.value = tile_bytes(after->value, pass.dims.value_dim, after->n_tokens, pass.head, then);
        }
        if (!is_asked_for)
            tile.also = tile_bytes(run.value, pass.dims.value_dim, run.n_tokens, pass.head, first);
        scorer.score(tile);
        if (pass.dims.latent) tile.value = {};
        tile.slices = soften_tile(pass, rows, tile, n_hidden, start, state, &mixer);
        if (tile.slices != 0) {
            mixer.mix(tile);
        } else {
            mixer.skip(tile);
        }
        is_asked_for = tile.slices != 0 || pass.dims.latent;
    }
    mixer.finish();
}

}  // namespace

TensorRun run_of_block(const BlockView& view) noexcept {
    TensorRun run;
    if (view.trellis() || view.header->bits < 16) {
        run.block = view;
        return run;
    }
    run.rows = view.part<unsigned char>(view.header->codes);
    run.row_stride = view.sizes.raw_stride;
    run.head_stride = view.sizes.raw_stride * view.header->n_tokens;
    run.is_float = view.header->bits == 32;
    return run;
}

std::uint64_t attend_scratch_bytes(const HeadDims& dims) noexcept {
    return round_up(scratch_floats(dims) * sizeof(float), block_alignment);
}

AttendScratch place_attend_scratch(void* scratch, const HeadDims& dims) noexcept {
    float* next = static_cast<float*>(scratch);
    const auto take = [&next](std::size_t n) {
        float* at = next;
        next += n;
        return at;
    };
    const auto take_queries = [&take](std::uint32_t dim) {
        QueryScratch queries;
        queries.dim = dim;
        queries.stride = round_up(dim, 32);
        queries.query = take(max_rows * queries.stride);
        queries.ordered = take(max_rows * queries.stride);
        queries.folded = take(max_rows * queries.stride);
        return queries;
    };
    AttendScratch s;
    s.keys = take_queries(dims.key_dim);
    if (dims.latent) s.latents = take_queries(dims.value_dim);
    s.out_stride = round_up(dims.value_dim, 16);
    s.scores = take(max_rows * tile_tokens);
    s.weights = take(max_rows * tile_tokens);
    s.partial = take(max_rows * tile_tokens);
    s.out = take(max_rows * s.out_stride);
    s.along_key = take(max_rows * max_rank);
    s.along_value = take(max_rows * max_rank);
    s.mixed = take(max_rows * s.out_stride);
    s.weight_sum = take(max_rows);
    s.query_rows = take(max_rows * dims.key_dim);
    s.outlier_out = take(max_rows * dims.value_dim);
    s.keys.given = take(max_rows * dims.key_dim);
    if (dims.latent) s.latents.given = take(max_rows * dims.value_dim);
    return s;
}

void attend_rows(const Kernels& kernels, const AttendScratch& scratch, const RowGroup& rows,
                 const KvRun* runs, std::size_t n_runs, std::uint32_t head, const HeadDims& dims, float scale,
                 TileRange range, float* part) noexcept {
    const RowPass pass = {kernels, scratch, rows.n_rows, head, dims};
    const std::uint32_t value_dim = dims.value_dim;
    RowState state;
    for (std::uint32_t row = 0; row < rows.n_rows; ++row) {
        state.lift[row] = lift_of_row(pass, rows, row, scale, runs, n_runs);
        // A sink is in the first part only.
        const bool sink = rows.has_sinks && range.part == 0 && rows.sink[row] > minus_infinity;
        state.max[row] = sink ? std::ldexp(rows.sink[row], -state.lift[row].score) : minus_infinity;
        state.sum[row] = sink ? 1.0f : 0.0f;
    }
    const bool has_outliers = std::any_of(runs, runs + n_runs, [](const KvRun& run) {
        return run.key.block.header != nullptr && run.key.block.header->n_outliers > 0;
    });
    set_queries(pass, rows, state.lift, scale, {}, has_outliers);
    if (rows.negligible > 0.0f) look_ahead(pass, rows, runs, n_runs, &state);
    std::int64_t shift = 0;
    std::fill_n(scratch.out, rows.n_rows * scratch.out_stride, 0.0f);
    std::uint64_t start = 0, tile = 0;
    for (std::size_t i = 0; i < n_runs && tile < range.end; ++i) {
        const std::uint32_t n_tiles = tiles_of(runs[i]);
        const auto first = static_cast<std::uint32_t>(
            std::min<std::uint64_t>(n_tiles, range.first > tile ? range.first - tile : 0));
        const auto end = static_cast<std::uint32_t>(std::min<std::uint64_t>(n_tiles, range.end - tile));
        const RunTiles tiles = {rows.chosen, tile, first, end};
        if (tiles.any(first, end)) {
            if (runs[i].shift != shift)
                set_queries(pass, rows, state.lift, scale, runs[i].turn, has_outliers);
            shift = runs[i].shift;
            attend_run(pass, rows, runs[i], find_next(rows, runs + i + 1, runs + n_runs, tile + n_tiles),
                       start, tiles, &state);
        }
        start += runs[i].n_tokens - runs[i].n_hidden;
        tile += n_tiles;
    }
    for (std::uint32_t row = 0; row < rows.n_rows; ++row) {
        const float* out = scratch.out + row * scratch.out_stride;
        if (part == nullptr) {
            const float inverse = state.sum[row] > 0.0f ? 1.0f / state.sum[row] : 0.0f;
            for (std::uint32_t c = 0; c < value_dim; ++c)
                rows.out[row][c] = out[c] * inverse;
        } else {
            float* to = part + row * part_row_floats(value_dim);
            to[0] = state.max[row];
            to[1] = state.sum[row];
            to[2] = static_cast<float>(state.lift[row].score);
            std::copy_n(out, value_dim, to + part_head);
        }
    }
}

std::uint64_t count_tiles(const KvRun* runs, std::size_t n_runs) noexcept {
    std::uint64_t n = 0;
    for (std::size_t i = 0; i < n_runs; ++i)
        n += tiles_of(runs[i]);
    return n;
}

void merge_parts(const RowGroup& rows, const float* parts, std::size_t stride, std::size_t n_parts,
                 std::uint32_t value_dim) noexcept {
    for (std::uint32_t row = 0; row < rows.n_rows; ++row) {
        const auto part = [&](std::size_t i) {
            return parts + i * stride + row * part_row_floats(value_dim);
        };
        float most = minus_infinity;
        for (std::size_t i = 0; i < n_parts; ++i)
            most = std::max(most, part(i)[0]);
        float* out = rows.out[row];
        std::fill_n(out, value_dim, 0.0f);
        float sum = 0.0f;
        for (std::size_t i = 0; i < n_parts; ++i) {
            if (part(i)[0] == minus_infinity) continue;
            const float weight = std::exp(std::ldexp(part(i)[0] - most, static_cast<int>(part(i)[2])));
            sum += weight * part(i)[1];
            for (std::uint32_t c = 0; c < value_dim; ++c)
                out[c] += weight * part(i)[part_head + c];
        }
        for (std::uint32_t c = 0; sum > 0.0f && c < value_dim; ++c)
            out[c] /= sum;
    }
}

}  // namespace gearkv
