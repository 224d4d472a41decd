// The metadata of one architecture, "llama.block_count" and so on, and which of them were obeyed.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "decoder/gguf/gguf.hpp"
#include "decoder/network/family.hpp"

namespace gearkv {

// Keys are named without the architecture. What is read counts as obeyed; check_all_obeyed() then refuses
// what nobody asked for, since a model that says more than we do would come out wrong. Functions may throw
// std::bad_alloc. Errors: missing_key, bad_metadata, as of read_integer and its like in gguf.hpp;
// unsupported_model.
class Keys {
  public:
    Keys(const GgufFile& file, std::string_view architecture)
        : file_(file), prefix_(std::string(architecture) + "."), obeyed_(file.values.size(), false) {}

    std::string name(std::string_view key) const { return prefix_ + std::string(key); }
    // Null when there is none; obeyed otherwise.
    const GgufValue* find(std::string_view key);

    Status integer(std::string_view key, bool required, IntegerRange range, std::uint32_t* out);
    // The same, but one entry a layer is as good, if all are equal.
    Status integer_of_layers(std::string_view key, bool required, IntegerRange range, std::uint32_t n_layers,
                             std::uint32_t* out);
    Status positive(std::string_view key, bool required, float* out);
    // 0 or more.
    Status magnitude(std::string_view key, float* out);
    Status boolean(std::string_view key, bool* out);
    Status text(std::string_view key, std::string_view* out);

    // Errors: unsupported_model, which names a key that nobody read and that is not known to change nothing.
    Status check_all_obeyed(Pairing pairing) const;

  private:
    const GgufFile& file_;
    std::string prefix_;
    std::vector<bool> obeyed_;  // by index of file.values
};

}  // namespace gearkv
