#include "state/state_file.hpp"

#include <algorithm>
#include <bit>
#include <cstring>

#include "cache/check.hpp"
#include "cache/rules.hpp"
#include "file/xxh64.hpp"
#include "format/block.hpp"

namespace gearkv {
namespace {

static_assert(std::endian::native == std::endian::little, "a state is read and written as it is in memory");

using Ull = unsigned long long;

}  // namespace

bool all_zero(const void* bytes, std::size_t n) noexcept {
    const auto* at = static_cast<const unsigned char*>(bytes);
    unsigned char any = 0;
    for (std::size_t i = 0; i < n; ++i)
        any |= at[i];
    return any == 0;
}

Status check_checksum(const char* what, const void* bytes, std::uint64_t n_bytes,
                      std::uint64_t expected) noexcept {
    const std::uint64_t found = xxh64(bytes, n_bytes);
    if (found == expected) return {};
    return Status::error(Code::damaged, "checksum %016llx of the %s, expected %016llx",
                         static_cast<Ull>(found), what, static_cast<Ull>(expected));
}

Status StateFile::read_header(StateInput* input) noexcept {
    StateHeader h = {};
    std::uint64_t n_read = 0;
    if (Status status = input->read_some(&h, sizeof(h), &n_read); !status.ok()) return status;
    if (n_read < sizeof(state_magic) || std::memcmp(h.magic, state_magic, sizeof(state_magic)) != 0)
        return Status::error(Code::not_a_state, "the state does not start with GVKSTATE");
    if (n_read < sizeof(h)) {
        return Status::error(Code::truncated, "state of %llu bytes, expected at least %zu",
                             static_cast<Ull>(n_read), sizeof(h));
    }
    if (h.byte_order == __builtin_bswap32(state_byte_order)) {
        return Status::error(Code::other_byte_order,
                             "a state in the other byte order, expected little-endian");
    }
    // A newer version may have its checksum elsewhere.
    if (h.version != state_version && h.version != state_dims_version) {
        return Status::error(Code::bad_version, "state version %u, expected %u or %u", h.version,
                             state_version, state_dims_version);
    }
    if (Status status = check_checksum("header", &h, offsetof(StateHeader, checksum), h.checksum);
        !status.ok()) {
        return status;
    }
    if (h.byte_order != state_byte_order || h.block_version < 1 || h.block_version > block_version) {
        return Status::error(Code::bad_version,
                             "byte order %08x and blocks of version %u, expected %08x and 1 to %u",
                             h.byte_order, h.block_version, state_byte_order, block_version);
    }
    if (input->n_bytes() != StateInput::unknown && h.n_bytes != input->n_bytes()) {
        return Status::error(input->n_bytes() < h.n_bytes ? Code::truncated : Code::damaged,
                             "state of %llu bytes, its header says %llu", static_cast<Ull>(input->n_bytes()),
                             static_cast<Ull>(h.n_bytes));
    }
    if (h.n_bytes < sizeof(h) || h.n_bytes % state_alignment != 0 ||
        h.n_sections > (h.n_bytes - sizeof(h)) / sizeof(StateSection)) {
        return Status::error(Code::corrupt_state, "%u sections in a state of %llu bytes", h.n_sections,
                             static_cast<Ull>(h.n_bytes));
    }
    CacheConfig config;
    config.n_layers = h.n_layers;
    config.n_kv_heads = h.n_kv_heads;
    config.key_dim = h.key_dim;
    config.value_dim = h.value_dim;
    config.max_tokens = h.max_tokens;
    config.seed = h.seed;
    config.spread_tokens = h.spread_tokens;
    config.latent = (h.flags & 2) != 0;
    const bool has_dims = h.version == state_dims_version;
    if (h.spec[state_spec_chars - 1] != 0 || h.flags > 3 || h.rope_interleaved > 1 ||
        !all_zero(h.reserved, sizeof(h.reserved)) || (!has_dims && h.dims_checksum != 0) ||
        !all_zero(h.spec + std::strlen(h.spec), state_spec_chars - std::strlen(h.spec))) {
        return Status::error(Code::corrupt_state, "unknown flags, or something where zeros should be");
    }
    input->set_end(h.n_bytes);
    if (has_dims) {
        if (Status status = read_dims(h, input, &config); !status.ok()) return status;
    }
    Status sound = parse_spec(h.spec, &config.spec);
    if (sound.ok()) sound = check_config(config);
    if (sound.code() == Code::unavailable_spec) return sound;
    if (!sound.ok()) return Status::error(Code::corrupt_state, "%s", sound.message());
    for (std::uint32_t i = 0; i < h.n_layers; ++i) {
        const LayerDims dims = config.dims_of(i);
        if (!dims.has_keys() || h.rope_pairs <= dims.key_dim / 2) continue;
        return Status::error(Code::corrupt_state, "%u rotated pairs of %u channels", h.rope_pairs,
                             dims.key_dim);
    }
    config.rope.n_pairs = h.rope_pairs;
    config.rope.interleaved = h.rope_interleaved != 0;
    header_ = h;
    config_ = config;
    return {};
}

Status StateFile::read_dims(const StateHeader& header, StateInput* input, CacheConfig* config) noexcept {
    const std::uint32_t n = header.n_layers;
    const std::uint64_t n_bytes = n * sizeof(LayerDims), n_padded = state_dims_bytes(n);
    if (n < 2 || n > max_layers || n_padded > header.n_bytes - sizeof(header)) {
        return Status::error(Code::corrupt_state, "shapes of %u layers in a state of %llu bytes", n,
                             static_cast<Ull>(header.n_bytes));
    }
    const void* bytes = nullptr;
    if (Status status = input->fetch(n_padded, &bytes); !status.ok()) return status;
    input->keep();
    if (Status status = check_checksum("shapes of layers", bytes, n_bytes, header.dims_checksum);
        !status.ok())
        return status;
    if (!all_zero(static_cast<const unsigned char*>(bytes) + n_bytes, n_padded - n_bytes))
        return Status::error(Code::damaged, "something other than zeros behind the shapes of layers");
    config->dims = static_cast<const LayerDims*>(bytes);
    if (!is_uniform(*config)) return {};
    return Status::error(Code::corrupt_state, "version %u, and all layers of one shape", header.version);
}

Status StateFile::read_table(StateInput* input, std::uint64_t max_tokens) noexcept {
    // Every pair of blocks shows a token at least. A layer has 10 other sections.
    const std::uint64_t n = header_.n_sections, n_layers = header_.n_layers;
    if (n > 0 && (n - 1) / n_layers > 10 + 2 * max_tokens) {
        return Status::error(Code::capacity_exceeded,
                             "%llu sections of %llu layers, of which %llu tokens each are reserved",
                             static_cast<Ull>(n), static_cast<Ull>(n_layers), static_cast<Ull>(max_tokens));
    }
    const void* table = nullptr;
    const std::uint64_t n_bytes = n * sizeof(StateSection);
    if (Status status = input->fetch(n_bytes, &table); !status.ok()) return status;
    input->keep();
    sections_ = static_cast<const StateSection*>(table);
    return check_checksum("section table", table, n_bytes, header_.table_checksum);
}

ModelFingerprint StateFile::model() const noexcept {
    ModelFingerprint model;
    static_assert(sizeof(model.bytes) == state_model_bytes);
    std::memcpy(model.bytes, header().model, state_model_bytes);
    return model;
}

Status match_config(const StateFile& file, const CacheConfig& config,
                    const ModelFingerprint& model) noexcept {
    const CacheConfig& found = file.config();
    const struct {
        const char* name;
        std::uint64_t found, expected;
    } fields[] = {{"layers", found.n_layers, config.n_layers},
                  {"rotated pairs", found.rope.n_pairs, config.rope.n_pairs}};
    for (const auto& field : fields) {
        if (field.found == field.expected) continue;
        return Status::error(Code::other_model, "the state has %llu %s, expected %llu",
                             static_cast<Ull>(field.found), field.name, static_cast<Ull>(field.expected));
    }
    if (found.latent != config.latent) {
        return Status::error(Code::other_model, "the state has %s, expected %s",
                             found.latent ? "latents" : "values that are no keys",
                             config.latent ? "latents" : "values that are no keys");
    }
    for (std::uint32_t i = 0; i < config.n_layers; ++i) {
        const LayerDims held = found.dims_of(i), expected = config.dims_of(i);
        if (held == expected) continue;
        return Status::error(Code::other_model,
                             "layer %u of the state has %u KV heads of %u key and %u value channels, "
                             "expected %u of %u and %u",
                             i, held.n_kv_heads, held.key_dim, held.value_dim, expected.n_kv_heads,
                             expected.key_dim, expected.value_dim);
    }
    if (config.rope.n_pairs > 0 &&
        (found.rope.interleaved != config.rope.interleaved ||
         file.header().rope_checksum !=
             xxh64(config.rope.frequencies, config.rope.n_pairs * sizeof(double)))) {
        return Status::error(Code::other_model, "keys were rotated with other frequencies or pairs");
    }
    if (!(file.model() == model)) {
        return Status::error(Code::other_model,
                             "the state is of another model (fingerprint %02x%02x%02x%02x..., "
                             "expected %02x%02x%02x%02x...)",
                             file.model().bytes[0], file.model().bytes[1], file.model().bytes[2],
                             file.model().bytes[3], model.bytes[0], model.bytes[1], model.bytes[2],
                             model.bytes[3]);
    }
    if (found.spec == config.spec) return {};
    char expected[state_spec_chars] = {};
    (void)format_spec(config.spec, expected, sizeof(expected)).ok();
    // From a little before where they differ, when that is far behind.
    const char* held = file.header().spec;
    std::size_t skipped = 0;
    while (held[skipped] != '\0' && held[skipped] == expected[skipped])
        ++skipped;
    skipped -= std::min<std::size_t>(skipped, 40);
    const char* before = skipped > 0 ? "..." : "";
    return Status::error(Code::other_codec, "the state holds %s%.60s, expected %s%.60s", before,
                         held + skipped, before, expected + skipped);
}

}  // namespace gearkv
