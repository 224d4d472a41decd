#include "gearkv/fit.hpp"

#include <algorithm>
#include <cstdio>

#include "decoder/generation/session_parts.hpp"
#include "decoder/gguf/guarded.hpp"

namespace gearkv {
namespace {

// ---- what a cache takes ----

struct Counter {
    std::uint64_t held = 0, peak = 0;

    Allocator allocator() noexcept { return {allocate, release, this}; }
    static void* allocate(void* context, std::size_t n_bytes, std::size_t alignment) {
        const Allocator memory = default_allocator();
        void* pointer = memory.allocate(memory.context, n_bytes, alignment);
        auto* self = static_cast<Counter*>(context);
        if (pointer != nullptr) self->held += n_bytes;
        self->peak = std::max(self->peak, self->held);
        return pointer;
    }
    static void release(void* context, void* pointer, std::size_t n_bytes) {
        const Allocator memory = default_allocator();
        memory.release(memory.context, pointer, n_bytes);
        static_cast<Counter*>(context)->held -= n_bytes;
    }
};

// Tokens of a layer's buffers at their base size.
std::uint64_t base_tokens(const CacheConfig& config) {
    const KvSpec& spec = config.spec;
    return std::uint64_t{spec.buffer_tokens} + spec.recent_tokens +
           std::min(config.spread_tokens, spec.buffer_tokens) +
           std::min(config.rollback_tokens, spec.buffer_tokens);
}

// Whether a long block may take more scratch than a short one of any layer.
bool needs_unit_scratch(const KvSpec& spec) {
    const auto needs = [](const TensorSpec& tensor) {
        return !tensor.raw() && tensor.backbone != Backbone::trellis;
    };
    return needs(spec.key) || needs(spec.value) || spec.n_layer_rules > 0;
}

// Rows to append and attend, all of them zero.
struct ZeroRows {
    ZeroRows(const CacheConfig& config, std::uint32_t n_heads, std::uint32_t n_queries)
        : row(std::max(std::size_t{config.n_kv_heads}, std::size_t{n_heads}) *
              std::max(config.key_dim, config.value_dim)),
          out(std::size_t{n_queries} * n_heads * config.value_dim),
          keys{row.data(), 0, config.key_dim},
          values{row.data(), 0, config.value_dim} {}
    std::vector<float> row, out;
    Rows keys, values;
};

// What compressing a chunk in one layer takes beside the block that comes of it.
Status measure_unit(Cache& cache, Counter& counter, std::uint32_t layer, std::uint32_t n,
                    const ZeroRows& zeros, Executor& executor, std::uint64_t* most) {
    if (Status status = cache.append(layer, zeros.keys, zeros.values, n, executor); !status.ok())
        return status;
    const auto block_bytes = [&] {
        const CacheBytes bytes = cache.stats().bytes;
        return bytes.keys.bytes + bytes.values.bytes;
    };
    const std::uint64_t held = counter.held, blocks = block_bytes();
    counter.peak = held;
    if (Status status = cache.compress(layer, executor); !status.ok()) return status;
    const std::uint64_t taken = counter.peak - held, made = block_bytes() - blocks;
    *most = std::max(*most, taken - std::min(taken, made));
    return {};
}

// A real cache with a token in every layer: its tables and working memory for this many heads and queries,
// but for buffers, of which those of windows are not all there yet. Then, where the codec takes scratch for a
// long block, a chunk in one layer of each kind.
Status measure_cache(CacheConfig config, std::uint32_t n_heads, std::uint32_t chunk, Executor& executor,
                     std::uint64_t* fixed, std::uint64_t* unit_scratch) {
    Counter counter;
    config.allocator = counter.allocator();
    config.max_bytes = 0;
    std::unique_ptr<Cache> cache;
    if (Status status = Cache::create(config, &cache); !status.ok()) return status;
    ZeroRows zeros(config, n_heads, chunk);
    for (std::uint32_t layer = 0; layer < config.n_layers; layer++) {
        Status status = cache->append(layer, zeros.keys, zeros.values, 1, executor);
        if (!status.ok()) return status;
    }
    for (const std::uint32_t n_queries : {1u, chunk}) {
        const Queries queries = {zeros.row.data(), 0, config.key_dim, n_queries, n_heads, 1.0f, false};
        if (Status status = cache->attend(0, queries, zeros.out.data(), zeros.out.size(), executor);
            !status.ok())
            return status;
    }
    *fixed = counter.held - cache->stats().bytes.buffer;
    *unit_scratch = 0;
    // Behind a full buffer.
    const auto n = static_cast<std::uint32_t>(
        std::min<std::uint64_t>(base_tokens(config) + chunk, config.max_tokens - 1));
    if (!needs_unit_scratch(config.spec) || n == 0) return {};
    std::vector<const LayerRule*> seen;
    for (std::uint32_t layer = 0; layer < config.n_layers; layer++) {
        const LayerRule* rule = config.spec.rule_of(layer, config.n_layers);
        if (std::find(seen.begin(), seen.end(), rule) != seen.end()) continue;
        seen.push_back(rule);
        Status status = measure_unit(*cache, counter, layer, n, zeros, executor, unit_scratch);
        if (!status.ok()) return status;
    }
    return {};
}

// auto:BITS keeps the first chunk of every layer, and some of its queries, until all layers have theirs. What
// is taken then beside buffers of their base size: a chunk of rows that differ goes through one layer, and
// the others have the same rows and queries to keep.
Status measure_choice(CacheConfig config, std::uint32_t n_heads, std::uint32_t chunk,
                      std::uint64_t chunk_bytes, Executor& executor, std::uint64_t* out) {
    constexpr std::uint64_t kept_queries = 64, bytes_beside_head = 512;
    const std::uint64_t kept = kept_queries * n_heads * config.key_dim * sizeof(float) +
                               std::uint64_t{config.n_kv_heads} * bytes_beside_head;
    const std::uint64_t others = (config.n_layers - std::uint64_t{1}) * (chunk_bytes + kept);
    Counter counter;
    config.allocator = counter.allocator();
    config.max_bytes = 0;
    config.n_layers = 1;
    config.windows = nullptr;
    std::unique_ptr<Cache> cache;
    if (Status status = Cache::create(config, &cache); !status.ok()) return status;
    const auto n = static_cast<std::uint32_t>(
        std::min<std::uint64_t>(std::max<std::uint64_t>(chunk, base_tokens(config)), config.max_tokens - 1));
    const std::size_t width = std::size_t{n_heads} * std::max(config.key_dim, config.value_dim);
    std::vector<float> rows(n * width), mixed(n * std::size_t{n_heads} * config.value_dim);
    std::uint32_t state = 1;
    for (float& x : rows)
        x = static_cast<float>((state = state * 1664525u + 1013904223u) >> 8) * 0x1p-23f - 1.0f;
    const Rows keys = {rows.data(), width, config.key_dim}, values = {rows.data(), width, config.value_dim};
    std::uint64_t held = 0;
    for (const std::uint32_t n_more : {1u, n}) {
        if (Status status = cache->append(0, keys, values, n_more, executor); !status.ok()) return status;
        const Queries queries = {rows.data(), width, config.key_dim, n_more, n_heads, 1.0f, true};
        Status status = cache->attend(0, queries, mixed.data(), mixed.size(), executor);
        if (status.ok() && n_more > 1) status = cache->compress(0, executor);
        if (!status.ok()) return status;
        if (n_more == 1) held = counter.held;
    }
    *out = counter.peak - held + others;
    return {};
}

// What belongs to a block beside its bytes.
constexpr std::uint64_t bytes_beside_block = 64;

// cache and scratch of *out.
Status add_cache(const CacheConfig& config, std::uint32_t n_heads, std::uint32_t chunk, Executor& executor,
                 SessionBytes* out) {
    // Whichever is most: blocks of single tokens, of whole prompts, or of prompts cut into chunks.
    CacheBytes required;
    CacheConfig chunked = config;
    chunked.block_tokens = std::max(chunk, config.spec.buffer_tokens);
    const auto need = [&](const CacheConfig& of, std::uint64_t n_prompt) {
        CacheBytes bytes;
        const Status status = bytes_required(of, config.max_tokens, n_prompt, &bytes);
        if (status.ok() && bytes.bytes > required.bytes) required = bytes;
        return status;
    };
    Status status = need(config, 0);
    if (status.ok()) status = need(config, config.max_tokens);
    if (status.ok()) status = need(chunked, config.max_tokens);
    if (!status.ok()) return status;
    CacheBytes of_chunk;
    status = bytes_required(config, config.max_tokens, std::min<std::uint64_t>(chunk, config.max_tokens),
                            &of_chunk);
    if (!status.ok()) return status;
    std::uint64_t fixed = 0, unit_scratch = 0;
    status = measure_cache(config, n_heads, chunk, executor, &fixed, &unit_scratch);
    if (!status.ok()) return status;
    const std::uint64_t n_base = base_tokens(config);
    const std::uint64_t token_bytes = required.buffer / config.n_layers / (n_base + config.spec.sink_tokens);
    // A chunk behind a full buffer, in the one layer that has not compressed it yet.
    const std::uint64_t chunk_bytes = chunk > 1 ? token_bytes * (n_base + chunk) : 0;
    const std::uint64_t n_blocks = config.n_layers * (config.max_tokens / config.spec.buffer_tokens + 1);
    std::uint64_t scratch = fixed + unit_scratch + chunk_bytes + n_blocks * bytes_beside_block;
    if (config.spec.auto_bits > 0.0f && config.max_tokens > 1) {
        std::uint64_t choice = 0;
        status = measure_choice(config, n_heads, chunk, chunk_bytes, executor, &choice);
        if (!status.ok()) return status;
        // Before there are blocks.
        const std::uint64_t all = fixed + required.buffer + choice;
        scratch = std::max(scratch, all - std::min(all, required.bytes));
    }
    out->cache = required.bytes + of_chunk.tables;
    out->scratch += scratch;
    return {};
}

// ---- the choice ----

constexpr std::uint32_t context_step = 256;
constexpr std::uint32_t worthwhile_context = 4096;
constexpr std::uint32_t small_chunk = 64;
// The last where tokens that are asked for have no room in another.
constexpr const char* choices[] = {"f16", "gear-4", "gear-3", "gear-2", "gear-1"};

std::string mib(std::uint64_t n_bytes) {
    char text[32];
    std::snprintf(text, sizeof(text), "%.1f MiB", static_cast<double>(n_bytes) / (1 << 20));
    return text;
}

class Fitter {
  public:
    Fitter(const Model& model, const FitRequest& request, Executor& executor)
        : model_(model), request_(request), executor_(executor) {
        trained_ = model.params().n_ctx;
        wanted_ = request.n_ctx != 0 ? request.n_ctx : trained_;
        chunk_ = request.session.chunk;
        specs_ = request.spec.empty() ? std::vector<std::string>(std::begin(choices), std::end(choices))
                                      : std::vector<std::string>{request.spec};
    }

