// The least limit that a whole life of a cache keeps to: its takes and gives, in the order in which the parts
// of a cache make them, without the bytes themselves. tests/unit/peak_test.cpp holds it against caches that
// live so.
#include <algorithm>
#include <new>

#include "../arch/float_mode.hpp"
#include "cache/check.hpp"
#include "cache/layer.hpp"
#include "cache/rates.hpp"
#include "cache/rules.hpp"
#include "cache/sequence.hpp"
#include "cache/work_memory.hpp"
#include "codec/compress.hpp"
#include "format/trellis.hpp"

namespace gearkv {
namespace {

constexpr std::uint64_t minus = ~std::uint64_t{0};  // unsigned sums wrap

// What is held, and the most that ever was. Some takes are tried and done without: memory is moved to a
// smaller place when there is room for both.
class Tally {
  public:
    explicit Tally(std::uint64_t limit) : limit_(limit) {}

    void take(std::uint64_t n_bytes, Use use) {
        add(n_bytes, use);
        needed_ = std::max(needed_, now_.bytes);
        note();
    }
    void give(std::uint64_t n_bytes, Use use) { add(minus * n_bytes, use); }
    // In place of `old` bytes. False when that exceeds the limit, with nothing done.
    void replace(std::uint64_t old, std::uint64_t n_bytes, Use use) {
        if (n_bytes > 0) take(n_bytes, use);
        give(old, use);
    }
    bool try_replace(std::uint64_t old, std::uint64_t n_bytes, Use use) {
        const std::uint64_t with_both = now_.bytes + n_bytes;
        if (with_both > limit_) {
            next_limit_ = std::min(next_limit_, with_both);
            return false;
        }
        add(n_bytes, use);
        note();
        give(old, use);
        return true;
    }
    void take_block(const BlockHeader (&headers)[2]) {
        now_.keys += bytes_by_part(headers[0]);
        now_.values += bytes_by_part(headers[1]);
        now_.bytes += headers[0].n_bytes + headers[1].n_bytes;
        take(bytes_beside_block, Use::table);
    }
    void give_blocks(const BlockHeader (&headers)[2], std::uint64_t n) {
        now_.keys += bytes_by_part(headers[0]) * (minus * n);
        now_.values += bytes_by_part(headers[1]) * (minus * n);
        now_.bytes -= (headers[0].n_bytes + headers[1].n_bytes + bytes_beside_block) * n;
        now_.tables -= bytes_beside_block * n;
    }

    const CacheBytes& peak() const { return peak_; }
    // The same without the takes that are only tried.
    std::uint64_t needed() const { return needed_; }
    // The next limit at which one more of the takes that are only tried comes about.
    std::uint64_t next_limit() const { return next_limit_; }

  private:
    void note() {
        if (now_.bytes > peak_.bytes) peak_ = now_;
    }
    void add(std::uint64_t n_bytes, Use use) {
        now_.bytes += n_bytes;
        (use == Use::buffer ? now_.buffer : use == Use::scratch ? now_.scratch : now_.tables) += n_bytes;
    }

    std::uint64_t limit_, next_limit_ = UINT64_MAX, needed_ = 0;
    CacheBytes now_, peak_;
};

// Blocks of one size, oldest first.
struct BlockRun {
    BlockHeader headers[2];
    std::uint64_t n = 0;
};

// What all layers share.
struct Shared {
    const CacheConfig& config;
    const CacheLife& life;
    Tally& tally;
    bool has_work;  // working memory of the cache's own
    std::uint64_t slot_bytes = 0;
    std::uint64_t n_runs = 0, attend_bytes = 0, compress_bytes = 0, outputs_bytes = 0;

    void reserve_runs(std::uint64_t n) {
        if (n <= n_runs || !has_work) return;
        n = WorkMemory::grown_runs(n_runs, n);
        tally.replace(n_runs * sizeof(KvRun), n * sizeof(KvRun), Use::table);
        n_runs = n;
    }
    void ensure_attend(std::uint64_t n_bytes) {
        if (n_bytes <= attend_bytes || !has_work) return;
        tally.replace(attend_bytes, n_bytes, Use::scratch);
        attend_bytes = n_bytes;
    }
};

// LayerStream, as far as its memory goes.
class LayerLife {
  public:
    LayerLife(Shared* shared, std::uint32_t layer)
        : shared_(*shared),
          config_(shared->config),
          layer_(layer),
          dims_(config_.dims_of(layer)),
          step_(buffer_step(config_, layer)),
          usual_(base_tokens(config_)),
          row_bytes_{buffer_bytes(config_, layer, TensorKind::key, 1),
                     buffer_bytes(config_, layer, TensorKind::value, 1)} {
        const KvSpec spec = first_spec(config_, layer);
        specs_[0] = spec.key;
        specs_[1] = spec.value;
    }

