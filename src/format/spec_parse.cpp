// Reads a SPEC; see gearkv/config.hpp. Nothing here allocates or depends on the locale.
#include <algorithm>
#include <charconv>
#include <cstdio>
#include <cstring>

#include "../arch/float_mode.hpp"
#include "format/built.hpp"
#include "format/decimal.hpp"
#include "format/spec.hpp"

namespace gearkv {
namespace {

constexpr const char* known_names =
    has_codes
        ? "f32, f16, q8, gear-1, gear-2, gear-3, gear-4, auto:BITS, trellis-RATE, kivi-B, kcvt-B, token-B, "
          "or [paper:]gear[l][-kcvt|-token]-B, B = 2 3 4 8"
        : "f32, f16, gear-1, gear-2, gear-3, gear-4, auto:BITS or trellis-RATE";
constexpr const char* known_options =
    "g=GROUP, r=RANK, rg=RANK, s=FRACTION, nb=TOKENS, sinks=TOKENS, recent=TOKENS";
constexpr const char* trellis_options =
    "nb=TOKENS, sinks=TOKENS or recent=TOKENS; paper:gear-B takes g, r, rg and s";

enum class Option { group, rank_prompt, rank_decode, sparsity, buffer_tokens, sink_tokens, recent_tokens };
constexpr std::size_t n_options = 7;
constexpr std::string_view option_names[n_options] = {"g=", "r=", "rg=", "s=", "nb=", "sinks=", "recent="};

// What was read of one tensor's SPEC, and where in the text the value of each option stands; 0 when the
// option was not given.
struct Parsed {
    TensorSpec spec;
    const Preset* preset = nullptr;  // in place of the spec
    std::uint32_t buffer_tokens = 0;
    std::uint32_t sink_tokens = 0;
    std::uint32_t recent_tokens = 0;
    std::size_t value_at[n_options] = {};

    std::size_t& at(Option option) noexcept { return value_at[static_cast<std::size_t>(option)]; }
    void use_preset(bool keys) noexcept {
        if (preset == nullptr) return;
        spec = trellis_spec(keys ? preset->key_rate : preset->value_rate);
    }
};

class Parser {
  public:
    explicit Parser(std::string_view text) noexcept : text_(text) {}

    Status parse(KvSpec* out) noexcept {
        Parsed key, value;
        float auto_bits = 0.0f;
        if (accept("auto:")) {
            if (Status status = parse_auto(&key, &auto_bits); !status.ok()) return status;
            value = key;
            value.spec.rate = std::min(value.spec.rate, most_value_rate);
        } else if (Status status = parse_pair(&key, &value); !status.ok()) {
            return status;
        }
        KvSpec spec;
        if (auto_bits == 0.0f) {
            if (Status status = parse_rules(&spec); !status.ok()) return status;
        }
        if (at_ != text_.size()) return fail("the end");
        spec.key = key.spec;
        spec.value = value.spec;
        spec.auto_bits = auto_bits;
        if (Status status = agree_on_buffer(key, value, &spec); !status.ok()) return status;
        Status status = agree_on(Option::sink_tokens, "sinks", &Parsed::sink_tokens, key, value,
                                 default_sinks(has_trellis(spec)), &spec.sink_tokens);
        if (status.ok()) {
            status = agree_on(Option::recent_tokens, "recent tokens", &Parsed::recent_tokens, key, value, 0,
                              &spec.recent_tokens);
        }
        if (!status.ok()) return status;
        if (Status status = validate_spec(spec); !status.ok()) return status;
        *out = spec;
        return {};
    }

  private:
    bool accept(std::string_view word) noexcept {
        if (text_.substr(at_, word.size()) != word) return false;
        at_ += word.size();
        return true;
    }

    Status fail(const char* expected) const noexcept {
        // Long texts are cut so that the place and what is known there stay in the message.
        const std::size_t first = at_ > 24 ? at_ - 24 : 0;
        const int before = static_cast<int>(at_ - first);
        const int after = static_cast<int>(std::min<std::size_t>(text_.size() - at_, 16));
        return Status::error(Code::bad_spec, "\"%.*s[^]%.*s\" at character %zu: expected %s", before,
                             text_.data() + first, after, text_.data() + at_, at_ + 1, expected);
    }

