// Checks a spec and writes its SPEC; see gearkv/config.hpp. Nothing here allocates or depends on the locale.
#include <algorithm>
#include <charconv>
#include <cstdio>

#include "../arch/float_mode.hpp"
#include "format/built.hpp"
#include "format/spec.hpp"

namespace gearkv {
namespace {

// ---- writing ----

// Text into a buffer that may be too short; keeps counting.
class SpecWriter {
  public:
    SpecWriter(char* text, std::size_t n_chars) noexcept : text_(text), n_chars_(n_chars) {}
    void add(std::string_view word) noexcept {
        for (const char c : word) {
            if (n_ + 1 < n_chars_) text_[n_] = c;
            ++n_;
        }
    }
    template <class Number>
    void add_number(Number number) noexcept {
        char digits[32];
        const auto [end, error] = std::to_chars(digits, digits + sizeof(digits), number);
        add({digits, static_cast<std::size_t>(end - digits)});
    }
    // False when the text did not fit.
    bool finish() noexcept {
        if (n_chars_ > 0) text_[std::min(n_, n_chars_ - 1)] = '\0';
        return n_ < n_chars_;
    }
    std::size_t n() const noexcept { return n_; }

  private:
    char* text_;
    std::size_t n_chars_;
    std::size_t n_ = 0;
};

// `preset` names both tensors at once; with `both`, what they share is written too.
void write_tensor(const TensorSpec& spec, const KvSpec* both, const Preset* preset,
                  SpecWriter* out) noexcept {
    const bool is_auto = both != nullptr && both->auto_bits != 0.0f;
    char separator = is_auto ? ',' : ':';
    const auto option = [&](std::string_view name, auto number) {
        out->add({&separator, 1});
        out->add(name);
        out->add_number(number);
        separator = ',';
    };
    if (is_auto) {
        out->add("auto:");
        out->add_number(both->auto_bits);
    } else if (preset != nullptr) {
        out->add("gear-");
        out->add_number(static_cast<unsigned>(preset->bits));
    } else if (spec.raw()) {
        out->add(spec.backbone == Backbone::raw32 ? "f32" : "f16");
    } else if (spec.backbone == Backbone::trellis) {
        out->add("trellis-");
        out->add_number(spec.rate);
    } else {
        const bool low_rank = spec.rank_prompt != 0 || spec.rank_decode != 0;
        const bool outliers = low_rank && spec.sparsity != 0.0f;
        for (const Family& family : families) {
            if (family.backbone != spec.backbone || family.low_rank != low_rank ||
                family.outliers != outliers)
                continue;
            if (family.prefix == "gear-") out->add("paper:");
            out->add(family.prefix);
        }
        out->add_number(static_cast<unsigned>(spec.bits));
        if (spec.group != TensorSpec().group) option("g=", spec.group);
        if (low_rank && spec.rank_prompt != default_rank_prompt) option("r=", spec.rank_prompt);
        if (low_rank && spec.rank_decode != std::min(default_rank_decode, spec.rank_prompt))
            option("rg=", spec.rank_decode);
        if (spec.sparsity != (outliers ? default_sparsity : 0.0f)) option("s=", spec.sparsity);
    }
    if (both == nullptr) return;
    const bool trellis = has_trellis(*both);
    if (both->buffer_tokens != default_buffer(trellis)) option("nb=", both->buffer_tokens);
    if (both->sink_tokens != default_sinks(trellis)) option("sinks=", both->sink_tokens);
    if (both->recent_tokens != 0) option("recent=", both->recent_tokens);
}

const Preset* find_preset(const TensorSpec& key, const TensorSpec& value) noexcept {
    for (const Preset& preset : presets) {
        if (key == trellis_spec(preset.key_rate) && value == trellis_spec(preset.value_rate)) return &preset;
    }
    return nullptr;
}

// `both` as in write_tensor.
void write_pair(const TensorSpec& key, const TensorSpec& value, const KvSpec* both,
                SpecWriter* out) noexcept {
    const Preset* preset = find_preset(key, value);
    if (preset != nullptr || (both != nullptr && both->auto_bits != 0.0f) || key == value) {
        write_tensor(key, both, preset, out);
    } else {
        out->add("k=");
        write_tensor(key, both, nullptr, out);
        out->add(";v=");
        write_tensor(value, nullptr, nullptr, out);
    }
}

// What names the layers of a rule.
void write_layers(const LayerRule& rule, SpecWriter* out) noexcept {
    out->add(rule.edge_layers > 0 ? "edge-" : "layers-");
    out->add_number(rule.edge_layers > 0 ? rule.edge_layers : rule.first);
    if (rule.first == rule.last) return;
    out->add("-");
    out->add_number(rule.last);
}

void write_spec(const KvSpec& spec, SpecWriter* out) noexcept {
    write_pair(spec.key, spec.value, &spec, out);
    for (std::uint32_t i = 0; i < spec.n_layer_rules; ++i) {
        const LayerRule& rule = spec.layer_rules[i];
        out->add(";");
        write_layers(rule, out);
        out->add("=");
        write_pair(rule.key, rule.value, nullptr, out);
    }
}

// ---- checking ----

Status validate_trellis(const TensorSpec& spec, const char* name, float most) noexcept {
    if (spec.bits != 0 || spec.rank_prompt != 0 || spec.rank_decode != 0 || spec.sparsity != 0.0f) {
        return Status::error(
            Code::bad_spec,
            "%s are a trellis with %u bits, ranks %u and %u, sparsity %g, expected a rate and 0 for these",
            name, spec.bits, spec.rank_prompt, spec.rank_decode, static_cast<double>(spec.sparsity));
    }
    if (spec.rate >= least_rate && spec.rate <= most) return {};
    return Status::error(Code::bad_spec, "%s have a rate of %g bits, expected %g to %g", name,
                         static_cast<double>(spec.rate), static_cast<double>(least_rate),
                         static_cast<double>(most));
}

Status validate_tensor(const TensorSpec& spec, const char* name) noexcept {
    if (spec.backbone == Backbone::none)
        return Status::error(Code::bad_spec, "%s have no SPEC, expected one from parse_spec", name);
    if (spec.raw()) {
        const int bits = spec.backbone == Backbone::raw32 ? 32 : 16;
        if (spec.bits == bits && spec.rank_prompt == 0 && spec.rank_decode == 0 && spec.sparsity == 0.0f)
            return {};
        return Status::error(Code::bad_spec,
                             "%s are uncompressed with %u bits, ranks %u and %u, sparsity %g, expected "
                             "%d bits and nothing else",
                             name, spec.bits, spec.rank_prompt, spec.rank_decode,
                             static_cast<double>(spec.sparsity), bits);
    }
    if (spec.backbone != Backbone::kivi && spec.backbone != Backbone::kcvt &&
        spec.backbone != Backbone::token) {
        return Status::error(Code::bad_spec, "backbone of %s is %u, expected 0 to 5", name,
                             static_cast<unsigned>(spec.backbone));
    }
    if (!has_codes) {
        return Status::error(Code::unavailable_spec,
                             "%s are %s, which is not built in (specs=trellis), expected gear-1 to gear-4, "
                             "auto:BITS, trellis-RATE, f16 or f32",
                             name,
                             spec.backbone == Backbone::kivi   ? "kivi"
                             : spec.backbone == Backbone::kcvt ? "kcvt"
                                                               : "token");
    }
    if (spec.bits != 2 && spec.bits != 3 && spec.bits != 4 && spec.bits != 8) {
        return Status::error(Code::bad_spec, "%s have %u bits, expected 2, 3, 4 or 8", name, spec.bits);
    }
    if (spec.group < 32 || spec.group > max_group || spec.group % 32 != 0) {
        return Status::error(Code::bad_spec, "group of %s is %u, expected a multiple of 32 from 32 to %u",
                             name, spec.group, max_group);
    }
    if (spec.rank_prompt > max_spec_rank || spec.rank_decode > max_spec_rank) {
        return Status::error(Code::bad_spec, "ranks of %s are %u and %u, expected at most %u", name,
                             spec.rank_prompt, spec.rank_decode, max_spec_rank);
    }
    if (!(spec.sparsity >= 0.0f && spec.sparsity < 1.0f)) {
        return Status::error(Code::bad_spec, "sparsity of %s is %g, expected from 0 to below 1", name,
                             static_cast<double>(spec.sparsity));
    }
    return {};
}

Status validate_pair(const TensorSpec& key, const TensorSpec& value, const char* keys, const char* values,
                     std::uint32_t buffer_tokens) noexcept {
    Status status = key.backbone == Backbone::trellis ? validate_trellis(key, keys, most_key_rate)
                                                      : validate_tensor(key, keys);
    if (!status.ok()) return status;
    status = value.backbone == Backbone::trellis ? validate_trellis(value, values, most_value_rate)
                                                 : validate_tensor(value, values);
    if (!status.ok() || key.backbone != Backbone::kivi || buffer_tokens % key.group == 0) return status;
    return Status::error(Code::bad_spec, "buffer of %u tokens, expected a multiple of %u, the group of %s",
                         buffer_tokens, key.group, keys);
}

Status validate_rule(const KvSpec& spec, std::uint32_t i) noexcept {
    const LayerRule& rule = spec.layer_rules[i];
    if (rule.edge_layers > 0 && (rule.edge_layers > max_edge_layers || rule.first != 0 || rule.last != 0)) {
        return Status::error(Code::bad_spec,
                             "rule %u for %u edge layers and %u to %u, expected at most %u and 0 to 0", i,
                             rule.edge_layers, rule.first, rule.last, max_edge_layers);
    }
    if (rule.first > rule.last || rule.last > max_rule_layer) {
        return Status::error(Code::bad_spec, "rule %u for layers %u to %u, expected them in order up to %u",
                             i, rule.first, rule.last, max_rule_layer);
    }
    char layers[24], keys[40], values[40];
    SpecWriter writer(layers, sizeof(layers));
    write_layers(rule, &writer);
    writer.finish();
    std::snprintf(keys, sizeof(keys), "keys of %s", layers);
    std::snprintf(values, sizeof(values), "values of %s", layers);
    const auto is_float = [](const TensorSpec& tensor) { return tensor.backbone == Backbone::raw32; };
    const bool keys_differ = is_float(rule.key) != is_float(spec.key);
    if (keys_differ || is_float(rule.value) != is_float(spec.value)) {
        return Status::error(Code::bad_spec, "%s %s f32 unlike the others, expected it in all or none",
                             keys_differ ? keys : values,
                             is_float(keys_differ ? rule.key : rule.value) ? "are" : "are not");
    }
    return validate_pair(rule.key, rule.value, keys, values, spec.buffer_tokens);
}

Status validate_rules(const KvSpec& spec) noexcept {
    if (spec.n_layer_rules > max_layer_rules) {
        return Status::error(Code::bad_spec, "%u rules for layers, expected at most %u", spec.n_layer_rules,
                             max_layer_rules);
    }
    if (spec.n_layer_rules > 0 && spec.auto_bits != 0.0f)
        return Status::error(Code::bad_spec, "rules for layers beside auto, which chooses for every layer");
    for (std::uint32_t i = 0; i < max_layer_rules; ++i) {
        if (i >= spec.n_layer_rules && spec.layer_rules[i] == LayerRule()) continue;
        if (i >= spec.n_layer_rules) {
            return Status::error(Code::bad_spec, "rule %u for layers is set, expected those in use only, %u",
                                 i, spec.n_layer_rules);
        }
        if (Status status = validate_rule(spec, i); !status.ok()) return status;
    }
    return {};
}

}  // namespace

Status validate_spec(const KvSpec& spec) noexcept {
    const bool keys_are_trellis = spec.key.backbone == Backbone::trellis;
    const bool values_are_trellis = spec.value.backbone == Backbone::trellis;
    Status status = validate_pair(spec.key, spec.value, "keys", "values", spec.buffer_tokens);
    if (status.ok()) status = validate_rules(spec);
    if (!status.ok()) return status;
    if (spec.auto_bits != 0.0f && !(keys_are_trellis && values_are_trellis)) {
        return Status::error(Code::bad_spec,
                             "auto:%g with a backbone of keys of %u and of values of %u, expected 5",
                             static_cast<double>(spec.auto_bits), static_cast<unsigned>(spec.key.backbone),
                             static_cast<unsigned>(spec.value.backbone));
    }
    if (spec.auto_bits != 0.0f && !(spec.auto_bits >= least_auto_bits && spec.auto_bits <= most_auto_bits)) {
        return Status::error(Code::bad_spec, "auto of %g bits, expected %g to %g",
                             static_cast<double>(spec.auto_bits), static_cast<double>(least_auto_bits),
                             static_cast<double>(most_auto_bits));
    }
    if (spec.buffer_tokens < 1 || spec.buffer_tokens > max_buffer_tokens) {
        return Status::error(Code::bad_spec, "buffer of %u tokens, expected 1 to %u", spec.buffer_tokens,
                             max_buffer_tokens);
    }
    if (spec.sink_tokens > max_sink_tokens) {
        return Status::error(Code::bad_spec, "%u sink tokens, expected at most %u", spec.sink_tokens,
                             max_sink_tokens);
    }
    if (spec.recent_tokens > max_recent_tokens) {
        return Status::error(Code::bad_spec, "%u recent tokens, expected at most %u", spec.recent_tokens,
                             max_recent_tokens);
    }
    if (has_trellis(spec) && spec.buffer_tokens % trellis_buffer_tokens != 0) {
        return Status::error(Code::bad_spec,
                             "buffer of %u tokens, expected a multiple of %u, the section of a trellis",
                             spec.buffer_tokens, trellis_buffer_tokens);
    }
    SpecWriter counter(nullptr, 0);
    write_spec(spec, &counter);
    if (counter.n() < max_spec_chars) return {};
    return Status::error(Code::bad_spec, "a SPEC of %zu characters, expected rules for layers of at most %zu",
                         counter.n(), max_spec_chars - 1);
}

Status format_spec(const KvSpec& spec, char* text, std::size_t n_chars) noexcept {
    const FloatMode mode;
    if (text == nullptr) return Status::error(Code::invalid_argument, "text is null");
    if (Status status = validate_spec(spec); !status.ok()) return status;
    SpecWriter writer(text, n_chars);
    write_spec(spec, &writer);
    if (writer.finish()) return {};
    return Status::error(Code::wrong_size, "room for %zu characters, expected %zu", n_chars, writer.n() + 1);
}

}  // namespace gearkv