    void create() {
        tally().take(sizeof(LayerStream), Use::table);
        if (step_ == 0) base_ = capacity_[0] = capacity_[1] = usual_;
        for (const std::uint64_t row : row_bytes_)
            tally().take(row * (base_ + config_.spec.sink_tokens), Use::buffer);
    }

    // As Cache::append, attend and compress. Errors: of lay_out_block.
    Status append(std::uint32_t n) {
        const std::uint32_t n_block = config_.spec.buffer_tokens;
        const bool is_long = n >= n_block;
        if (Status status = advance(n, is_long); !status.ok()) return status;
        keep_within();
        for (int kind = 0; kind < 2; ++kind) {
            const std::uint64_t n_needed = n_aside_ + n_buffered_ + n;
            if (n_needed <= capacity_[kind]) continue;
            const std::uint64_t n_room = room_for(n_needed);
            const std::uint64_t n_left = is_base(kind) ? 0 : capacity_[kind];  // the base room stays
            tally().replace(n_left * row_bytes_[kind], n_room * row_bytes_[kind], Use::buffer);
            capacity_[kind] = n_room;
        }
        shared_.reserve_runs(n_runs() + 2);
        prompt_ = is_long;
        const bool has_others = n_forgotten_ + n_closed_ + n_buffered_ > 0;
        const std::uint64_t n_sinks =
            has_others ? 0 : std::min<std::uint64_t>(config_.spec.sink_tokens - n_sinks_, n);
        n_sinks_ += n_sinks;
        n_buffered_ += n - n_sinks;
        if (n_open_ > 0) n_appended_ += n;
        return {};
    }
    void attend(std::uint32_t n_queries) {
        const std::uint32_t n_heads = shared_.life.n_heads;
        shared_.ensure_attend(
            call_bytes(config_, dims_, shared_.slot_bytes, n_queries, n_heads, shared_.life.n_threads));
        keep_squares(n_queries);
        if (config_.error_every == 0) return;
        const std::uint64_t n_bytes = 2 * sizeof(float) * std::uint64_t{n_heads} * dims_.value_dim;
        if (n_bytes > shared_.outputs_bytes) {
            tally().replace(shared_.outputs_bytes, n_bytes, Use::table);
            shared_.outputs_bytes = n_bytes;
        }
        if (!has_query_) {
            const std::uint64_t n_floats = n_heads * ErrorEstimate::row_floats(dims_, config_.latent);
            tally().take(n_floats * sizeof(float), Use::table);
        }
        has_query_ = true;
    }
    Status compress() {
        const std::uint64_t first_seen = first_visible(config_, layer_, n_tokens());
        if (unit_tokens(config_, layer_, n_buffered_) == 0 && first_block_end() > first_seen) return {};
        if (n_open_ > 0 && n_appended_ == 0) drop_open();
        finish(false);
        forget_aside();
        skip_invisible();
        while (const std::uint32_t n = next_unit()) {
            if (Status status = begin(n); !status.ok()) return status;
            finish(false);
        }
        keep_within();
        return {};
    }

    // So many more appends of one token, attended each, do nothing but add to the buffer.
    std::uint64_t n_idle() const {
        const std::uint64_t n = n_tokens(), first_seen = first_visible(config_, layer_, n + 1);
        if (n_sinks_ < config_.spec.sink_tokens || first_block_end() <= first_seen) return 0;
        if (shared_.has_work && n_runs() + 2 > shared_.n_runs) return 0;
        std::uint64_t idle = UINT64_MAX;
        const auto until = [&](std::uint64_t end, std::uint64_t now) {
            idle = std::min(idle, end - std::min(end, now));
        };
        until(config_.spec.buffer_tokens + std::uint64_t{config_.spec.recent_tokens}, n_buffered_ - n_open_);
        if (n_open_ > 0) until(spread_tokens(config_), n_appended_);
        for (const std::uint64_t room : capacity_)
            until(room, n_aside_ + n_buffered_);
        if (n_reopenable_ > 0) until(closed_at_[0] + reopen_tokens(config_), n);
        if (window_of(config_, layer_) > 0 && n_blocks() > 0) until(first_block_end(), first_seen);
        if (keeps_squares()) until(QuerySquares::next_kept(n), n);
        return idle;
    }
    void pass(std::uint64_t n) {
        n_buffered_ += n;
        if (n_open_ > 0) n_appended_ += n;
        prompt_ = false;
    }

