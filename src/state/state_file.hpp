// What stands at the front of a state on its way in: nothing in it is believed before it was compared.
#pragma once

#include "format/state.hpp"
#include "state/input.hpp"

namespace gearkv {

bool all_zero(const void* bytes, std::size_t n) noexcept;
// Errors: damaged.
Status check_checksum(const char* what, const void* bytes, std::uint64_t n_bytes,
                      std::uint64_t expected) noexcept;

// Header and table, checked.
class StateFile {
  public:
    // Errors: those of the input; not_a_state, other_byte_order, bad_version, truncated, damaged,
    // corrupt_state, out_of_memory.
    Status read_header(StateInput* input) noexcept;
    // What follows the header, of a cache of max_tokens; in memory of the input. Errors: those of the input;
    // truncated, damaged, capacity_exceeded, out_of_memory.
    Status read_table(StateInput* input, std::uint64_t max_tokens) noexcept;

    const StateHeader& header() const noexcept { return header_; }
    const StateSection* sections() const noexcept { return sections_; }
    // What the header says of the cache; dims are in memory of the input.
    const CacheConfig& config() const noexcept { return config_; }
    ModelFingerprint model() const noexcept;

  private:
    // What stands behind the header where layers differ. Errors: as read_header; out_of_memory.
    static Status read_dims(const StateHeader& header, StateInput* input, CacheConfig* config) noexcept;

    StateHeader header_ = {};
    const StateSection* sections_ = nullptr;
    CacheConfig config_;
};

// Whether the state is of the cache that is expected. Errors: other_codec, other_model.
Status match_config(const StateFile& file, const CacheConfig& config, const ModelFingerprint& model) noexcept;

}  // namespace gearkv
