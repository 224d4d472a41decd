// Saved caches for C.
#include "gearkv/state.hpp"
#include "c/convert.hpp"

using namespace gearkv;
using namespace gearkv::c;

namespace {

ModelFingerprint fingerprint_of(const uint8_t* bytes) noexcept {
    static_assert(sizeof(ModelFingerprint::bytes) == GEARKV_FINGERPRINT_SIZE);
    ModelFingerprint fingerprint;
    if (bytes != nullptr) std::memcpy(fingerprint.bytes, bytes, sizeof(fingerprint.bytes));
    return fingerprint;
}

Status give_info(const StateInfo& info, gearkv_state_info* out) noexcept {
    static_assert(GEARKV_SPEC_SIZE == max_spec_chars);
    gearkv_state_info given = {};
    given.struct_size = sizeof(given);
    given.version = info.version;
    given.n_layers = info.config.n_layers;
    given.n_kv_heads = info.config.n_kv_heads;
    given.key_dim = info.config.key_dim;
    given.value_dim = info.config.value_dim;
    given.latent = info.config.latent;
    given.max_tokens = info.config.max_tokens;
    given.n_bytes = info.n_bytes;
    given.n_tokens = info.n_tokens;
    given.n_blocks = info.n_blocks;
    given.block_bytes = info.block_bytes;
    given.n_extra = info.n_extra;
    std::memcpy(given.fingerprint, info.model.bytes, sizeof(given.fingerprint));
    if (Status status = format_spec(info.config.spec, given.spec, sizeof(given.spec)); !status.ok())
        return status;
    give(given, out);
    return {};
}

Status take_save(const gearkv_cache* cache, const gearkv_save_options* in, SaveOptions* out) noexcept {
    if (cache == nullptr) return null_argument("cache");
    gearkv_save_options taken = {};
    if (in != nullptr) {
        if (Status status = take(in, "options", &taken); !status.ok()) return status;
    }
    out->model = fingerprint_of(taken.fingerprint);
    out->extra = taken.extra;
    out->n_extra = taken.n_extra;
    if (taken.n_tokens > 0) out->n_tokens = taken.n_tokens;
    return {};
}

// What all ways to load have in common: `load` makes a cache of configuration and options.
template <class Load>
gearkv_code load_cache(const gearkv_config* config, const gearkv_load_options* in, gearkv_cache** out,
                       std::size_t* n_extra, gearkv_error* error, const Load& load) noexcept {
    if (out == nullptr) return report(null_argument("out"), error);
    gearkv_load_options taken = {};
    if (in != nullptr) {
        if (Status status = take(in, "options", &taken); !status.ok()) return report(status, error);
    }
    if (taken.loading != GEARKV_LOAD_COPY && taken.loading != GEARKV_LOAD_MAP &&
        taken.loading != GEARKV_LOAD_MAP_LAZY) {
        return report(Status::error(Code::invalid_argument, "loading %d, expected one of gearkv_loading",
                                    static_cast<int>(taken.loading)),
                      error);
    }
    CacheConfig expected;
    if (Status status = take_config(config, &expected); !status.ok()) return report(status, error);
    LoadOptions options;
    options.model = fingerprint_of(taken.fingerprint);
    options.loading = taken.loading == GEARKV_LOAD_COPY ? StateLoading::copy : StateLoading::map;
    options.checking =
        taken.loading == GEARKV_LOAD_MAP_LAZY ? StateChecking::on_first_use : StateChecking::all;
    options.extra = taken.extra;
    options.extra_capacity = taken.n_room;
    std::unique_ptr<Cache> cache;
    const Status status = load(expected, options, &cache, n_extra);
    if (status.ok()) *out = reinterpret_cast<gearkv_cache*>(cache.release());
    return report(status, error);
}

}  // namespace

gearkv_code gearkv_cache_save(const gearkv_cache* cache, const char* path, const gearkv_save_options* options,
                              gearkv_executor* executor, gearkv_error* warning, gearkv_error* error) {
    SaveOptions taken;
    if (Status status = take_save(cache, options, &taken); !status.ok()) return report(status, error);
    if (path == nullptr) return report(null_argument("path"), error);
    Status beside;
    const Status status = save_state(*cpp(cache), path, taken, cpp(executor), &beside);
    if (status.ok()) (void)report(beside, warning);
    return report(status, error);
}

gearkv_code gearkv_state_bytes(const gearkv_cache* cache, const gearkv_save_options* options, uint64_t* out,
                               gearkv_error* error) {
    SaveOptions taken;
    if (Status status = take_save(cache, options, &taken); !status.ok()) return report(status, error);
    if (out == nullptr) return report(null_argument("out"), error);
    return report(state_bytes(*cpp(cache), taken, out), error);
}

