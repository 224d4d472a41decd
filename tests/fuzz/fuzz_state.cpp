// Any bytes as a saved cache: as they are, and with checksums made right, so that what lies behind these is
// met too. They come out of a file, and through a function in pieces of random lengths, which must be of one
// mind. What loads is attended, appended to, cut and saved again.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <vector>

#include <sys/mman.h>
#include <unistd.h>

#include "file/xxh64.hpp"
#include "format/state.hpp"
#include "gearkv/state.hpp"

using namespace gearkv;

namespace {

void seal(std::vector<std::uint8_t>* bytes) {
    if (bytes->size() < sizeof(StateHeader)) return;
    StateHeader header;
    std::memcpy(&header, bytes->data(), sizeof(header));
    const bool has_dims = header.version == state_dims_version;
    if (!has_dims) header.version = state_version;
    header.byte_order = state_byte_order;
    header.n_bytes = bytes->size();
    std::memcpy(header.magic, state_magic, sizeof(state_magic));
    const std::size_t dims_room = has_dims ? state_dims_bytes(header.n_layers) : 0;
    const std::size_t table_at = sizeof(header) + std::min(dims_room, bytes->size() - sizeof(header));
    const std::size_t most = (bytes->size() - table_at) / sizeof(StateSection);
    const std::size_t n = header.n_sections <= most ? header.n_sections : 0;
    for (std::size_t i = 0; i < n; ++i) {
        StateSection section;
        std::uint8_t* at = bytes->data() + table_at + i * sizeof(section);
        std::memcpy(&section, at, sizeof(section));
        if (section.offset > bytes->size() || section.n_bytes > bytes->size() - section.offset) continue;
        section.checksum = xxh64(bytes->data() + section.offset, section.n_bytes);
        std::memcpy(at, &section, sizeof(section));
    }
    header.table_checksum = xxh64(bytes->data() + table_at, n * sizeof(StateSection));
    if (has_dims && table_at == sizeof(header) + dims_room)
        header.dims_checksum = xxh64(bytes->data() + sizeof(header), header.n_layers * sizeof(LayerDims));
    header.checksum = xxh64(&header, offsetof(StateHeader, checksum));
    std::memcpy(bytes->data(), &header, sizeof(header));
}

void use(Cache* cache) {
    const CacheConfig& config = cache->config();
    for (std::uint32_t layer = 0; layer < config.n_layers; ++layer) {
        const LayerDims dims = config.dims_of(layer);
        if (!dims.has_keys()) continue;
        const std::vector<float> row(std::size_t{dims.n_kv_heads} * std::max(dims.key_dim, dims.value_dim),
                                     0.5f);
        const Rows keys = {row.data(), 0, dims.key_dim}, values = {row.data(), 0, dims.value_dim};
        std::vector<float> out(std::size_t{dims.n_kv_heads} * dims.value_dim);
        Queries queries = {row.data(), 0, dims.key_dim, 1, dims.n_kv_heads, 0.3f, true};
        if (config.latent) queries.latents = row.data();
        if (cache->n_tokens(layer) > 0 &&
            cache->attend(layer, queries, out.data(), out.size(), serial_executor()).ok()) {
            for (const float x : out) {
                if (std::isnan(x)) std::abort();
            }
        }
        if (cache->n_tokens(layer) + 130 <= config.max_tokens) {
            (void)cache->append(layer, keys, values, 130, serial_executor()).ok();
            (void)cache->compress(layer, serial_executor()).ok();
            (void)cache->attend(layer, queries, out.data(), out.size(), serial_executor()).ok();
        }
    }
    std::unique_ptr<Cache> fork;
    if (!cache->fork(&fork).ok()) return;
    (void)fork->shrink(0).ok();
    (void)fork->remove(2, 7).ok();
    (void)fork->truncate(20).ok();
}

// Of a token of any layer.
std::uint64_t most_floats(const CacheConfig& config) {
    std::uint64_t most = 0;
    for (std::uint32_t i = 0; i < config.n_layers; ++i) {
        const LayerDims dims = config.dims_of(i);
        most = std::max(most, dims.n_kv_heads * (std::uint64_t{dims.key_dim} + dims.value_dim));
    }
    return most;
}

// Gives the bytes in pieces, whose lengths follow from them.
struct Pieces {
    const std::uint8_t* bytes;
    std::size_t left;
    std::uint64_t random;