  private:
    Tally& tally() { return shared_.tally; }
    std::uint64_t n_tokens() const { return n_sinks_ + n_forgotten_ + n_closed_ + n_buffered_; }
    std::uint64_t buffer_start() const { return n_sinks_ + n_forgotten_ + n_closed_; }
    std::uint64_t n_blocks() const {
        std::uint64_t n = 0;
        for (std::size_t i = 0; i < n_block_runs_; ++i)
            n += runs_[i].n;
        return n;
    }
    std::uint64_t n_runs() const {
        return (n_sinks_ > 0) + (n_forgotten_ > 0) + n_blocks() + (n_buffered_ > 0);
    }
    std::uint64_t first_block_end() const {
        return n_block_runs_ == 0 ? UINT64_MAX : n_sinks_ + n_forgotten_ + runs_[0].headers[0].n_tokens;
    }
    std::uint32_t next_unit() const { return unit_tokens(config_, layer_, n_buffered_ - n_open_); }
    bool keeps_squares() const { return specs_[0].backbone == Backbone::trellis; }

    // ---- TokenBuffer ----

    bool is_base(int kind) const { return step_ == 0 && capacity_[kind] == base_; }
    std::uint64_t room_for(std::uint64_t n) const {
        if (step_ == 0 || n > usual_) return n;
        return std::min(round_up(n, step_), usual_);
    }
    void keep(std::uint64_t n_left) {
        for (int kind = 0; kind < 2; ++kind) {
            const std::uint64_t row = row_bytes_[kind], held = capacity_[kind];
            if (step_ == 0) {
                if (n_left > base_ || is_base(kind)) continue;
                tally().give(held * row, Use::buffer);
                capacity_[kind] = base_;
                continue;
            }
            const std::uint64_t n_room = room_for(n_left);
            const bool is_usual = held <= usual_ || n_room > usual_;
            if (n_room > 0 && is_usual && held < n_room + 2 * step_) continue;
            if (n_room == 0) {
                tally().give(held * row, Use::buffer);
            } else if (!tally().try_replace(held * row, n_room * row, Use::buffer)) {
                continue;
            }
            capacity_[kind] = n_room;
        }
    }
    void drop_aside(std::uint64_t n) {
        if (n == 0) return;
        n_aside_ -= n;
        keep(n_aside_ + n_buffered_);
    }

    // ---- QuerySquares ----

    std::uint64_t square_bytes(std::uint64_t n_rows) const {
        return QuerySquares::bytes_of(dims_, n_rows) - QuerySquares::bytes_of(dims_, 0);
    }
    void keep_squares(std::uint64_t n_queries) {
        if (!keeps_squares()) return;
        const std::uint64_t end = n_tokens();
        const std::uint64_t first =
            std::max(end - n_queries, buffer_start() + (n_appended_ > 0 ? n_open_ : 0));
        std::uint64_t n = 0;
        for (std::uint64_t token = QuerySquares::next_kept(first); token < end;
             token = QuerySquares::next_kept(token + 1))
            ++n;
        if (n == 0) return;
        if (!has_sum_) tally().take(QuerySquares::bytes_of(dims_, 0), Use::table);
        has_sum_ = true;
        if (n_rows_ + n > row_capacity_) {
            const std::uint64_t capacity = n_rows_ + std::max(n, QuerySquares::least_rows);
            tally().replace(square_bytes(row_capacity_), square_bytes(capacity), Use::table);
            row_capacity_ = capacity;
        }
        if (n_rows_ == 0) first_row_ = QuerySquares::next_kept(first);
        n_rows_ += n;
    }
    void fold_squares(std::uint64_t end) {
        const std::uint64_t n_before = n_rows_;
        for (; n_rows_ > 0 && first_row_ < end; --n_rows_)
            first_row_ = QuerySquares::next_kept(first_row_ + 1);
        const std::uint64_t wanted = std::max(n_rows_, QuerySquares::least_rows);
        if (n_rows_ == n_before || wanted > row_capacity_ / 2) return;
        if (tally().try_replace(square_bytes(row_capacity_), square_bytes(wanted), Use::table))
            row_capacity_ = wanted;
    }

