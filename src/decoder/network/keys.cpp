#include "decoder/network/keys.hpp"

#include <algorithm>

namespace gearkv {
namespace {

int length_of(std::string_view text) {
    return static_cast<int>(text.size());
}

// Keys that change nothing when they have this value: they say how the file was made, or switch off what is
// not here.
struct Harmless {
    const char* key;
    const char* value;  // as value_text writes it; null: any
};
constexpr Harmless harmless[] = {
    {"vocab_size", nullptr},  // checked against the vocabulary
    {"rope.scaling.finetuned", nullptr},
    {"attention.causal", "true"},
    {"attention.clamp_kqv", "0"},
    {"attention.max_alibi_bias", "0"},
    {"use_parallel_residual", "false"},
    {"expert_count", "0"},
    {"expert_used_count", "0"},
    {"pooling_type", "0"},
};

bool is_harmless(std::string_view key, const GgufValue& value, Pairing pairing) {
    if (key == "tensor_data_layout" && pairing == Pairing::adjacent) {
        const std::string layout = value_text(value);
        return layout == "Meta AI original pth" || layout == "reference";
    }
    return std::any_of(std::begin(harmless), std::end(harmless), [&](const Harmless& known) {
        return key == known.key && (known.value == nullptr || value_text(value) == known.value);
    });
}

}  // namespace

const GgufValue* Keys::find(std::string_view key) {
    const GgufValue* value = find_value(file_, name(key));
    if (value != nullptr) obeyed_[static_cast<std::size_t>(value - file_.values.data())] = true;
    return value;
}

Status Keys::integer(std::string_view key, bool required, IntegerRange range, std::uint32_t* out) {
    find(key);
    return read_integer(file_, name(key), required, range, out);
}

Status Keys::integer_of_layers(std::string_view key, bool required, IntegerRange range,
                               std::uint32_t n_layers, std::uint32_t* out) {
    const GgufValue* value = find(key);
    if (value == nullptr || !value->is_array) return read_integer(file_, name(key), required, range, out);
    std::vector<std::uint32_t> entries;
    const Status status = read_integers(file_, name(key), n_layers, range, &entries);
    if (!status.ok()) return status;
    for (std::size_t layer = 1; layer < entries.size(); layer++) {
        if (entries[layer] == entries[0]) continue;
        return Status::error(Code::unsupported_model,
                             "'%s' is %u in layer 0 and %u in layer %zu, expected layers of one shape",
                             name(key).c_str(), entries[0], entries[layer], layer);
    }
    *out = entries[0];
    return {};
}

Status Keys::positive(std::string_view key, bool required, float* out) {
    if (find(key) == nullptr && !required) return {};
    const Status status = read_float(file_, name(key), required, out);
    if (!status.ok() || *out > 0.0f) return status;
    return Status::error(Code::bad_metadata, "'%s' is %g, expected a number above 0", name(key).c_str(),
                         static_cast<double>(*out));
}

Status Keys::magnitude(std::string_view key, float* out) {
    find(key);
    const Status status = read_float(file_, name(key), false, out);
    if (!status.ok() || *out >= 0.0f) return status;
    return Status::error(Code::bad_metadata, "'%s' is %g, expected 0 or more", name(key).c_str(),
                         static_cast<double>(*out));
}

Status Keys::boolean(std::string_view key, bool* out) {
    find(key);
    return read_bool(file_, name(key), false, out);
}

Status Keys::text(std::string_view key, std::string_view* out) {
    find(key);
    return read_string(file_, name(key), false, out);
}

Status Keys::check_all_obeyed(Pairing pairing) const {
    for (std::size_t i = 0; i < file_.values.size(); i++) {
        const GgufValue& value = file_.values[i];
        if (obeyed_[i] || !value.key.starts_with(prefix_)) continue;
        const std::string_view key = value.key.substr(prefix_.size());
        if (is_harmless(key, value, pairing)) continue;
        return Status::error(Code::unsupported_model, "'%.*s' is %.64s, which is not obeyed here",
                             std::min(length_of(value.key), 96), value.key.data(), value_text(value).c_str());
    }
    return {};
}

}  // namespace gearkv
