#include "state/state_reader.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "cache/rope_in_use.hpp"
#include "format/spec.hpp"
#include "format/trellis.hpp"

namespace gearkv {
namespace {

using Ull = unsigned long long;

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

// Whether a layer of this SPEC begins with such rates: its own, or those its name once stood for.
bool begins_with(const KvSpec& spec, const StateLayer& found) noexcept {
    if (found.key_rate == spec.key.rate && found.value_rate == spec.value.rate) return true;
    return std::any_of(std::begin(presets), std::end(presets), [&](const Preset& preset) {
        return preset.bits == earlier_preset.bits && spec.key == trellis_spec(preset.key_rate) &&
               spec.value == trellis_spec(preset.value_rate) && found.key_rate == earlier_preset.key_rate &&
               found.value_rate == earlier_preset.value_rate;
    });
}

const char* name_of(std::uint32_t kind) noexcept {
    static constexpr const char* names[] = {
        "no section",   "layer",          "key planes", "value planes",      "key sinks",  "value sinks",
        "key profiles", "value profiles", "key block",  "value block",       "key buffer", "value buffer",
        "queries",      "extra section",  "rope",       "squares of queries"};
    return kind < std::size(names) ? names[kind] : "unknown section";
}

}  // namespace

StateBlock StateLayerSections::block(std::uint64_t i) const noexcept {
    const StateSection* key = blocks + 2 * i;
    return {key, key + 1, places + i, i > 0 && key[0].offset == key[-2].offset};
}

void StateReader::finish_layer() noexcept {
    for (std::uint64_t i = 0; i < n_places_; ++i) {
        if (places_[i].owner == nullptr) continue;
        const Memory memory = copies_->layers[layer_]->memory(&copies_->context);
        drop_block(memory, {places_[i].owner, nullptr, nullptr});
    }
    n_places_ = 0;
    input_->let_go();
}

const StateSection* StateReader::peek(StateKind kind, std::uint32_t layer) const noexcept {
    return is_at(next_, kind, layer) ? file_.sections() + next_ : nullptr;
}

bool StateReader::is_at(std::uint64_t i, StateKind kind, std::uint32_t layer) const noexcept {
    if (i >= file_.header().n_sections) return false;
    const StateSection& section = file_.sections()[i];
    return section.kind == static_cast<std::uint32_t>(kind) && section.layer == layer;
}

Status StateReader::check_reserved(const StateSection& section) const noexcept {
    if (section.reserved[0] == 0 && section.reserved[1] == 0) return {};
    return Status::error(Code::corrupt_state, "something in reserved fields of section %llu",
                         static_cast<Ull>(next_));
}

Status StateReader::take(const StateSection& section) noexcept {
    const std::uint64_t n_state = file_.header().n_bytes, place = input_->place();
    if (Status status = check_reserved(section); !status.ok()) return status;
    ++next_;
    if (section.offset == place && section.n_bytes > 0 && section.n_bytes <= n_state &&
        place <= n_state - section.n_bytes)
        return {};
    return Status::error(
        Code::corrupt_state, "%s of layer %u at %llu with %llu bytes, expected at %llu and within %llu",
        name_of(section.kind), section.layer, static_cast<Ull>(section.offset),
        static_cast<Ull>(section.n_bytes), static_cast<Ull>(place), static_cast<Ull>(n_state));
}

Status StateReader::pass_padding(const StateSection& section) noexcept {
    unsigned char zeros[state_alignment] = {};
    const std::uint64_t n = round_up(section.n_bytes, state_alignment) - section.n_bytes;
    if (Status status = input_->read(zeros, n); !status.ok()) return status;
    if (all_zero(zeros, sizeof(zeros))) return {};
    return Status::error(Code::damaged, "something other than zeros behind the %s of layer %u",
                         name_of(section.kind), section.layer);
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
    Status status = take(*section);
    if (status.ok()) status = input_->fetch(n_bytes, out);
    if (status.ok()) status = pass_padding(*section);
    return status.ok() ? check_checksum(name_of(section->kind), *out, n_bytes, section->checksum) : status;
}

Status StateReader::read_rows(StateKind kind, std::uint32_t layer, std::uint64_t n_tokens,
                              const void** out) noexcept {
    const TensorKind tensor =
        kind == StateKind::key_sinks || kind == StateKind::key_buffer ? TensorKind::key : TensorKind::value;
    const std::uint64_t n_bytes = buffer_bytes(config_, layer, tensor, n_tokens);
    if (Status status = read(kind, layer, n_bytes, out); !status.ok()) return status;
    if ((*out == nullptr) != (n_tokens == 0)) {
        return Status::error(Code::corrupt_state, "layer %u has %s%s, expected those of %llu tokens", layer,
                             *out == nullptr ? "no " : "", name_of(static_cast<std::uint32_t>(kind)),
                             static_cast<Ull>(n_tokens));
    }
    const TensorSpec& spec = tensor == TensorKind::key ? config_.spec.key : config_.spec.value;
    if (*out != nullptr && !finite_rows(*out, n_bytes, spec.backbone == Backbone::raw32)) {
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
        found.flags > 15 || ((found.flags & 4) != 0 && found.n_forgotten == 0) ||
        ((found.flags & 8) != 0 && n_tokens == 0) || found.reserved != 0 || found.exact_from > 2 * most) {
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
    if (begins_with(even, found) || (spec.auto_bits != 0.0f && validate_spec(rates).ok())) return {};
    return Status::error(Code::corrupt_state, "layer %u of rates %g and %g", layer,
                         static_cast<double>(found.key_rate), static_cast<double>(found.value_rate));
}

Status StateReader::read_layer(std::uint32_t layer, StateLayerSections* out) noexcept {
    finish_layer();
    layer_ = layer;
    StateLayerSections found;
    const KvSpec even = first_spec(config_, layer);
    const LayerDims dims = config_.dims_of(layer);
    found.spec = even;
    found.dims = dims;
    const void* bytes = nullptr;
    Status status;  // of a layer without keys no section is expected
    if (dims.has_keys()) status = read(StateKind::layer, layer, sizeof(StateLayer), &bytes);
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
        const std::uint64_t n_bytes = (dims.n_kv_heads + std::uint64_t{1}) * sizeof(std::uint32_t);
        status = read(state_kind(StateKind::key_planes, kind), layer, n_bytes, planes);
        if (!status.ok()) return status;
        if (*planes == nullptr) continue;
        const TensorSpec& spec = kind == TensorKind::key ? found.spec.key : found.spec.value;
        const std::uint32_t most = section_planes(kind, dims.n_kv_heads, dim_of(dims, kind), spec.rate);
        const auto* starts = static_cast<const std::uint32_t*>(*planes);
        bool ascend = config_.spec.auto_bits != 0.0f && starts[0] == 0 && starts[dims.n_kv_heads] <= most;
        for (std::uint32_t i = 0; i < dims.n_kv_heads; ++i)
            ascend &= starts[i] <= starts[i + 1];
        if (!ascend) return Status::error(Code::corrupt_state, "planes of layer %u that cannot be", layer);
    }
    if ((found.planes[0] == nullptr) != (found.planes[1] == nullptr) ||
        (found.planes[0] == nullptr && !begins_with(even, found.layer))) {
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
    if (status = read_rope(layer, &found); !status.ok()) return status;
    if (status = read_squares(layer, &found); !status.ok()) return status;
    *out = found;
    return {};
}

template <class IsLike>
bool StateReader::any_layout(const StateLayerSections& sections, TensorKind kind, std::uint32_t n_tokens,
                             const IsLike& is_like) const noexcept {
    const TensorSpec& spec = kind == TensorKind::key ? sections.spec.key : sections.spec.value;
    const bool first = sections.n_blocks == 0 && sections.profiles[static_cast<int>(kind)] == nullptr;
    if (n_tokens == 0 || n_tokens > max_block_tokens) return false;
    for (const bool prompt : {false, true}) {
        BlockHeader whole, reduced;
        if (!lay_out_unit(config_, sections.dims, spec, kind, {n_tokens, prompt, first}, &whole).ok())
            continue;
        if (is_like(whole)) return true;
        for (const bool low_rank : {false, true}) {
            if (lay_out_reduced(whole, low_rank, &reduced) && is_like(reduced)) return true;
        }
        while (lay_out_lower(whole, &whole)) {
            if (is_like(whole)) return true;
        }
    }
    return false;
}

Status StateReader::check_block_header(std::uint32_t layer, const StateLayerSections& sections,
                                       TensorKind kind, const StateSection& section,
                                       const BlockHeader& header) const noexcept {
    const auto is_like = [&](BlockHeader expected) {
        // A stream goes on in the present version where it began in an earlier one.
        const bool is_earlier = header.version == 1 || file_.header().block_version == 1;
        if (is_earlier) expected.version = 1;
        return std::memcmp(&header, &expected, sizeof(expected)) == 0 && header.n_bytes == section.n_bytes;
    };
    if (any_layout(sections, kind, header.n_tokens, is_like)) return {};
    return Status::error(Code::corrupt_state, "a %s of layer %u with a header of another shape or codec",
                         name_of(section.kind), layer);
}

// The next two sections, of which only that they are there is known.
Status StateReader::read_pair(std::uint32_t layer, const StateLayerSections& sections,
                              BlockPlace* out) noexcept {
    for (const std::uint64_t i : {next_, next_ + 1}) {
        if (file_.sections()[i].n_bytes >= header_bytes) continue;
        return Status::error(Code::corrupt_state, "a %s of layer %u of %llu bytes, expected at least %llu",
                             name_of(file_.sections()[i].kind), layer,
                             static_cast<Ull>(file_.sections()[i].n_bytes), static_cast<Ull>(header_bytes));
    }
    if (copies_ != nullptr) return copy_pair(layer, sections, out);
    for (const TensorKind kind : {TensorKind::key, TensorKind::value}) {
        const StateSection& section = file_.sections()[next_];
        const void*& bytes = kind == TensorKind::key ? out->key : out->value;
        Status status = take(section);
        if (status.ok()) status = input_->fetch(section.n_bytes, &bytes);
        if (status.ok()) status = pass_padding(section);
        if (!status.ok()) return status;
        const auto& header = *static_cast<const BlockHeader*>(bytes);
        if (status = check_block_header(layer, sections, kind, section, header); !status.ok()) return status;
    }
    return {};
}

// Memory is taken when the header of the keys has told of how many tokens, and the sizes of both are right.
Status StateReader::copy_pair(std::uint32_t layer, const StateLayerSections& sections,
                              BlockPlace* out) noexcept {
    const StateSection& key = file_.sections()[next_];
    const StateSection& value = file_.sections()[next_ + 1];
    BlockHeader header;
    if (Status status = take(key); !status.ok()) return status;
    if (Status status = input_->read(&header, sizeof(header)); !status.ok()) return status;
    Status status = check_block_header(layer, sections, TensorKind::key, key, header);
    if (!status.ok()) return status;
    if (!any_layout(sections, TensorKind::value, header.n_tokens,
                    [&](const BlockHeader& expected) { return expected.n_bytes == value.n_bytes; })) {
        return Status::error(Code::corrupt_state, "a value block of layer %u of %llu bytes for %u tokens",
                             layer, static_cast<Ull>(value.n_bytes), header.n_tokens);
    }
    NewBlock copy;
    const Memory memory = copies_->layers[layer]->memory(&copies_->context);
    if (!take_block(memory, key.n_bytes, value.n_bytes, &copy))
        return memory_error(copies_->context, "for a block of layer %u of a state", layer);
    *out = {copy.key, copy.value, copy.owner};
    std::memcpy(copy.key, &header, sizeof(header));
    status =
        input_->read(static_cast<unsigned char*>(copy.key) + sizeof(header), key.n_bytes - sizeof(header));
    if (status.ok()) status = pass_padding(key);
    if (status.ok()) status = take(value);
    if (status.ok()) status = input_->read(copy.value, value.n_bytes);
    if (status.ok()) status = pass_padding(value);
    if (!status.ok()) return status;
    return check_block_header(layer, sections, TensorKind::value, value,
                              *static_cast<const BlockHeader*>(copy.value));
}

Status StateReader::read_blocks(std::uint32_t layer, StateLayerSections* out) noexcept {
    for (const TensorKind kind : {TensorKind::key, TensorKind::value}) {
        const TensorSpec& spec = kind == TensorKind::key ? out->spec.key : out->spec.value;
        const int i = static_cast<int>(kind);
        out->profile_bytes[i] =
            profile_part_bytes(coded_as(config_, kind), out->dims.n_kv_heads, dim_of(out->dims, kind));
        Status status =
            read(state_kind(StateKind::key_profiles, kind), layer, out->profile_bytes[i], &out->profiles[i]);
        if (!status.ok()) return status;
        if (out->profiles[i] == nullptr) continue;
        BlockHeader header;
        if (spec.backbone != Backbone::trellis ||
            !lay_out_unit(config_, out->dims, spec, kind, {config_.spec.buffer_tokens, false, false}, &header)
                 .ok())
            return Status::error(Code::corrupt_state, "profiles of layer %u, whose codec has none", layer);
        if (status = check_profiles(header, out->profiles[i]); !status.ok()) return status;
    }
    out->blocks = file_.sections() + next_;
    std::uint64_t n_pairs = 0;
    for (; is_at(next_ + 2 * n_pairs, StateKind::key_block, layer); ++n_pairs) {
        if (!is_at(next_ + 2 * n_pairs + 1, StateKind::value_block, layer))
            return Status::error(Code::corrupt_state, "a key block of layer %u without values", layer);
    }
    if (n_pairs > 0) {
        const std::uint64_t n_bytes = n_pairs * sizeof(BlockPlace);
        places_ = static_cast<BlockPlace*>(input_->allocate(n_bytes));
        if (places_ == nullptr)
            return Status::error(Code::out_of_memory, "no %llu bytes for the places of blocks of layer %u",
                                 static_cast<Ull>(n_bytes), layer);
        out->places = places_;
    }
    std::uint64_t n_closed = 0;
    for (; out->n_blocks < n_pairs; ++out->n_blocks) {
        const StateSection& key = file_.sections()[next_];
        const StateSection& value = file_.sections()[next_ + 1];
        const bool repeats = out->n_blocks > 0 && key.offset == out->blocks[2 * (out->n_blocks - 1)].offset;
        BlockPlace* place = new (places_ + n_places_++) BlockPlace;
        if (repeats) {
            for (const StateSection* section : {&key, &value}) {
                if (Status status = check_reserved(*section); !status.ok()) return status;
                ++next_;
            }
            const StateSection* before = out->blocks + 2 * (out->n_blocks - 1);
            const bool same = key.n_bytes == before[0].n_bytes && key.checksum == before[0].checksum &&
                              value.offset == before[1].offset && value.n_bytes == before[1].n_bytes &&
                              value.checksum == before[1].checksum;
            if (!same || key.first < std::uint64_t{before[0].first} + before[0].n_tokens)
                return Status::error(Code::corrupt_state,
                                     "a block of layer %u cut in two pieces that do not fit", layer);
            *place = {place[-1].key, place[-1].value, nullptr};
        } else if (Status status = read_pair(layer, *out, place); !status.ok()) {
            return status;
        }
        const std::uint32_t n_key = static_cast<const BlockHeader*>(place->key)->n_tokens;
        const std::uint32_t n_value = static_cast<const BlockHeader*>(place->value)->n_tokens;
        constexpr std::int64_t most_shift = std::int64_t{1} << 31;
        if (n_key != n_value || key.first != value.first || key.n_tokens != value.n_tokens ||
            key.shift != value.shift || key.n_tokens == 0 || key.first > n_key ||
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
        const bool of_keys = kind == TensorKind::key;
        const auto bytes_of = [&](std::uint64_t at) {
            return of_keys ? sections.places[at].key : sections.places[at].value;
        };
        BlockView view = trusted_block(bytes_of(i));
        if (view.trellis() && view.profiles == nullptr) {
            const auto* own = static_cast<const unsigned char*>(sections.profiles[static_cast<int>(kind)]);
            view.use_profiles(own != nullptr ? own : trusted_block(bytes_of(0)).profiles);
        }
        const StateBlock block = sections.block(i);
        return check_block(view, of_keys ? block.key->checksum : block.value->checksum);
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
    const LayerDims& dims = out->dims;
    const std::uint64_t row_bytes = std::uint64_t{dims.key_dim} * sizeof(float);
    const bool waits = config_.spec.auto_bits != 0.0f && (file_.header().flags & 1) == 0;
    bool right = waits && queries.n_queries >= 1 && queries.n_queries <= QuerySample::most_queries &&
                 queries.next < QuerySample::most_queries && queries.n_heads >= dims.n_kv_heads &&
                 queries.n_heads % dims.n_kv_heads == 0 && std::isfinite(queries.scale) &&
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

Status StateReader::read_rope(std::uint32_t layer, StateLayerSections* out) noexcept {
    const StateSection* section = peek(StateKind::rope, layer);
    if (section == nullptr) return {};
    const auto wrong = [&] {
        return Status::error(Code::corrupt_state, "a rope of layer %u that cannot be", layer);
    };
    StateRope rope;
    const std::uint64_t n_bytes = section->n_bytes;
    if (n_bytes < sizeof(rope) || n_bytes > sizeof(rope) + out->dims.key_dim / 2 * sizeof(double))
        return wrong();
    const void* bytes = nullptr;
    if (Status status = read(StateKind::rope, layer, n_bytes, &bytes); !status.ok()) return status;
    std::memcpy(&rope, bytes, sizeof(rope));
    const auto* frequencies = reinterpret_cast<const double*>(static_cast<const StateRope*>(bytes) + 1);
    if ((out->layer.flags & 8) == 0 || rope.interleaved > 1 ||
        !all_zero(rope.reserved, sizeof(rope.reserved)) ||
        n_bytes - sizeof(rope) != rope.n_pairs * sizeof(double) ||
        !std::all_of(frequencies, frequencies + rope.n_pairs, is_frequency))
        return wrong();
    out->rope = static_cast<const StateRope*>(bytes);
    return {};
}

Status StateReader::read_squares(std::uint32_t layer, StateLayerSections* out) noexcept {
    const StateSection* section = peek(StateKind::squares, layer);
    if (section == nullptr) return {};
    const auto wrong = [&] {
        return Status::error(Code::corrupt_state, "squares of queries of layer %u that cannot be", layer);
    };
    const std::uint64_t n_channels = std::uint64_t{out->dims.n_kv_heads} * out->dims.key_dim;
    const std::uint64_t row_bytes = sizeof(StateSquareRow) + n_channels * sizeof(float);
    const std::uint64_t n_bytes = section->n_bytes;
    const std::uint64_t rest = sizeof(StateSquares) + n_channels * sizeof(double);
    if (n_bytes < rest || out->spec.key.backbone != Backbone::trellis) return wrong();
    const void* bytes = nullptr;
    if (Status status = read(StateKind::squares, layer, n_bytes, &bytes); !status.ok()) return status;
    const auto* squares = static_cast<const StateSquares*>(bytes);
    const StateLayer& found = out->layer;
    const std::uint64_t n_tokens = found.n_sinks + found.n_forgotten + found.n_closed + found.n_buffered;
    constexpr std::uint64_t most = std::uint64_t{1} << 32;
    if (!all_zero(squares->reserved, sizeof(squares->reserved)) || squares->n_summed > most ||
        squares->n_rows > n_tokens || n_bytes - rest != squares->n_rows * row_bytes)
        return wrong();
    const auto* sum = reinterpret_cast<const double*>(squares + 1);
    const auto is_square = [](double x) { return std::isfinite(x) && x >= 0.0; };
    if (!std::all_of(sum, sum + n_channels, is_square)) return wrong();
    const auto* rows = reinterpret_cast<const StateSquareRow*>(sum + n_channels);
    for (std::uint64_t i = 0; i < squares->n_rows; ++i) {
        const StateSquareRow& row = rows[i];
        if (row.seen <= row.token || row.seen > n_tokens || row.weight == 0 || row.weight > most ||
            (i > 0 && row.token <= rows[i - 1].token))
            return wrong();
    }
    const auto* levels = reinterpret_cast<const float*>(rows + squares->n_rows);
    if (!std::all_of(levels, levels + squares->n_rows * n_channels, is_square)) return wrong();
    out->squares = squares;
    return {};
}

Status StateReader::read_extra(std::uint64_t room, const void** bytes, std::uint64_t* n_bytes) noexcept {
    finish_layer();
    const StateSection* extra = peek(StateKind::extra, 0);
    *bytes = nullptr;
    *n_bytes = 0;
    if (extra != nullptr) {
        if (extra->n_bytes > room && extra->n_bytes <= file_.header().n_bytes) {
            return Status::error(Code::wrong_size, "%llu extra bytes, there is room for %llu",
                                 static_cast<Ull>(extra->n_bytes), static_cast<Ull>(room));
        }
        Status status = read(StateKind::extra, 0, extra->n_bytes, bytes);
        if (!status.ok()) return status;
        *n_bytes = extra->n_bytes;
    }
    if (next_ < file_.header().n_sections) {
        const StateSection& section = file_.sections()[next_];
        return Status::error(Code::corrupt_state, "%s of layer %u out of order", name_of(section.kind),
                             section.layer);
    }
    if (input_->place() != file_.header().n_bytes) {
        return Status::error(Code::corrupt_state, "sections end at %llu of %llu bytes",
                             static_cast<Ull>(input_->place()), static_cast<Ull>(file_.header().n_bytes));
    }
    return {};
}

Status check_state(const StateFile& file, StateInput* input, const CacheConfig& config,
                   Executor& executor) noexcept {
    StateReader reader(file, input, config, nullptr);
    for (std::uint32_t i = 0; i < file.header().n_layers; ++i) {
        StateLayerSections sections;
        Status status = reader.read_layer(i, &sections);
        if (status.ok()) status = reader.check_blocks(sections, executor);
        if (!status.ok()) return status;
    }
    const void* extra = nullptr;
    std::uint64_t n_extra = 0;
    return reader.read_extra(UINT64_MAX, &extra, &n_extra);
}

}  // namespace gearkv