    // ---- LayerStream ----

    Status advance(std::uint32_t n, bool is_long) {
        const bool at_once = config_.spread_tokens == 0 || is_long;
        std::uint64_t n_gone = 0;
        while (n_reopenable_ > 0 && n_tokens() + n > closed_at_[0] + reopen_tokens(config_)) {
            n_gone += reopenable_tokens_[0];
            std::copy(closed_at_ + 1, closed_at_ + n_reopenable_, closed_at_);
            std::copy(reopenable_tokens_ + 1, reopenable_tokens_ + n_reopenable_, reopenable_tokens_);
            --n_reopenable_;
        }
        drop_aside(n_gone);
        if (n_open_ > 0) {
            if (!at_once && next_unit() == 0 && n_appended_ < spread_tokens(config_)) return {};
            finish(!is_long);
        }
        if (is_long) skip_invisible();
        while (const std::uint32_t unit = next_unit()) {
            if (Status status = begin(unit); !status.ok()) return status;
            if (!at_once && next_unit() == 0) return {};
            finish(!is_long);
        }
        return {};
    }
    Status begin(std::uint32_t n) {
        reserve_table();
        if (config_.rollback_tokens > 0 && !has_reopenable_) {
            has_reopenable_ = true;
            tally().take(ReopenableUnits::grown(0) * sizeof(ReopenableUnit), Use::table);
        }
        ClosingPlan plan;
        const bool first[2] = {!has_profiles_, !has_profiles_};
        if (Status status = plan.lay_out(config_, layer_, specs_, n, prompt_, first); !status.ok())
            return status;
        fold_squares(buffer_start() - n_aside_);
        std::copy(plan.headers, plan.headers + 2, open_.headers);
        tally().take_block(open_.headers);
        scratch_ = plan.scratch_bytes > shared_.compress_bytes ? plan.scratch_bytes : 0;
        if (scratch_ > 0) tally().take(scratch_, Use::scratch);
        n_open_ = n;
        n_appended_ = 0;
        return {};
    }
    void finish(bool reopenable) {
        if (n_open_ == 0) return;
        const bool is_kept = reopenable && config_.rollback_tokens > 0;
        if (!is_kept) forget_aside();
        const std::uint64_t closed_at = n_tokens();
        if (scratch_ > 0) tally().give(scratch_, Use::scratch);
        BlockRun* last = n_block_runs_ == 0 ? nullptr : &runs_[n_block_runs_ - 1];
        const auto same = [&](int kind) {
            return last->headers[kind].n_tokens == open_.headers[kind].n_tokens &&
                   last->headers[kind].n_bytes == open_.headers[kind].n_bytes;
        };
        if (last == nullptr || !same(0) || !same(1)) {
            last = &runs_[n_block_runs_++];
            *last = open_;
            last->n = 0;
        }
        ++last->n;
        n_closed_ += n_open_;
        n_buffered_ -= n_open_;
        if (is_kept) {
            n_aside_ += n_open_;
            closed_at_[n_reopenable_] = closed_at;
            reopenable_tokens_[n_reopenable_++] = n_open_;
        } else {
            keep(n_buffered_);
        }
        n_open_ = scratch_ = 0;
        has_profiles_ = true;
    }
    void drop_open() {
        tally().give_blocks(open_.headers, 1);
        if (scratch_ > 0) tally().give(scratch_, Use::scratch);
        n_open_ = scratch_ = 0;
    }
    void forget_aside() {
        drop_aside(n_aside_);
        n_reopenable_ = 0;
    }
    void reserve_table() {
        const std::uint64_t n = n_blocks();
        if (n + 1 <= table_) return;
        const std::uint64_t capacity = BlockTable::grown(table_, n + 1);
        tally().replace(table_ * sizeof(ClosedBlock), capacity * sizeof(ClosedBlock), Use::table);
        table_ = capacity;
    }
    void skip_invisible() {
        const std::uint64_t first = first_visible(config_, layer_, n_tokens()), start = buffer_start();
        const std::uint32_t n_block = config_.spec.buffer_tokens;
        if (first < start + n_block || n_open_ > 0) return;
        forget_aside();
        const std::uint64_t n = (first - start) / n_block * n_block;
        n_forgotten_ += n_closed_ + n;
        n_closed_ = 0;
        for (std::size_t i = 0; i < n_block_runs_; ++i)
            tally().give_blocks(runs_[i].headers, runs_[i].n);
        n_block_runs_ = 0;
        forget_profiles();
        n_buffered_ -= n;
        keep(n_buffered_);
    }
    // Sequence::keep_within.
    void keep_within() {
        const std::uint64_t token = first_visible(config_, layer_, n_tokens());
        const std::uint64_t n_all = n_blocks(), n_most = n_all - std::min(n_all, n_reopenable_);
        std::uint64_t n = 0, end = n_sinks_ + n_forgotten_;
        for (std::size_t i = 0; i < n_block_runs_; ++i) {
            const std::uint64_t n_tokens = runs_[i].headers[0].n_tokens,
                                n_seen = token - std::min(token, end);
            const std::uint64_t here = std::min({runs_[i].n, n_seen / n_tokens, n_most - n});
            n += here;
            end += here * n_tokens;
            if (here < runs_[i].n) break;
        }
        if (n == 0) return;
        reserve_table();
        for (int kind = 0; kind < 2; ++kind) {
            const BlockHeader& header = runs_[0].headers[kind];
            if (kept_profile_[kind] > 0 || header.profile == 0) continue;
            kept_profile_[kind] =
                profile_part_bytes(static_cast<TensorKind>(header.kind), header.n_heads, header.dim);
            tally().take(kept_profile_[kind], Use::table);
        }
        const std::uint64_t n_gone = end - n_sinks_ - n_forgotten_;
        while (n > 0) {
            const std::uint64_t here = std::min(n, runs_[0].n);
            tally().give_blocks(runs_[0].headers, here);
            n -= here;
            runs_[0].n -= here;
            if (runs_[0].n == 0) std::copy(runs_ + 1, runs_ + n_block_runs_--, runs_);
        }
        n_forgotten_ += n_gone;
        n_closed_ -= n_gone;
    }
    void forget_profiles() {
        for (std::uint64_t& kept : kept_profile_) {
            if (kept > 0) tally().give(kept, Use::table);
            kept = 0;
        }
        has_profiles_ = false;
    }

