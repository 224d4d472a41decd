// Caches and blocks for C.
#include <limits>
#include <memory>
#include <new>

#include "c/convert.hpp"
#include "gearkv/codec.hpp"

namespace gearkv::c {
namespace {

Status take_type(gearkv_type type, const char* name, ElementType* out) noexcept {
    if (type != GEARKV_F32 && type != GEARKV_F16 && type != GEARKV_BF16) {
        return Status::error(Code::invalid_argument, "type %d of %s, expected one of gearkv_type",
                             static_cast<int>(type), name);
    }
    *out = static_cast<ElementType>(type);
    return {};
}

// What rows that are read and those that are written have both.
template <class In, class Out>
Status take_layout(const In* in, const char* name, In* taken, Out* out) noexcept {
    if (Status status = take(in, name, taken); !status.ok()) return status;
    out->data = taken->data;
    out->token_stride = taken->token_stride;
    out->head_stride = taken->head_stride;
    if (taken->channel_stride > 0) out->channel_stride = taken->channel_stride;
    return take_type(taken->type, name, &out->type);
}

Status take_rows(const gearkv_typed_rows* in, const char* name, Rows* out) noexcept {
    gearkv_typed_rows taken = {};
    return take_layout(in, name, &taken, out);
}

Status take_rows(const gearkv_out_rows* in, const char* name, OutRows* out) noexcept {
    gearkv_out_rows taken = {};
    Status status = take_layout(in, name, &taken, out);
    out->n_elements = taken.n_elements;
    return status;
}

Status take_queries(const gearkv_queries* in, Queries* out) noexcept {
    gearkv_queries taken;
    gearkv_queries_init(&taken, sizeof(taken));
    if (Status status = take(in, "queries", &taken); !status.ok()) return status;
    out->data = taken.data;
    out->query_stride = taken.query_stride;
    out->head_stride = taken.head_stride;
    out->n_queries = taken.n_queries;
    out->n_heads = taken.n_heads;
    out->scale = taken.scale;
    out->causal = taken.causal != 0;
    out->soft_cap = taken.soft_cap;
    out->negligible = taken.negligible;
    out->slopes = taken.slopes;
    out->mask = taken.mask;
    out->mask_query_stride = taken.mask_query_stride;
    out->mask_head_stride = taken.mask_head_stride;
    out->window = taken.window;
    out->sinks = taken.sinks;
    if (taken.mass != 0.0f) out->mass = taken.mass;
    if (taken.most_share != 0.0f) out->most_share = taken.most_share;
    static_assert(sizeof(TokenRange) == sizeof(gearkv_token_range));
    out->ranges = reinterpret_cast<const TokenRange*>(taken.ranges);
    out->range_ends = taken.range_ends;
    if (taken.channel_stride > 0) out->channel_stride = taken.channel_stride;
    out->out_query_stride = taken.out_query_stride;
    out->out_head_stride = taken.out_head_stride;
    if (taken.out_channel_stride > 0) out->out_channel_stride = taken.out_channel_stride;
    out->latents = taken.latents;
    if (Status status = take_type(taken.type, "queries", &out->type); !status.ok()) return status;
    return take_type(taken.out_type, "the output", &out->out_type);
}

Status take_level(gearkv_level level, Level* out) noexcept {
    if (!is_level(level)) {
        return Status::error(Code::unknown_level, "level %u, expected one of gearkv_level",
                             static_cast<unsigned>(level));
    }
    *out = static_cast<Level>(level);
    return {};
}

Status check_cache(const gearkv_cache* cache) noexcept {
    return cache == nullptr ? null_argument("cache") : Status();
}

Rows cpp(const gearkv_rows& rows) noexcept {
    return {rows.data, rows.token_stride, rows.head_stride};
}

Status take_block(const gearkv_block_options* in, BlockShape* shape, BlockOptions* options) noexcept {
    gearkv_block_options taken = {};
    if (Status status = take(in, "options", &taken); !status.ok()) return status;
    if (taken.kind != GEARKV_KEYS && taken.kind != GEARKV_VALUES) {
        return Status::error(Code::invalid_argument, "kind %d, expected GEARKV_KEYS or GEARKV_VALUES",
                             static_cast<int>(taken.kind));
    }
    KvSpec spec;
    if (Status status = parse_spec(taken.spec, &spec); !status.ok()) return status;
    if (spec.auto_bits > 0.0f) {
        return Status::error(Code::bad_spec, "%s: a cache chooses the rates of auto, a block has none",
                             taken.spec);
    }
    const bool is_key = taken.kind == GEARKV_KEYS;
    *shape = {is_key ? TensorKind::key : TensorKind::value, taken.n_tokens, taken.n_heads, taken.dim};
    options->spec = is_key ? spec.key : spec.value;
    options->rank = taken.generated != 0 ? options->spec.rank_decode : options->spec.rank_prompt;
    options->seed = taken.seed;
    return take_level(taken.level, &options->level);
}

gearkv_stats plain(const CacheBytes& bytes) noexcept {
    gearkv_stats stats = {};
    stats.struct_size = sizeof(stats);
    stats.bytes = bytes.bytes;
    stats.key_bytes = bytes.keys.bytes;
    stats.value_bytes = bytes.values.bytes;
    stats.buffer_bytes = bytes.buffer;
    stats.scratch_bytes = bytes.scratch;
    stats.table_bytes = bytes.tables;
    stats.shared_bytes = bytes.shared;
    stats.mapped_bytes = bytes.mapped;
    return stats;
}

}  // namespace

Status take_config(const gearkv_config* in, CacheConfig* out) noexcept {
    gearkv_config taken;
    gearkv_config_init(&taken, sizeof(taken));
    if (Status status = take(in, "config", &taken); !status.ok()) return status;
    if (taken.spec == nullptr)
        return Status::error(Code::bad_spec, "spec is null, expected a SPEC such as gear-4");
    if (Status status = parse_spec(taken.spec, &out->spec); !status.ok()) return status;
    out->n_layers = taken.n_layers;
    out->n_kv_heads = taken.n_kv_heads;
    out->key_dim = taken.key_dim;
    out->value_dim = taken.value_dim;
    out->dims = cpp(taken.dims);
    out->latent = taken.latent != 0;
    out->max_tokens = taken.max_tokens;
    out->spread_tokens = taken.spread_tokens;
    out->block_tokens = taken.block_tokens;
    out->rollback_tokens = taken.rollback_tokens;
    out->error_every = taken.error_every;
    out->seed = taken.seed;
    out->close_prompts = taken.close_prompts != 0;
    out->windows = taken.windows;
    out->max_bytes = taken.max_bytes;
    out->soft_bytes = taken.soft_bytes;
    out->rope.frequencies = taken.rope_frequencies;
    out->rope.n_pairs = taken.rope_n_pairs;
    out->rope.interleaved = taken.rope_interleaved != 0;
    out->workspace = cpp(taken.workspace);
    out->allocator = cpp(taken.allocator);
    return take_level(taken.level, &out->level);
}

}  // namespace gearkv::c