    Status fail_at(std::size_t at, const char* expected) noexcept {
        at_ = at;
        return fail(expected);
    }

    // One buffer serves both tensors; whole groups of keys and whole sections must come out of it.
    Status agree_on_buffer(Parsed& key, Parsed& value, KvSpec* spec) noexcept {
        const std::size_t key_at = key.at(Option::buffer_tokens), value_at = value.at(Option::buffer_tokens);
        char expected[80];
        if (key_at != 0 && value_at != 0 && key.buffer_tokens != value.buffer_tokens) {
            std::snprintf(expected, sizeof(expected), "%u, one buffer for keys and values",
                          key.buffer_tokens);
            return fail_at(value_at, expected);
        }
        const bool given = key_at != 0 || value_at != 0;
        spec->buffer_tokens = key_at != 0     ? key.buffer_tokens
                              : value_at != 0 ? value.buffer_tokens
                                              : default_buffer(has_trellis(*spec));
        if (given && has_trellis(*spec) && spec->buffer_tokens % trellis_buffer_tokens != 0) {
            std::snprintf(expected, sizeof(expected), "a multiple of %u, the section of a trellis",
                          trellis_buffer_tokens);
            return fail_at(key_at != 0 ? key_at : value_at, expected);
        }
        if (key.spec.backbone != Backbone::kivi || spec->buffer_tokens % key.spec.group == 0) return {};
        if (!given) {
            std::snprintf(expected, sizeof(expected),
                          "nb=TOKENS too, or a group that divides the buffer of %u", spec->buffer_tokens);
            return fail_at(key.at(Option::group), expected);
        }
        std::snprintf(expected, sizeof(expected), "a multiple of the keys' group of %u", key.spec.group);
        return fail_at(key_at != 0 ? key_at : value_at, expected);
    }

    // Keys and values, as one SPEC or as two.
    Status parse_pair(Parsed* key, Parsed* value) noexcept {
        if (accept("k=")) {
            if (Status status = parse_tensor(key); !status.ok()) return status;
            if (!accept(";")) return fail("\";\" and the values' v=SPEC");
            if (!accept("v=")) return fail("v=SPEC");
            if (Status status = parse_tensor(value); !status.ok()) return status;
        } else {
            if (Status status = parse_tensor(key); !status.ok()) return status;
            *value = *key;
        }
        key->use_preset(true);
        value->use_preset(false);
        return {};
    }

    // Behind the first pair.
    Status parse_rules(KvSpec* spec) noexcept {
        while (at_ != text_.size()) {
            const std::size_t start = at_;
            const bool is_edge = accept(";edge-");
            if (!is_edge && !accept(";layers-"))
                return fail("the end, \";edge-N=SPEC\" or \";layers-FIRST-LAST=SPEC\"");
            if (spec->n_layer_rules == max_layer_rules) {
                char expected[48];
                std::snprintf(expected, sizeof(expected), "at most %u rules for layers", max_layer_rules);
                return fail_at(start, expected);
            }
            LayerRule* rule = &spec->layer_rules[spec->n_layer_rules++];
            if (Status status =
                    is_edge ? parse_count({1, max_edge_layers, 1}, &rule->edge_layers) : parse_layers(rule);
                !status.ok())
                return status;
            if (!accept("=")) return fail("\"=\" and the SPEC of these layers");
            if (Status status = parse_rule_pair(rule); !status.ok()) return status;
        }
        return {};
    }

    // Behind ";layers-".
    Status parse_layers(LayerRule* rule) noexcept {
        if (Status status = parse_count({0, max_rule_layer, 1}, &rule->first); !status.ok()) return status;
        rule->last = rule->first;
        if (!accept("-")) return {};
        return parse_count({rule->first, max_rule_layer, 1}, &rule->last);
    }