    Pieces(const std::uint8_t* from, std::size_t n_bytes)
        : bytes(from), left(n_bytes), random(xxh64(from, n_bytes)) {}
    static bool read(void* context, void* to, std::size_t n_bytes, std::size_t* n_read) {
        auto* self = static_cast<Pieces*>(context);
        self->random = self->random * 6364136223846793005u + 1442695040888963407u;
        const std::size_t most = std::size_t{1} << (self->random >> 60);
        const std::size_t n = std::min({n_bytes, self->left, most});
        if (n > 0) std::memcpy(to, self->bytes, n);
        self->bytes += n;
        self->left -= n;
        *n_read = n;
        return true;
    }
    ByteSource source() { return {read, this}; }
};

// The saved bytes, whole and of the first tokens.
void save_again(const Cache& cache) {
    for (const std::uint64_t n_tokens : {UINT64_MAX, cache.n_tokens(0) / 2}) {
        SaveOptions options;
        options.n_tokens = n_tokens;
        std::uint64_t n_bytes = 0;
        if (!state_bytes(cache, options, &n_bytes).ok()) continue;
        std::vector<std::uint8_t> bytes(n_bytes);
        std::size_t n_written = 0;
        const Status saved =
            save_state(cache, bytes.data(), bytes.size(), options, serial_executor(), &n_written);
        // A mapped block, looked at only now.
        if (saved.code() == Code::damaged || saved.code() == Code::bad_block) continue;
        if (!saved.ok() || n_written != n_bytes) std::abort();
        std::unique_ptr<Cache> again;
        Pieces pieces(bytes.data(), bytes.size());
        const Status status = load_state(pieces.source(), cache.config(), {}, serial_executor(), &again);
        if (!status.ok() || pieces.left != 0) std::abort();
    }
}

void load(const std::uint8_t* bytes, std::size_t n_bytes, bool later) {
    const int descriptor = memfd_create("state", 0);
    if (descriptor < 0) return;
    char path[64];
    std::snprintf(path, sizeof(path), "/proc/self/fd/%d", descriptor);
    if (write(descriptor, bytes, n_bytes) == static_cast<ssize_t>(n_bytes)) {
        StateInfo info;
        const Status inspected = inspect_state(path, &info);
        StateInfo verified;
        if (verify_state(path, serial_executor(), &verified).ok() && !inspected.ok()) std::abort();
        // No frequencies are in the file; a shape that takes gigabytes is not what is tested here.
        if (inspected.ok() && info.config.rope.n_pairs == 0 && info.config.n_layers <= 8 &&
            info.config.max_tokens <= 100000 && most_floats(info.config) <= 4096) {
            LoadOptions options;
            options.model = info.model;
            options.loading = later ? StateLoading::map : StateLoading::copy;
            options.checking = later ? StateChecking::on_first_use : StateChecking::all;
            std::unique_ptr<Cache> cache;
            const Status status = load_state(path, info.config, options, serial_executor(), &cache);
            if (status.ok() != (cache != nullptr)) std::abort();
            if (!status.ok() && status.message()[0] == '\0') std::abort();
            std::unique_ptr<Cache> streamed;
            Pieces pieces(bytes, n_bytes);
            options.loading = StateLoading::copy;
            options.checking = StateChecking::all;
            const Status in_stream =
                load_state(pieces.source(), info.config, options, serial_executor(), &streamed);
            if (!later && in_stream.code() != status.code()) std::abort();
            if (in_stream.ok() != (streamed != nullptr) || (in_stream.ok() && !status.ok())) std::abort();
            if (streamed != nullptr) use(streamed.get());
            if (cache != nullptr) save_again(*cache);
            if (cache != nullptr) use(cache.get());
        }
    }
    close(descriptor);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t n_bytes) {
    if (n_bytes > (1u << 20)) return 0;
    load(data, n_bytes, false);
    std::vector<std::uint8_t> sealed(data, data + n_bytes);
    seal(&sealed);
    load(sealed.data(), sealed.size(), n_bytes % 2 == 0);
    return 0;
}