    Status run(Fit* out) {
        Fit fit;
        Status status = choose(&fit);
        if (status.ok() && !fit.fits && chunk_ > small_chunk) {
            Fit smaller;
            chunk_ = small_chunk;
            status = choose(&smaller);
            if (status.ok() && smaller.fits) fit = smaller;
        }
        if (status.ok()) *out = std::move(fit);
        return status;
    }

  private:
    Status measure(const std::string& spec, std::uint32_t n_ctx, FitRow* row) {
        SessionConfig config = request_.session;
        if (Status status = parse_spec(spec.c_str(), &config.spec); !status.ok()) return status;
        config.n_ctx = n_ctx;
        config.chunk = chunk_;
        *row = {spec, n_ctx, std::min(chunk_, n_ctx), {}, false};
        if (Status status = session_bytes(model_, config, executor_, &row->bytes); !status.ok())
            return status;
        row->fits = fits(row->bytes);
        return {};
    }
    bool fits(const SessionBytes& bytes) const {
        return request_.other_bytes <= request_.max_bytes &&
               bytes.total() <= request_.max_bytes - request_.other_bytes;
    }

    // The longest context below `wanted_` that fits, of the steps there are; the shortest when none does.
    Status longest(const std::string& spec, FitRow* best) {
        std::uint32_t low = 1, high = wanted_ / context_step;
        if (Status status = measure(spec, std::min(context_step, wanted_), best); !status.ok()) return status;
        while (best->fits && low < high) {
            const std::uint32_t middle = low + (high - low + 1) / 2;
            FitRow row;
            if (Status status = measure(spec, middle * context_step, &row); !status.ok()) return status;
            if (row.fits) {
                low = middle;
                *best = row;
            } else {
                high = middle - 1;
            }
        }
        return {};
    }