using namespace gearkv;
using namespace gearkv::c;

void gearkv_config_init(gearkv_config* config, size_t struct_size) {
    if (config == nullptr || struct_size < sizeof(size_t)) return;
    const CacheConfig defaults;
    gearkv_config mine = {};
    mine.spread_tokens = defaults.spread_tokens;
    mine.allocator = plain(defaults.allocator);
    config->struct_size = struct_size;
    give(mine, config);
}

void gearkv_queries_init(gearkv_queries* queries, size_t struct_size) {
    if (queries == nullptr || struct_size < sizeof(size_t)) return;
    gearkv_queries mine = {};
    mine.causal = 1;
    queries->struct_size = struct_size;
    give(mine, queries);
}

gearkv_code gearkv_cache_create(const gearkv_config* config, gearkv_cache** out, gearkv_error* error) {
    if (out == nullptr) return report(null_argument("out"), error);
    CacheConfig taken;
    if (Status status = take_config(config, &taken); !status.ok()) return report(status, error);
    std::unique_ptr<Cache> cache;
    const Status status = Cache::create(taken, &cache);
    if (status.ok()) *out = reinterpret_cast<gearkv_cache*>(cache.release());
    return report(status, error);
}

void gearkv_cache_destroy(gearkv_cache* cache) {
    delete cpp(cache);
}

gearkv_code gearkv_bytes_required(const gearkv_config* config, uint64_t n_tokens, uint64_t prompt_tokens,
                                  gearkv_stats* out, gearkv_error* error) {
    if (Status status = check_output(out, "out"); !status.ok()) return report(status, error);
    CacheConfig taken;
    if (Status status = take_config(config, &taken); !status.ok()) return report(status, error);
    CacheBytes bytes;
    const Status status = bytes_required(taken, n_tokens, prompt_tokens, &bytes);
    if (status.ok()) give(plain(bytes), out);
    return report(status, error);
}