    Shared& shared_;
    const CacheConfig& config_;
    std::uint32_t layer_;
    LayerDims dims_;
    TensorSpec specs_[2];  // by kind

    std::uint64_t n_sinks_ = 0, n_forgotten_ = 0, n_closed_ = 0, n_buffered_ = 0, n_aside_ = 0;
    bool prompt_ = false;  // the last append was long
    // The buffer: tokens by kind.
    std::uint64_t step_, usual_, base_ = 0, capacity_[2] = {0, 0}, row_bytes_[2];
    // The open unit.
    BlockRun open_;
    std::uint64_t n_open_ = 0, n_appended_ = 0, scratch_ = 0;
    // Blocks: the first of a prompt, its others, its last, and those of generated tokens.
    BlockRun runs_[8];
    std::size_t n_block_runs_ = 0;
    std::uint64_t table_ = 0, kept_profile_[2] = {0, 0};
    bool has_profiles_ = false;
    // A rollback reaches back over two at most.
    std::uint64_t closed_at_[4], reopenable_tokens_[4], n_reopenable_ = 0;
    bool has_reopenable_ = false;
    std::uint64_t n_rows_ = 0, row_capacity_ = 0, first_row_ = 0;
    bool has_sum_ = false, has_query_ = false;
};

// Lives `life` within `limit`. Errors: of lay_out_block.
Status live(Shared* shared, LayerLife* layers, std::uint32_t n_layers) {
    const CacheConfig& config = shared->config;
    const CacheLife& life = shared->life;
    Tally& tally = shared->tally;
    const auto for_all = [&](const auto& work) {
        Status status;
        for (std::uint32_t i = 0; status.ok() && i < n_layers; ++i)
            status = work(layers[i]);
        return status;
    };
    const auto step = [&](std::uint32_t n, bool is_prompt) {
        return for_all([&](LayerLife& layer) {
            Status status = layer.append(n);
            if (status.ok() && life.n_heads > 0) layer.attend(n);
            return status.ok() && is_prompt ? layer.compress() : status;
        });
    };
    tally.take(Sequence::created_bytes(config), Use::table);
    for (std::uint32_t i = 0; i < n_layers; ++i)
        layers[i].create();
    shared->slot_bytes = most_attend_bytes(config).of_slot;
    shared->compress_bytes = 0;
    if (!most_compress_bytes(config, &shared->compress_bytes)) {
        return Status::error(Code::wrong_size, "a block of this shape is beyond what can be laid out");
    }
    if (shared->has_work) {
        shared->reserve_runs(WorkMemory::least_runs);
        shared->ensure_attend(most_attend_bytes(config).of_heads);
        tally.take(shared->compress_bytes, Use::scratch);
    }
    std::uint64_t n = life.prompt_tokens;
    Status status = n > 0 ? step(static_cast<std::uint32_t>(n), true) : Status();
    while (status.ok() && n < life.n_tokens) {
        std::uint64_t n_idle = life.n_tokens - n;
        // The first attention may need more than any before.
        if (n == life.prompt_tokens) n_idle = 0;
        for (std::uint32_t i = 0; i < n_layers && n_idle > 0; ++i)
            n_idle = std::min(n_idle, layers[i].n_idle());
        for (std::uint32_t i = 0; i < n_layers && n_idle > 0; ++i)
            layers[i].pass(n_idle);
        if (n_idle == 0) status = step(1, false);
        n += std::max<std::uint64_t>(n_idle, 1);
    }
    return status.ok() ? for_all([](LayerLife& layer) { return layer.compress(); }) : status;
}

Status check_life(const CacheConfig& config, const CacheLife& life) {
    if (config.spec.auto_bits > 0.0f) {
        return Status::error(Code::bad_spec,
                             "auto:%g chooses its rates by what comes, expected a SPEC whose rates are given",
                             static_cast<double>(config.spec.auto_bits));
    }
    if (life.n_threads == 0) return Status::error(Code::wrong_size, "0 threads, expected at least 1");
    for (std::uint32_t layer = 0; life.n_heads > 0 && layer < config.n_layers; ++layer) {
        const LayerDims dims = config.dims_of(layer);
        if (!dims.has_keys() || life.n_heads % dims.n_kv_heads == 0) continue;
        return Status::error(Code::wrong_size,
                             "%u query heads, expected a multiple of the %u KV heads of layer %u",
                             life.n_heads, dims.n_kv_heads, layer);
    }
    return {};
}

}  // namespace

Status bytes_required(const CacheConfig& config, const CacheLife& life, CacheBytes* out) noexcept {
    const FloatMode mode;
    CacheBytes stored;
    if (out == nullptr) return Status::error(Code::invalid_argument, "out is null");
    if (Status status = bytes_required(config, life.n_tokens, life.prompt_tokens, &stored); !status.ok())
        return status;
    if (Status status = check_life(config, life); !status.ok()) return status;
    constexpr std::uint64_t most_bytes = std::uint64_t{1} << 62;
    if (stored.bytes > most_bytes) {
        return Status::error(Code::wrong_size, "%llu bytes of blocks and buffers, expected at most %llu",
                             static_cast<unsigned long long>(stored.bytes),
                             static_cast<unsigned long long>(most_bytes));
    }
    const Allocator& allocator = config.allocator;
    const std::uint64_t n_bytes = config.n_layers * sizeof(LayerLife);
    auto* layers =
        static_cast<LayerLife*>(allocator.allocate(allocator.context, n_bytes, alignof(LayerLife)));
    if (layers == nullptr)
        return Status::error(Code::out_of_memory, "no %llu bytes to plan with",
                             static_cast<unsigned long long>(n_bytes));
    // Below the limit wanted, memory that is not moved for want of room makes more needed.
    Status status;
    for (std::uint64_t limit = UINT64_MAX;;) {
        Tally tally(limit);
        Shared shared = {config, life, tally, config.workspace == nullptr};
        std::uint32_t n_layers = 0;
        for (std::uint32_t layer = 0; layer < config.n_layers; ++layer) {
            if (config.dims_of(layer).has_keys()) new (layers + n_layers++) LayerLife(&shared, layer);
        }
        status = live(&shared, layers, n_layers);
        if (!status.ok()) break;
        if (limit != UINT64_MAX && tally.needed() <= limit) {
            *out = tally.peak();
            break;
        }
        limit = limit == UINT64_MAX ? tally.needed() : std::min(tally.needed(), tally.next_limit());
    }
    allocator.release(allocator.context, layers, n_bytes);
    return status;
}

}  // namespace gearkv