    Status parse_rule_pair(LayerRule* rule) noexcept {
        Parsed key, value;
        if (Status status = parse_pair(&key, &value); !status.ok()) return status;
        for (Parsed* parsed : {&key, &value}) {
            for (const Option option : {Option::buffer_tokens, Option::sink_tokens, Option::recent_tokens}) {
                if (parsed->at(option) != 0) {
                    return fail_at(parsed->at(option),
                                   "nb, sinks and recent before all rules, where they hold for all layers");
                }
            }
        }
        rule->key = key.spec;
        rule->value = value.spec;
        return {};
    }

    // What is kept uncompressed is kept of both tensors.
    Status agree_on(Option option, const char* name, std::uint32_t Parsed::*n, Parsed& key, Parsed& value,
                    std::uint32_t default_n, std::uint32_t* out) noexcept {
        const std::size_t key_at = key.at(option), value_at = value.at(option);
        if (key_at != 0 && value_at != 0 && key.*n != value.*n) {
            char expected[96];
            std::snprintf(expected, sizeof(expected), "%u, the same %s for keys and values", key.*n, name);
            return fail_at(value_at, expected);
        }
        *out = key_at != 0 ? key.*n : value_at != 0 ? value.*n : default_n;
        return {};
    }

    Status parse_tensor(Parsed* out) noexcept {
        if (Status status = parse_name(out); !status.ok()) return status;
        if (!accept(":")) return {};
        do {
            if (Status status = parse_option(out); !status.ok()) return status;
        } while (accept(","));
        // r alone speaks for blocks of generated tokens too where it asks for less than their default.
        if (out->at(Option::rank_prompt) != 0 && out->at(Option::rank_decode) == 0)
            out->spec.rank_decode = std::min(out->spec.rank_decode, out->spec.rank_prompt);
        return {};
    }

    bool at_name_end() const noexcept {
        return at_ == text_.size() || text_[at_] == ':' || text_[at_] == ';';
    }

    Status parse_name(Parsed* out) noexcept {
        const std::size_t start = at_;
        TensorSpec* spec = &out->spec;
        if (accept("f32")) {
            *spec = {Backbone::raw32, 32};
        } else if (accept("f16")) {
            *spec = {Backbone::raw16, 16};
        } else if (accept("q8")) {
            *spec = {Backbone::token, 8};
        } else if (accept("trellis-")) {
            *spec = {Backbone::trellis, 0};
            if (Status status = parse_number({least_rate, most_key_rate}, &spec->rate); !status.ok())
                return status;
        } else {
            if (Status status = parse_family(out); !status.ok()) return status;
        }
        if (at_ != start && at_name_end()) return {};
        if (at_ == start) return fail(known_names);
        return fail("\":\" and options, \";\" or the end");
    }

    // A family and its bits; gear-1 to gear-4 are presets unless "paper:" stands before them.
    Status parse_family(Parsed* out) noexcept {
        const bool paper = accept("paper:");
        const std::size_t start = at_;
        for (const Family& family : families) {
            if (!accept(family.prefix)) continue;
            const bool is_preset = !paper && family.prefix == "gear-";
            if (at_ == text_.size() || std::strchr(is_preset ? "12348" : "2348", text_[at_]) == nullptr)
                return fail(is_preset ? "1, 2, 3, 4 or 8 bits" : "2, 3, 4 or 8 bits");
            TensorSpec& spec = out->spec;
            spec.backbone = family.backbone;
            spec.bits = static_cast<std::uint8_t>(text_[at_++] - '0');
            if (family.low_rank) {
                spec.rank_prompt = default_rank_prompt;
                spec.rank_decode = default_rank_decode;
            }
            if (family.outliers) spec.sparsity = default_sparsity;
            if (paper && !family.low_rank) return fail_at(start, "gear or gearl after \"paper:\"");
            for (const Preset& preset : presets) {
                if (is_preset && preset.bits == spec.bits) out->preset = &preset;
            }
            return {};
        }
        return paper ? fail("gear or gearl after \"paper:\"") : Status();
    }