gearkv_code gearkv_bytes_of_life(const gearkv_config* config, const gearkv_life* life, gearkv_stats* out,
                                 gearkv_error* error) {
    if (Status status = check_output(out, "out"); !status.ok()) return report(status, error);
    gearkv_life lived = {};
    lived.n_threads = 1;
    if (Status status = take(life, "life", &lived); !status.ok()) return report(status, error);
    CacheConfig taken;
    if (Status status = take_config(config, &taken); !status.ok()) return report(status, error);
    CacheBytes bytes;
    const CacheLife of = {lived.n_tokens, lived.prompt_tokens, lived.n_heads, lived.n_threads};
    const Status status = bytes_required(taken, of, &bytes);
    if (status.ok()) give(plain(bytes), out);
    return report(status, error);
}

gearkv_code gearkv_cache_append(gearkv_cache* cache, uint32_t layer, const gearkv_rows* keys,
                                const gearkv_rows* values, uint32_t n_tokens, gearkv_executor* executor,
                                gearkv_error* error) {
    if (Status status = check_cache(cache); !status.ok()) return report(status, error);
    if (keys == nullptr) return report(null_argument("keys"), error);
    if (values == nullptr) return report(null_argument("values"), error);
    return report(cpp(cache)->append(layer, cpp(*keys), cpp(*values), n_tokens, cpp(executor)), error);
}

gearkv_code gearkv_cache_append_typed(gearkv_cache* cache, uint32_t layer, const gearkv_typed_rows* keys,
                                      const gearkv_typed_rows* values, uint32_t n_tokens,
                                      gearkv_executor* executor, gearkv_error* error) {
    if (Status status = check_cache(cache); !status.ok()) return report(status, error);
    Rows taken[2];
    if (Status status = take_rows(keys, "keys", &taken[0]); !status.ok()) return report(status, error);
    if (Status status = take_rows(values, "values", &taken[1]); !status.ok()) return report(status, error);
    return report(cpp(cache)->append(layer, taken[0], taken[1], n_tokens, cpp(executor)), error);
}

gearkv_code gearkv_cache_attend(gearkv_cache* cache, uint32_t layer, const gearkv_queries* queries, void* out,
                                size_t n_floats, gearkv_executor* executor, gearkv_error* error) {
    if (Status status = check_cache(cache); !status.ok()) return report(status, error);
    Queries taken;
    if (Status status = take_queries(queries, &taken); !status.ok()) return report(status, error);
    return report(cpp(cache)->attend(layer, taken, out, n_floats, cpp(executor)), error);
}

gearkv_code gearkv_attend_batch(uint32_t layer, const gearkv_attend_request* requests, size_t n_requests,
                                gearkv_executor* executor, gearkv_error* error) {
    if (requests == nullptr && n_requests > 0) return report(null_argument("requests"), error);
    // Of a server's usual step no request needs memory.
    constexpr std::size_t n_usual = 16;
    AttendRequest usual[n_usual];
    std::unique_ptr<AttendRequest[]> more;
    AttendRequest* taken = usual;
    if (n_requests > n_usual) {
        if (n_requests <= std::numeric_limits<std::size_t>::max() / sizeof(AttendRequest))
            more.reset(new (std::nothrow) AttendRequest[n_requests]);
        if (more == nullptr)
            return report(Status::error(Code::out_of_memory, "no memory for %zu requests", n_requests),
                          error);
        taken = more.get();
    }
    for (std::size_t i = 0; i < n_requests; ++i) {
        const gearkv_attend_request& request = requests[i];
        taken[i].cache = cpp(request.cache);
        taken[i].out = request.out;
        taken[i].n_floats = request.n_floats;
        const Status status = take_queries(request.queries, &taken[i].queries);
        if (!status.ok()) {
            return report(
                Status::error(status.code(), "request %zu of %zu: %s", i, n_requests, status.message()),
                error);
        }
    }
    return report(Cache::attend_batch(layer, taken, n_requests, cpp(executor)), error);
}

gearkv_code gearkv_cache_compress(gearkv_cache* cache, uint32_t layer, gearkv_executor* executor,
                                  gearkv_error* error) {
    if (Status status = check_cache(cache); !status.ok()) return report(status, error);
    return report(cpp(cache)->compress(layer, cpp(executor)), error);
}

gearkv_code gearkv_cache_read(gearkv_cache* cache, uint32_t layer, uint64_t first, uint64_t n_tokens,
                              float* keys, size_t n_key_floats, float* values, size_t n_value_floats,
                              gearkv_error* error) {
    if (Status status = check_cache(cache); !status.ok()) return report(status, error);
    return report(cpp(cache)->read(layer, first, n_tokens, keys, n_key_floats, values, n_value_floats),
                  error);
}