gearkv_code gearkv_cache_save_to_memory(const gearkv_cache* cache, void* to, size_t n_room,
                                        const gearkv_save_options* options, gearkv_executor* executor,
                                        size_t* n_written, gearkv_error* error) {
    SaveOptions taken;
    if (Status status = take_save(cache, options, &taken); !status.ok()) return report(status, error);
    if (to == nullptr) return report(null_argument("to"), error);
    return report(save_state(*cpp(cache), to, n_room, taken, cpp(executor), n_written), error);
}

gearkv_code gearkv_cache_save_through(const gearkv_cache* cache, gearkv_write write, void* context,
                                      const gearkv_save_options* options, gearkv_executor* executor,
                                      gearkv_error* error) {
    SaveOptions taken;
    if (Status status = take_save(cache, options, &taken); !status.ok()) return report(status, error);
    if (write == nullptr) return report(null_argument("write"), error);
    Writer writer = {write, context};
    return report(save_state(*cpp(cache), ByteSink{write_through, &writer}, taken, cpp(executor)), error);
}

gearkv_code gearkv_cache_load(const char* path, const gearkv_config* config,
                              const gearkv_load_options* options, gearkv_executor* executor,
                              gearkv_cache** out, size_t* n_extra, gearkv_error* error) {
    if (path == nullptr) return report(null_argument("path"), error);
    return load_cache(
        config, options, out, n_extra, error,
        [&](const CacheConfig& expected, const LoadOptions& taken, auto* cache, std::size_t* n) {
            return load_state(path, expected, taken, cpp(executor), cache, n);
        });
}

gearkv_code gearkv_cache_load_from_memory(const void* bytes, size_t n_bytes, const gearkv_config* config,
                                          const gearkv_load_options* options, gearkv_executor* executor,
                                          gearkv_cache** out, size_t* n_extra, gearkv_error* error) {
    if (bytes == nullptr) return report(null_argument("bytes"), error);
    return load_cache(
        config, options, out, n_extra, error,
        [&](const CacheConfig& expected, const LoadOptions& taken, auto* cache, std::size_t* n) {
            return load_state(bytes, n_bytes, expected, taken, cpp(executor), cache, n);
        });
}

gearkv_code gearkv_cache_load_through(gearkv_read read, void* context, const gearkv_config* config,
                                      const gearkv_load_options* options, gearkv_executor* executor,
                                      gearkv_cache** out, size_t* n_extra, gearkv_error* error) {
    if (read == nullptr) return report(null_argument("read"), error);
    Reader reader = {read, context};
    return load_cache(
        config, options, out, n_extra, error,
        [&](const CacheConfig& expected, const LoadOptions& taken, auto* cache, std::size_t* n) {
            return load_state(ByteSource{read_through, &reader}, expected, taken, cpp(executor), cache, n);
        });
}

gearkv_code gearkv_inspect_state(const char* path, gearkv_state_info* out, gearkv_error* error) {
    if (path == nullptr) return report(null_argument("path"), error);
    if (Status status = check_output(out, "out"); !status.ok()) return report(status, error);
    StateInfo info;
    Status status = inspect_state(path, &info);
    if (status.ok()) status = give_info(info, out);
    return report(status, error);
}

gearkv_code gearkv_state_dims(const char* path, gearkv_layer_dims* out, uint32_t n_layers,
                              gearkv_error* error) {
    if (path == nullptr) return report(null_argument("path"), error);
    if (out == nullptr) return report(null_argument("out"), error);
    StateInfo info;
    if (Status status = inspect_state(path, &info); !status.ok()) return report(status, error);
    if (n_layers != info.config.n_layers) {
        return report(Status::error(Code::wrong_size, "room for the shapes of %u layers, the state has %u",
                                    n_layers, info.config.n_layers),
                      error);
    }
    for (std::uint32_t i = 0; i < n_layers; ++i) {
        const LayerDims dims = info.config.dims_of(i);
        out[i] = {dims.n_kv_heads, dims.key_dim, dims.value_dim};
    }
    return report({}, error);
}

gearkv_code gearkv_verify_state(const char* path, gearkv_executor* executor, gearkv_state_info* out,
                                gearkv_error* error) {
    if (path == nullptr) return report(null_argument("path"), error);
    if (Status status = check_output(out, "out"); !status.ok()) return report(status, error);
    StateInfo info;
    Status status = verify_state(path, cpp(executor), &info);
    if (status.ok()) status = give_info(info, out);
    return report(status, error);
}