    Status choose(Fit* fit) {
        std::vector<FitRow> whole, longest_rows;
        for (const std::string& spec : specs_) {
            FitRow row;
            if (Status status = measure(spec, wanted_, &row); !status.ok()) return status;
            whole.push_back(row);
            if (!row.fits) {
                if (Status status = longest(spec, &row); !status.ok()) return status;
            }
            longest_rows.push_back(row);
        }
        for (std::size_t i = 0; i < specs_.size(); i++) {
            fit->table.push_back(whole[i]);
            if (longest_rows[i].n_ctx != wanted_ && longest_rows[i].fits)
                fit->table.push_back(longest_rows[i]);
        }
        pick(whole, longest_rows, fit);
        return {};
    }

    void pick(const std::vector<FitRow>& whole, const std::vector<FitRow>& longest_rows, Fit* fit) const {
        const auto end = request_.n_ctx != 0 || specs_.size() == 1 ? whole.end() : whole.end() - 1;
        const auto first_that_fits =
            std::find_if(whole.begin(), end, [](const FitRow& row) { return row.fits; });
        if (first_that_fits != end) {
            take(*first_that_fits, fit);
            return;
        }
        const FitRow* best = nullptr;
        for (const FitRow& row : longest_rows) {
            const bool worthwhile = row.spec != "f16" || specs_.size() == 1;
            if (row.fits && worthwhile && row.n_ctx >= worthwhile_context && best == nullptr) best = &row;
        }
        if (best == nullptr) {
            for (const FitRow& row : longest_rows) {
                if (row.fits && (best == nullptr || row.n_ctx > best->n_ctx)) best = &row;
            }
        }
        if (best != nullptr && request_.n_ctx == 0) {
            take(*best, fit);
            return;
        }
        refuse(longest_rows, best, fit);
    }

