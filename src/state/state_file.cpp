#include "state/state_file.hpp"

#include <bit>
#include <cmath>
#include <cstring>

#include "cache/check.hpp"
#include "file/xxh64.hpp"
#include "format/trellis.hpp"

namespace gearkv {
namespace {

static_assert(std::endian::native == std::endian::little, "a state is read and written as it is in memory");

using Ull = unsigned long long;

bool all_zero(const void* bytes, std::size_t n) noexcept {
    const auto* at = static_cast<const unsigned char*>(bytes);
    unsigned char any = 0;
    for (std::size_t i = 0; i < n; ++i)
        any |= at[i];
    return any == 0;
}

// The exponent and one more overflow into the sign where it is all ones. In this form compilers make vectors
// of it.
template <class Word>
bool finite_words(const void* rows, std::uint64_t n_bytes, Word exponent, Word one) noexcept {
    const auto* x = static_cast<const Word*>(rows);
    Word any = 0;
    for (std::uint64_t i = 0; i < n_bytes / sizeof(Word); ++i)
        any = static_cast<Word>(any | ((x[i] & exponent) + one));
    return any >> (8 * sizeof(Word) - 1) == 0;
}

bool finite_rows(const void* rows, std::uint64_t n_bytes, bool is_float) noexcept {
    if (is_float) return finite_words<std::uint32_t>(rows, n_bytes, 0x7f800000u, 0x00800000u);
    return finite_words<std::uint16_t>(rows, n_bytes, 0x7c00u, 0x0400u);
}

Status check_checksum(const char* what, const void* bytes, std::uint64_t n_bytes, std::uint64_t expected) {
    const std::uint64_t found = xxh64(bytes, n_bytes);
    if (found == expected) return {};
    return Status::error(Code::damaged, "checksum %016llx of the %s, expected %016llx",
                         static_cast<Ull>(found), what, static_cast<Ull>(expected));
}

const char* name_of(std::uint32_t kind) noexcept {
    static constexpr const char* names[] = {"no section", "layer",        "key planes",   "value planes",
                                            "key sinks",  "value sinks",  "key profiles", "value profiles",
                                            "key block",  "value block",  "key buffer",   "value buffer",
                                            "queries",    "extra section"};
    return kind < std::size(names) ? names[kind] : "unknown section";
}

}  // namespace

// ---- header and table ----

Status StateFile::open(const char* path, StateFile* out) noexcept {
    MappedFile file;
    if (Status status = MappedFile::map(path, &file); !status.ok()) return status;
    if (Status status = open_bytes(file.bytes(), file.n_bytes(), out); !status.ok()) return status;
    out->file_ = std::move(file);
    return {};
}

Status StateFile::open_bytes(const void* bytes, std::uint64_t n_bytes, StateFile* out) noexcept {
    StateFile state;
    state.bytes_ = static_cast<const unsigned char*>(bytes);
    state.n_bytes_ = n_bytes;
    if (Status status = state.check_header(); !status.ok()) return status;
    *out = std::move(state);
    return {};
}

Status StateFile::check_header() noexcept {
    const std::uint64_t n_bytes = n_bytes_;
    if (n_bytes < sizeof(state_magic) || std::memcmp(bytes_, state_magic, sizeof(state_magic)) != 0) {
        return Status::error(Code::not_a_state, "the file does not start with GVKSTATE");
    }
    if (n_bytes < sizeof(StateHeader)) {
        return Status::error(Code::truncated, "file of %llu bytes, expected at least %zu",
                             static_cast<Ull>(n_bytes), sizeof(StateHeader));
    }
    const StateHeader& h = header();
    if (h.byte_order == __builtin_bswap32(state_byte_order)) {
        return Status::error(Code::other_byte_order,
                             "a file in the other byte order, expected little-endian");
    }
    // A newer version may have its checksum elsewhere.
    if (h.version != state_version)
        return Status::error(Code::bad_version, "state version %u, expected %u", h.version, state_version);
    if (Status status = check_checksum("header", &h, offsetof(StateHeader, checksum), h.checksum);
        !status.ok()) {
        return status;
    }
    if (h.byte_order != state_byte_order || h.block_version != block_version) {
        return Status::error(Code::bad_version,
                             "byte order %08x and blocks of version %u, expected %08x and %u", h.byte_order,
                             h.block_version, state_byte_order, block_version);
    }
    if (h.n_bytes != n_bytes) {
        return Status::error(n_bytes < h.n_bytes ? Code::truncated : Code::damaged,
                             "file of %llu bytes, its header says %llu", static_cast<Ull>(n_bytes),
                             static_cast<Ull>(h.n_bytes));
    }
    if (h.n_sections > (n_bytes - sizeof(StateHeader)) / sizeof(StateSection)) {
        return Status::error(Code::corrupt_state, "%u sections in a file of %llu bytes", h.n_sections,
                             static_cast<Ull>(n_bytes));
    }
    if (Status table = check_checksum("section table", sections(), h.n_sections * sizeof(StateSection),
                                      h.table_checksum);
        !table.ok()) {
        return table;
    }
    config_.n_layers = h.n_layers;
    config_.n_kv_heads = h.n_kv_heads;
    config_.key_dim = h.key_dim;
    config_.value_dim = h.value_dim;
    config_.max_tokens = h.max_tokens;
    config_.seed = h.seed;
    config_.spread_tokens = h.spread_tokens;
    if (h.spec[state_spec_chars - 1] != 0 || h.flags > 1 || h.rope_interleaved > 1 ||
        !all_zero(h.reserved, sizeof(h.reserved)) ||
        !all_zero(h.spec + std::strlen(h.spec), state_spec_chars - std::strlen(h.spec))) {
        return Status::error(Code::corrupt_state, "unknown flags, or something where zeros should be");
    }
    Status config = parse_spec(h.spec, &config_.spec);
    if (config.ok()) config = check_config(config_);
    if (!config.ok()) return Status::error(Code::corrupt_state, "%s", config.message());
    if (h.rope_pairs > h.key_dim / 2) {
        return Status::error(Code::corrupt_state, "%u rotated pairs of %u channels", h.rope_pairs, h.key_dim);
    }
    config_.rope.n_pairs = h.rope_pairs;
    config_.rope.interleaved = h.rope_interleaved != 0;
    return {};
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
                  {"KV heads", found.n_kv_heads, config.n_kv_heads},
                  {"key channels", found.key_dim, config.key_dim},
                  {"value channels", found.value_dim, config.value_dim},
                  {"rotated pairs", found.rope.n_pairs, config.rope.n_pairs}};
    for (const auto& field : fields) {
        if (field.found == field.expected) continue;
        return Status::error(Code::other_model, "the file has %llu %s, expected %llu",
                             static_cast<Ull>(field.found), field.name, static_cast<Ull>(field.expected));
    }
    if (config.rope.n_pairs > 0 &&
        (found.rope.interleaved != config.rope.interleaved ||
         file.header().rope_checksum !=
             xxh64(config.rope.frequencies, config.rope.n_pairs * sizeof(double)))) {
        return Status::error(Code::other_model, "keys were rotated with other frequencies or pairs");
    }
    if (!(file.model() == model)) {
        return Status::error(Code::other_model,
                             "the file is of another model (fingerprint %02x%02x%02x%02x..., "
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
    return Status::error(Code::other_codec, "the file holds %s%.60s, expected %s%.60s", before,
                         held + skipped, before, expected + skipped);
}

// ---- sections ----

StateBlock StateLayerSections::block(std::uint64_t i) const noexcept {
    const StateSection* key = blocks + 2 * i;
    return {key, key + 1, i > 0 && key[0].offset == key[-2].offset};
}

StateReader::StateReader(const StateFile& file, const CacheConfig& config, bool is_checked) noexcept
    : file_(file),
      config_(config),
      is_checked_(is_checked),
      place_(sizeof(StateHeader) + file.header().n_sections * sizeof(StateSection)) {}

const StateSection* StateReader::peek(StateKind kind, std::uint32_t layer) const noexcept {
    if (next_ == file_.header().n_sections) return nullptr;
    const StateSection& section = file_.sections()[next_];
    return section.kind == static_cast<std::uint32_t>(kind) && section.layer == layer ? &section : nullptr;
}

Status StateReader::take(const StateSection& section, bool repeats) noexcept {
    const std::uint64_t n_file = file_.header().n_bytes;
    if (section.reserved[0] != 0 || section.reserved[1] != 0) {
        return Status::error(Code::corrupt_state, "something in reserved fields of section %llu",
                             static_cast<Ull>(next_));
    }
    ++next_;
    if (repeats) return {};
    if (section.offset != place_ || section.n_bytes == 0 || section.n_bytes > n_file ||
        place_ > n_file - section.n_bytes) {
        return Status::error(Code::corrupt_state,
                             "%s of layer %u at %llu with %llu bytes, expected at %llu and "
                             "within %llu",
                             name_of(section.kind), section.layer, static_cast<Ull>(section.offset),
                             static_cast<Ull>(section.n_bytes), static_cast<Ull>(place_),
                             static_cast<Ull>(n_file));
    }
    const std::uint64_t end = place_ + section.n_bytes;
    place_ = round_up(end, state_alignment);
    if (place_ > n_file || !all_zero(file_.bytes(section) + section.n_bytes, place_ - end))
        return Status::error(Code::damaged, "something other than zeros behind the %s of layer %u",
                             name_of(section.kind), section.layer);
    return {};
}

Status StateReader::read(StateKind kind, std::uint32_t layer, std::uint64_t n_bytes,
                         const void** out) noexcept {
    const StateSection* section = peek(kind, layer);
    *out = nullptr;
    if (section == nullptr) return {};
    if (section->first != 0 || section->n_tokens != 0 || section->shift != 0 || section->n_bytes != n_bytes) {
        return Status::error(Code::corrupt_state, "%s of layer %u of %llu bytes, expected %llu",
                             name_of(section->kind), layer, static_cast<Ull>(section->n_bytes),
                             static_cast<Ull>(n_bytes));
    }
    if (Status status = take(*section, false); !status.ok()) return status;
    *out = file_.bytes(*section);
    return is_checked_ ? Status() : check_checksum(name_of(section->kind), *out, n_bytes, section->checksum);
}

Status StateReader::read_rows(StateKind kind, std::uint32_t layer, std::uint64_t n_tokens,
                              const void** out) noexcept {
    const TensorKind tensor =
        kind == StateKind::key_sinks || kind == StateKind::key_buffer ? TensorKind::key : TensorKind::value;
    const std::uint64_t n_bytes = buffer_bytes(config_, tensor, n_tokens);
    if (Status status = read(kind, layer, n_bytes, out); !status.ok()) return status;
    if ((*out == nullptr) != (n_tokens == 0)) {
        return Status::error(Code::corrupt_state, "layer %u has %s%s, expected those of %llu tokens", layer,
                             *out == nullptr ? "no " : "", name_of(static_cast<std::uint32_t>(kind)),
                             static_cast<Ull>(n_tokens));
    }
    const TensorSpec& spec = tensor == TensorKind::key ? config_.spec.key : config_.spec.value;
    if (*out != nullptr && !is_checked_ && !finite_rows(*out, n_bytes, spec.backbone == Backbone::raw32)) {
        return Status::error(Code::corrupt_state, "NaN or Inf in the %s of layer %u, expected finite",
                             name_of(static_cast<std::uint32_t>(kind)), layer);
    }
    return {};
}

Status StateReader::check_layer(std::uint32_t layer, const StateLayer& found) const noexcept {
    constexpr std::uint64_t most = std::uint64_t{1} << 31;
    const KvSpec& spec = config_.spec;
    const std::uint64_t counts[] = {found.n_sinks, found.n_forgotten, found.n_closed, found.n_buffered};
    std::uint64_t n_tokens = 0;
    for (const std::uint64_t n : counts)
        n_tokens += std::min(n, most);
    if (n_tokens >= most || found.n_sinks > spec.sink_tokens) {
        return Status::error(Code::corrupt_state,
                             "layer %u of %llu sinks, %llu forgotten, %llu closed and %llu buffered tokens, "
                             "expected at most %u sinks",
                             layer, static_cast<Ull>(found.n_sinks), static_cast<Ull>(found.n_forgotten),
                             static_cast<Ull>(found.n_closed), static_cast<Ull>(found.n_buffered),
                             spec.sink_tokens);
    }
    if (n_tokens > config_.max_tokens) {
        return Status::error(Code::capacity_exceeded, "layer %u holds %llu tokens, %llu are reserved", layer,
                             static_cast<Ull>(n_tokens), static_cast<Ull>(config_.max_tokens));
    }
    const std::uint32_t most_unit = std::max(max_unit_tokens / spec.buffer_tokens, 1u) * spec.buffer_tokens;
    if (found.pending_tokens > std::min<std::uint64_t>(found.n_buffered, most_unit) ||
        found.pending_tokens % spec.buffer_tokens != 0 || found.pending_appended > found.n_buffered ||
        found.flags > 7 || ((found.flags & 4) != 0 && found.n_forgotten == 0) || found.reserved != 0 ||
        found.exact_from > 2 * most) {
        return Status::error(Code::corrupt_state,
                             "layer %u compresses %u tokens for %u appended of %llu, with flags %u", layer,
                             found.pending_tokens, found.pending_appended, static_cast<Ull>(found.n_buffered),
                             found.flags);
    }
    if (spec.auto_bits != 0.0f && (file_.header().flags & 1) == 0 &&
        n_tokens != found.n_sinks + found.n_buffered) {
        return Status::error(Code::corrupt_state, "layer %u has blocks, and the rates are yet to be chosen",
                             layer);
    }
    KvSpec rates = spec;
    rates.key.rate = found.key_rate;
    rates.value.rate = found.value_rate;
    const KvSpec even = first_spec(config_, layer);
    const bool as_given = found.key_rate == even.key.rate && found.value_rate == even.value.rate;
    if (as_given || (spec.auto_bits != 0.0f && validate_spec(rates).ok())) return {};
    return Status::error(Code::corrupt_state, "layer %u of rates %g and %g", layer,
                         static_cast<double>(found.key_rate), static_cast<double>(found.value_rate));
}

Status StateReader::read_layer(std::uint32_t layer, StateLayerSections* out) noexcept {
    StateLayerSections found;
    const KvSpec even = first_spec(config_, layer);
    found.spec = even;
    const void* bytes = nullptr;
    Status status = read(StateKind::layer, layer, sizeof(StateLayer), &bytes);
    if (!status.ok() || bytes == nullptr) {
        found.layer.key_rate = even.key.rate;
        found.layer.value_rate = even.value.rate;
        *out = found;
        return status;
    }
    std::memcpy(&found.layer, bytes, sizeof(StateLayer));
    if (status = check_layer(layer, found.layer); !status.ok()) return status;
    found.spec.key.rate = found.layer.key_rate;
    found.spec.value.rate = found.layer.value_rate;
    for (const TensorKind kind : {TensorKind::key, TensorKind::value}) {
        const void** planes = &found.planes[static_cast<int>(kind)];
        const std::uint64_t n_bytes = (config_.n_kv_heads + std::uint64_t{1}) * sizeof(std::uint32_t);
        status = read(state_kind(StateKind::key_planes, kind), layer, n_bytes, planes);
        if (!status.ok()) return status;
        if (*planes == nullptr) continue;
        const TensorSpec& spec = kind == TensorKind::key ? found.spec.key : found.spec.value;
        const std::uint32_t most =
            section_planes(kind, config_.n_kv_heads,
                           kind == TensorKind::key ? config_.key_dim : config_.value_dim, spec.rate);
        const auto* starts = static_cast<const std::uint32_t*>(*planes);
        bool ascend = config_.spec.auto_bits != 0.0f && starts[0] == 0 && starts[config_.n_kv_heads] <= most;
        for (std::uint32_t i = 0; i < config_.n_kv_heads; ++i)
            ascend &= starts[i] <= starts[i + 1];
        if (!ascend) return Status::error(Code::corrupt_state, "planes of layer %u that cannot be", layer);
    }
    if ((found.planes[0] == nullptr) != (found.planes[1] == nullptr) ||
        (found.planes[0] == nullptr &&
         (found.layer.key_rate != even.key.rate || found.layer.value_rate != even.value.rate))) {
        return Status::error(Code::corrupt_state, "rates of layer %u without their planes", layer);
    }
    for (const TensorKind kind : {TensorKind::key, TensorKind::value}) {
        status = read_rows(state_kind(StateKind::key_sinks, kind), layer, found.layer.n_sinks,
                           &found.sinks[static_cast<int>(kind)]);
        if (!status.ok()) return status;
    }
    if (status = read_blocks(layer, &found); !status.ok()) return status;
    for (const TensorKind kind : {TensorKind::key, TensorKind::value}) {
        status = read_rows(state_kind(StateKind::key_buffer, kind), layer, found.layer.n_buffered,
                           &found.buffer[static_cast<int>(kind)]);
        if (!status.ok()) return status;
    }
    if (status = read_queries(layer, &found); !status.ok()) return status;
    *out = found;
    return {};
}

Status StateReader::check_block_header(std::uint32_t layer, const StateLayerSections& sections,
                                       TensorKind kind, const StateSection& section,
                                       bool first) const noexcept {
    const auto& header = *reinterpret_cast<const BlockHeader*>(file_.bytes(section));
    const TensorSpec& spec = kind == TensorKind::key ? sections.spec.key : sections.spec.value;
    if (section.n_bytes >= header_bytes && header.n_tokens > 0 && header.n_tokens <= max_block_tokens) {
        const auto is_like = [&](const BlockHeader& expected) {
            return std::memcmp(&header, &expected, sizeof(expected)) == 0 &&
                   header.n_bytes == section.n_bytes;
        };
        for (const bool prompt : {false, true}) {
            BlockHeader whole, reduced;
            if (!lay_out_unit(config_, spec, kind, {header.n_tokens, prompt, first}, &whole).ok()) continue;
            if (is_like(whole)) return {};
            for (const bool low_rank : {false, true}) {
                if (lay_out_reduced(whole, low_rank, &reduced) && is_like(reduced)) return {};
            }
        }
    }
    return Status::error(Code::corrupt_state, "a %s of layer %u with a header of another shape or codec",
                         name_of(section.kind), layer);
}

Status StateReader::read_blocks(std::uint32_t layer, StateLayerSections* out) noexcept {
    for (const TensorKind kind : {TensorKind::key, TensorKind::value}) {
        const TensorSpec& spec = kind == TensorKind::key ? out->spec.key : out->spec.value;
        const int i = static_cast<int>(kind);
        const std::uint32_t dim = kind == TensorKind::key ? config_.key_dim : config_.value_dim;
        out->profile_bytes[i] = profile_part_bytes(kind, config_.n_kv_heads, dim);
        Status status =
            read(state_kind(StateKind::key_profiles, kind), layer, out->profile_bytes[i], &out->profiles[i]);
        if (!status.ok()) return status;
        if (out->profiles[i] == nullptr) continue;
        BlockHeader header;
        if (spec.backbone != Backbone::trellis ||
            !lay_out_unit(config_, spec, kind, {config_.spec.buffer_tokens, false, false}, &header).ok())
            return Status::error(Code::corrupt_state, "profiles of layer %u, whose codec has none", layer);
        if (status = check_profiles(header, out->profiles[i]); !status.ok()) return status;
    }
    out->blocks = file_.sections() + next_;
    std::uint64_t n_closed = 0;
    for (; peek(StateKind::key_block, layer) != nullptr; ++out->n_blocks) {
        const StateSection& key = *peek(StateKind::key_block, layer);
        const bool repeats = out->n_blocks > 0 && key.offset == out->blocks[2 * (out->n_blocks - 1)].offset;
        if (Status status = take(key, repeats); !status.ok()) return status;
        const StateSection* value = peek(StateKind::value_block, layer);
        if (value == nullptr)
            return Status::error(Code::corrupt_state, "a key block of layer %u without values", layer);
        if (Status status = take(*value, repeats); !status.ok()) return status;
        if (repeats) {
            const StateSection* before = out->blocks + 2 * (out->n_blocks - 1);
            const bool same = key.n_bytes == before[0].n_bytes && key.checksum == before[0].checksum &&
                              value->offset == before[1].offset && value->n_bytes == before[1].n_bytes &&
                              value->checksum == before[1].checksum;
            if (!same || key.first < std::uint64_t{before[0].first} + before[0].n_tokens)
                return Status::error(Code::corrupt_state,
                                     "a block of layer %u cut in two pieces that do not fit", layer);
        } else {
            for (const TensorKind kind : {TensorKind::key, TensorKind::value}) {
                const bool first = out->n_blocks == 0 && out->profiles[static_cast<int>(kind)] == nullptr;
                Status status =
                    check_block_header(layer, *out, kind, kind == TensorKind::key ? key : *value, first);
                if (!status.ok()) return status;
            }
        }
        const std::uint32_t n_key = reinterpret_cast<const BlockHeader*>(file_.bytes(key))->n_tokens;
        const std::uint32_t n_value = reinterpret_cast<const BlockHeader*>(file_.bytes(*value))->n_tokens;
        constexpr std::int64_t most_shift = std::int64_t{1} << 31;
        if (n_key != n_value || key.first != value->first || key.n_tokens != value->n_tokens ||
            key.shift != value->shift || key.n_tokens == 0 || key.first > n_key ||
            key.n_tokens > n_key - key.first || key.shift > 0 || key.shift < -most_shift) {
            return Status::error(
                Code::corrupt_state,
                "a block of %u and %u tokens of layer %u that shows %u from %u, moved by %lld", n_key,
                n_value, layer, key.n_tokens, key.first, static_cast<long long>(key.shift));
        }
        n_closed += key.n_tokens;
    }
    if (n_closed == out->layer.n_closed) return {};
    return Status::error(Code::corrupt_state, "blocks of layer %u show %llu tokens, expected %llu", layer,
                         static_cast<Ull>(n_closed), static_cast<Ull>(out->layer.n_closed));
}

Status StateReader::check_blocks(const StateLayerSections& sections, Executor& executor) const noexcept {
    const auto look = [&](std::uint64_t i, TensorKind kind) {
        const auto section_of = [&](std::uint64_t at) -> const StateSection& {
            const StateBlock block = sections.block(at);
            return kind == TensorKind::key ? *block.key : *block.value;
        };
        BlockView view = trusted_block(file_.bytes(section_of(i)));
        if (view.trellis() && view.profiles == nullptr) {
            const auto* own = static_cast<const unsigned char*>(sections.profiles[static_cast<int>(kind)]);
            view.use_profiles(own != nullptr ? own : trusted_block(file_.bytes(section_of(0))).profiles);
        }
        return check_block(view, section_of(i).checksum);
    };
    const auto look_at_pair = [&](std::uint64_t i) {
        Status status = look(i, TensorKind::key);
        return status.ok() ? look(i, TensorKind::value) : status;
    };
    if (sections.n_blocks == 0) return {};
    if (Status status = look_at_pair(0); !status.ok()) return status;  // the others need its profiles
    std::atomic<std::uint64_t> bad{0};
    parallel_for(executor, sections.n_blocks - 1, [&](std::size_t i) {
        if (!sections.block(i + 1).repeats && !look_at_pair(i + 1).ok())
            bad.store(i + 1, std::memory_order_relaxed);
    });
    return bad > 0 ? look_at_pair(bad) : Status();
}

Status StateReader::read_queries(std::uint32_t layer, StateLayerSections* out) noexcept {
    const StateSection* section = peek(StateKind::queries, layer);
    if (section == nullptr) return {};
    StateQueries queries;
    const void* bytes = nullptr;
    if (section->n_bytes < sizeof(queries))
        return Status::error(Code::corrupt_state, "queries of layer %u of %llu bytes", layer,
                             static_cast<Ull>(section->n_bytes));
    if (Status status = read(StateKind::queries, layer, section->n_bytes, &bytes); !status.ok())
        return status;
    std::memcpy(&queries, bytes, sizeof(queries));
    const std::uint64_t row_bytes = std::uint64_t{config_.key_dim} * sizeof(float);
    const bool waits = config_.spec.auto_bits != 0.0f && (file_.header().flags & 1) == 0;
    bool right = waits && queries.n_queries >= 1 && queries.n_queries <= QuerySample::most_queries &&
                 queries.next < QuerySample::most_queries && queries.n_heads >= config_.n_kv_heads &&
                 queries.n_heads % config_.n_kv_heads == 0 && std::isfinite(queries.scale) &&
                 all_zero(queries.reserved, sizeof(queries.reserved)) &&
                 section->n_bytes - sizeof(queries) == row_bytes * queries.n_queries * queries.n_heads;
    for (std::uint32_t i = 0; i < QuerySample::most_queries; ++i)
        right &= queries.visible[i] <= (i < queries.n_queries ? std::uint64_t{1} << 31 : 0);
    if (!right || !finite_rows(static_cast<const unsigned char*>(bytes) + sizeof(queries),
                               section->n_bytes - sizeof(queries), true)) {
        return Status::error(Code::corrupt_state, "queries of layer %u that cannot be", layer);
    }
    out->queries = static_cast<const StateQueries*>(bytes);
    return {};
}

Status StateReader::read_extra(const StateSection** out) noexcept {
    *out = peek(StateKind::extra, 0);
    const void* bytes = nullptr;
    if (*out != nullptr) {
        Status status = read(StateKind::extra, 0, (*out)->n_bytes, &bytes);
        if (!status.ok()) return status;
    }
    if (next_ < file_.header().n_sections) {
        const StateSection& section = file_.sections()[next_];
        return Status::error(Code::corrupt_state, "%s of layer %u out of order", name_of(section.kind),
                             section.layer);
    }
    if (place_ != file_.header().n_bytes) {
        return Status::error(Code::corrupt_state, "sections end at %llu of %llu bytes",
                             static_cast<Ull>(place_), static_cast<Ull>(file_.header().n_bytes));
    }
    return {};
}

Status check_file(const StateFile& file, const CacheConfig& config, StateChecking checking,
                  Executor& executor, const StateSection** extra) noexcept {
    StateReader reader(file, config);
    for (std::uint32_t i = 0; i < file.header().n_layers; ++i) {
        StateLayerSections sections;
        Status status = reader.read_layer(i, &sections);
        if (status.ok() && checking == StateChecking::all) status = reader.check_blocks(sections, executor);
        if (!status.ok()) return status;
    }
    return reader.read_extra(extra);
}

}  // namespace gearkv