gearkv_code gearkv_cache_read_typed(gearkv_cache* cache, uint32_t layer, uint64_t first, uint64_t n_tokens,
                                    gearkv_type type, void* keys, size_t n_key_elements, void* values,
                                    size_t n_value_elements, gearkv_error* error) {
    if (Status status = check_cache(cache); !status.ok()) return report(status, error);
    ElementType taken = ElementType::f32;
    if (Status status = take_type(type, "the output", &taken); !status.ok()) return report(status, error);
    return report(
        cpp(cache)->read(layer, first, n_tokens, keys, n_key_elements, values, n_value_elements, taken),
        error);
}

gearkv_code gearkv_cache_read_rows(gearkv_cache* cache, uint32_t layer, uint64_t first, uint64_t n_tokens,
                                   const gearkv_out_rows* keys, const gearkv_out_rows* values,
                                   gearkv_error* error) {
    if (Status status = check_cache(cache); !status.ok()) return report(status, error);
    OutRows taken[2];
    if (keys != nullptr) {
        if (Status status = take_rows(keys, "keys", &taken[0]); !status.ok()) return report(status, error);
    }
    if (values != nullptr) {
        if (Status status = take_rows(values, "values", &taken[1]); !status.ok())
            return report(status, error);
    }
    return report(cpp(cache)->read(layer, first, n_tokens, keys == nullptr ? nullptr : &taken[0],
                                   values == nullptr ? nullptr : &taken[1]),
                  error);
}

gearkv_code gearkv_cache_truncate(gearkv_cache* cache, uint64_t n_tokens, int* lossless,
                                  gearkv_error* error) {
    if (Status status = check_cache(cache); !status.ok()) return report(status, error);
    bool exact = false;
    const Status status = cpp(cache)->truncate(n_tokens, &exact);
    if (status.ok() && lossless != nullptr) *lossless = exact;
    return report(status, error);
}

gearkv_code gearkv_cache_truncate_to_shortest(gearkv_cache* cache, uint64_t* n_tokens, int* lossless,
                                              gearkv_error* error) {
    if (Status status = check_cache(cache); !status.ok()) return report(status, error);
    bool exact = false;
    const Status status = cpp(cache)->truncate_to_shortest(n_tokens, &exact);
    if (status.ok() && lossless != nullptr) *lossless = exact;
    return report(status, error);
}

gearkv_code gearkv_cache_remove(gearkv_cache* cache, uint64_t first, uint64_t n_tokens,
                                const gearkv_rope* ropes, gearkv_executor* executor, gearkv_error* error) {
    if (Status status = check_cache(cache); !status.ok()) return report(status, error);
    if (ropes == nullptr) return report(cpp(cache)->remove(first, n_tokens, cpp(executor)), error);
    const std::uint32_t n_layers = cpp(cache)->config().n_layers;
    const std::unique_ptr<RopeConfig[]> taken(new (std::nothrow) RopeConfig[n_layers]);
    if (taken == nullptr)
        return report(Status::error(Code::out_of_memory, "no memory for the ropes of %u layers", n_layers),
                      error);
    for (std::uint32_t i = 0; i < n_layers; ++i)
        taken[i] = {ropes[i].frequencies, ropes[i].n_pairs, ropes[i].interleaved != 0};
    return report(cpp(cache)->remove(first, n_tokens, taken.get(), cpp(executor)), error);
}

gearkv_code gearkv_cache_forget_before(gearkv_cache* cache, uint32_t layer, uint64_t token,
                                       gearkv_error* error) {
    if (Status status = check_cache(cache); !status.ok()) return report(status, error);
    return report(cpp(cache)->forget_before(layer, token), error);
}

gearkv_code gearkv_cache_shrink(gearkv_cache* cache, uint64_t target_bytes, uint64_t* freed,
                                gearkv_error* error) {
    if (Status status = check_cache(cache); !status.ok()) return report(status, error);
    return report(cpp(cache)->shrink(target_bytes, freed), error);
}

gearkv_code gearkv_cache_fork(const gearkv_cache* cache, gearkv_cache** out, gearkv_error* error) {
    if (Status status = check_cache(cache); !status.ok()) return report(status, error);
    if (out == nullptr) return report(null_argument("out"), error);
    std::unique_ptr<Cache> fork;
    const Status status = cpp(cache)->fork(&fork);
    if (status.ok()) *out = reinterpret_cast<gearkv_cache*>(fork.release());
    return report(status, error);
}

gearkv_code gearkv_cache_reserve(gearkv_cache* cache, uint64_t max_tokens, gearkv_error* error) {
    if (Status status = check_cache(cache); !status.ok()) return report(status, error);
    return report(cpp(cache)->reserve(max_tokens), error);
}