    void take(const FitRow& row, Fit* fit) const {
        fit->fits = true;
        fit->choice = row;
        const std::string rest =
            " of " + mib(request_.max_bytes) + " with weights, scratch and what is taken already";
        fit->reason = row.spec + " with " + std::to_string(row.n_ctx) + " tokens takes " +
                      mib(row.bytes.total() + request_.other_bytes) + rest;
        if (!request_.spec.empty()) return;
        if (row.n_ctx == wanted_) {
            fit->reason += row.spec == choices[0] ? "; nothing needs to be compressed"
                                                  : "; more bits would not fit at this context";
        } else {
            fit->reason +=
                "; the trained context of " + std::to_string(trained_) + " does not fit with any SPEC";
        }
    }

    void refuse(const std::vector<FitRow>& shortest, const FitRow* best, Fit* fit) const {
        fit->choice = *std::min_element(
            shortest.begin(), shortest.end(),
            [](const FitRow& a, const FitRow& b) { return a.bytes.total() < b.bytes.total(); });
        const std::string wish = (request_.spec.empty() ? std::string("no SPEC") : request_.spec) + " with " +
                                 std::to_string(wanted_) + " tokens fits " + mib(request_.max_bytes);
        if (best != nullptr) {
            fit->reason = (request_.spec.empty() ? wish
                                                 : wish.substr(0, wish.find(" fits")) + " does not fit " +
                                                       mib(request_.max_bytes)) +
                          "; " + best->spec + " with " + std::to_string(best->n_ctx) +
                          " tokens would, with " + mib(best->bytes.total() + request_.other_bytes);
            return;
        }
        const FitRow& least = fit->choice;
        fit->reason = "nothing fits " + mib(request_.max_bytes) + ": the weights take " +
                      mib(least.bytes.weights) + ", and " + least.spec + " with " +
                      std::to_string(least.n_ctx) + " tokens needs " +
                      mib(least.bytes.total() + request_.other_bytes) + " in all";
    }

    const Model& model_;
    const FitRequest& request_;
    Executor& executor_;
    std::uint32_t trained_, wanted_, chunk_;
    std::vector<std::string> specs_;
};

}  // namespace

Status session_bytes(const Model& model, const SessionConfig& config, Executor& executor,
                     SessionBytes* out) noexcept {
    if (out == nullptr) return Status::error(Code::invalid_argument, "null output");
    return guarded([&] {
        SessionParts parts;
        if (Status status = make_parts(model, config, &parts); !status.ok()) return status;
        SessionBytes bytes;
        for (const TensorInfo& tensor : model.tensors()) {
            bytes.weights += tensor.n_bytes;
        }
        Level level;
        if (Status status = resolve_level(config.level, &level); !status.ok()) return status;
        const LinearKernels* kernels = find_linear_kernels(level);
        if (kernels == nullptr)
            return Status::error(Code::unavailable_level, "no matrix kernels for level %s",
                                 level_name(level));
        bytes.scratch = session_scratch_bytes(parts, *kernels, executor);
        Status status = add_cache(parts.cache, model.params().n_heads, parts.chunk, executor, &bytes);
        if (status.ok()) *out = bytes;
        return status;
    });
}

Status fit_session(const Model& model, const FitRequest& request, Executor& executor, Fit* out) noexcept {
    if (out == nullptr) return Status::error(Code::invalid_argument, "null output");
    return guarded([&] { return Fitter(model, request, executor).run(out); });
}

}  // namespace gearkv