    // Finds the option that stands here, and moves to its value.
    Status parse_option_name(Parsed* out, Option* option) noexcept {
        for (std::size_t i = 0; i < n_options; ++i) {
            const std::size_t start = at_;
            if (!accept(option_names[i])) continue;
            *option = static_cast<Option>(i);
            const bool for_all = *option >= Option::buffer_tokens;
            if (out->spec.raw() && !for_all)
                return fail_at(
                    start, "nb=TOKENS, sinks=TOKENS or recent=TOKENS, the options of an uncompressed tensor");
            if ((out->preset != nullptr || out->spec.backbone == Backbone::trellis) && !for_all)
                return fail_at(start, trellis_options);
            if (out->at(*option) != 0) return fail_at(start, "every option once");
            out->at(*option) = at_;
            return {};
        }
        return fail(known_options);
    }

    Status parse_option(Parsed* out) noexcept {
        Option option = Option::group;
        if (Status status = parse_option_name(out, &option); !status.ok()) return status;
        TensorSpec& spec = out->spec;
        switch (option) {
            case Option::group:
                return parse_count({32, max_group, 32}, &spec.group);
            case Option::rank_prompt:
                return parse_count({0, max_spec_rank, 1}, &spec.rank_prompt);
            case Option::rank_decode:
                return parse_count({0, max_spec_rank, 1}, &spec.rank_decode);
            case Option::sparsity:
                return parse_fraction(&spec.sparsity);
            case Option::buffer_tokens:
                return parse_count({1, max_buffer_tokens, 1}, &out->buffer_tokens);
            case Option::sink_tokens:
                return parse_count({0, max_sink_tokens, 1}, &out->sink_tokens);
            case Option::recent_tokens:
                return parse_count({0, max_recent_tokens, 1}, &out->recent_tokens);
        }
        return {};
    }

    // Behind "auto:".
    Status parse_auto(Parsed* out, float* bits) noexcept {
        if (Status status = parse_number({least_auto_bits, most_auto_bits}, bits); !status.ok())
            return status;
        out->spec = trellis_spec(*bits);  // a cache puts rates that suit its shape in place of this one
        while (accept(",")) {
            if (Status status = parse_option(out); !status.ok()) return status;
        }
        return {};
    }

    struct Range {
        std::uint32_t least, most, step;
    };

    template <class Count>
    Status parse_count(Range range, Count* out) noexcept {
        std::uint32_t count = 0;
        const auto [end, error] = std::from_chars(text_.data() + at_, text_.data() + text_.size(), count);
        if (error != std::errc() || count < range.least || count > range.most || count % range.step != 0) {
            char expected[64];
            if (range.step == 1) {
                std::snprintf(expected, sizeof(expected), "a whole number from %u to %u", range.least,
                              range.most);
            } else {
                std::snprintf(expected, sizeof(expected), "a multiple of %u from %u to %u", range.step,
                              range.least, range.most);
            }
            return fail(expected);
        }
        at_ = static_cast<std::size_t>(end - text_.data());
        *out = static_cast<Count>(count);
        return {};
    }

    struct FloatRange {
        float least, most;
    };

    Status parse_number(FloatRange range, float* out) noexcept {
        float number = 0.0f;
        const auto [end, error] = read_float(text_.data() + at_, text_.data() + text_.size(), &number);
        if (error != std::errc() || !(number >= range.least && number <= range.most)) {
            char expected[64];
            std::snprintf(expected, sizeof(expected), "a number from %g to %g",
                          static_cast<double>(range.least), static_cast<double>(range.most));
            return fail(expected);
        }
        at_ = static_cast<std::size_t>(end - text_.data());
        *out = number;
        return {};
    }

    Status parse_fraction(float* out) noexcept {
        float fraction = 0.0f;
        const auto [end, error] = read_float(text_.data() + at_, text_.data() + text_.size(), &fraction);
        if (error != std::errc() || !(fraction >= 0.0f && fraction < 1.0f))
            return fail("a fraction from 0 to below 1");
        at_ = static_cast<std::size_t>(end - text_.data());
        *out = fraction;
        return {};
    }

    std::string_view text_;
    std::size_t at_ = 0;
};

}  // namespace

Status parse_spec(const char* text, KvSpec* out) noexcept {
    const FloatMode mode;
    if (text == nullptr || out == nullptr) {
        return Status::error(Code::invalid_argument, "%s is null", text == nullptr ? "text" : "out");
    }
    return Parser(text).parse(out);
}

}  // namespace gearkv