void gearkv_cache_reset(gearkv_cache* cache) {
    if (cache != nullptr) cpp(cache)->reset();
}

uint64_t gearkv_cache_n_tokens(const gearkv_cache* cache, uint32_t layer) {
    return cache == nullptr ? 0 : cpp(cache)->n_tokens(layer);
}

uint64_t gearkv_cache_first_token(const gearkv_cache* cache, uint32_t layer) {
    return cache == nullptr ? 0 : cpp(cache)->first_token(layer);
}

gearkv_level gearkv_cache_level(const gearkv_cache* cache) {
    return cache == nullptr ? GEARKV_LEVEL_AUTOMATIC : static_cast<gearkv_level>(cpp(cache)->level());
}

gearkv_code gearkv_cache_layer_spec(const gearkv_cache* cache, uint32_t layer, char* text, size_t n_chars,
                                    gearkv_error* error) {
    if (Status status = check_cache(cache); !status.ok()) return report(status, error);
    if (text == nullptr) return report(null_argument("text"), error);
    KvSpec spec;
    Status status = cpp(cache)->layer_spec(layer, &spec);
    if (status.ok()) status = format_spec(spec, text, n_chars);
    return report(status, error);
}

gearkv_code gearkv_cache_get_stats(const gearkv_cache* cache, gearkv_stats* out, gearkv_error* error) {
    if (Status status = check_cache(cache); !status.ok()) return report(status, error);
    if (Status status = check_output(out, "out"); !status.ok()) return report(status, error);
    const CacheStats found = cpp(cache)->stats();
    gearkv_stats stats = plain(found.bytes);
    stats.n_tokens = found.n_tokens;
    stats.compressed_tokens = found.compressed_tokens;
    stats.n_blocks = found.n_blocks;
    stats.n_shrunk = found.n_shrunk;
    stats.bits_per_element = found.bits_per_element;
    stats.compress_seconds = found.compress_seconds;
    stats.shrunk_bytes = found.shrunk_bytes;
    give(stats, out);
    return report({}, error);
}

gearkv_code gearkv_cache_get_layer_stats(const gearkv_cache* cache, uint32_t layer, gearkv_layer_stats* out,
                                         gearkv_error* error) {
    if (Status status = check_cache(cache); !status.ok()) return report(status, error);
    if (Status status = check_output(out, "out"); !status.ok()) return report(status, error);
    LayerStats found;
    if (Status status = cpp(cache)->layer_stats(layer, &found); !status.ok()) return report(status, error);
    give({sizeof(gearkv_layer_stats), found.n_tokens, found.n_forgotten, found.n_closed, found.n_blocks,
          found.n_shrunk, found.compress_seconds, found.output_error, found.n_sampled, found.n_selections,
          found.share_read, found.mass_read, found.shrunk_bytes},
         out);
    return report({}, error);
}

gearkv_code gearkv_block_bytes(const gearkv_block_options* options, uint64_t* out, gearkv_error* error) {
    if (out == nullptr) return report(null_argument("out"), error);
    BlockShape shape;
    BlockOptions taken;
    Status status = take_block(options, &shape, &taken);
    BlockBytes bytes;
    if (status.ok()) status = block_bytes(shape, taken, &bytes);
    if (status.ok()) *out = bytes.bytes;
    return report(status, error);
}

gearkv_code gearkv_compress_block(void* block, size_t n_bytes, const gearkv_rows* rows,
                                  const gearkv_block_options* options, gearkv_executor* executor,
                                  gearkv_error* error) {
    if (rows == nullptr) return report(null_argument("rows"), error);
    BlockShape shape;
    BlockOptions taken;
    Status status = take_block(options, &shape, &taken);
    if (status.ok()) status = compress_block(block, n_bytes, cpp(*rows), shape, taken, cpp(executor));
    return report(status, error);
}

gearkv_code gearkv_compress_block_typed(void* block, size_t n_bytes, const gearkv_typed_rows* rows,
                                        const gearkv_block_options* options, gearkv_executor* executor,
                                        gearkv_error* error) {
    Rows taken_rows;
    BlockShape shape;
    BlockOptions taken;
    Status status = take_rows(rows, "rows", &taken_rows);
    if (status.ok()) status = take_block(options, &shape, &taken);
    if (status.ok()) status = compress_block(block, n_bytes, taken_rows, shape, taken, cpp(executor));
    return report(status, error);
}

gearkv_code gearkv_decompress_block(float* out, size_t n_floats, const void* block, size_t n_bytes,
                                    gearkv_error* error) {
    return report(decompress_block(out, n_floats, block, n_bytes), error);
}
