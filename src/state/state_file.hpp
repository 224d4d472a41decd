// A state file on its way in: nothing in it is believed before it was compared.
#pragma once

#include "cache/impl.hpp"
#include "file/mapped_file.hpp"
#include "format/state.hpp"
#include "gearkv/state.hpp"

namespace gearkv {

// Header and table of a mapped file, checked.
class StateFile {
  public:
    // Errors: invalid_argument, io_error, out_of_memory, not_a_state, other_byte_order, bad_version,
    // truncated, damaged, corrupt_state; *out is untouched then.
    static Status open(const char* path, StateFile* out) noexcept;

    // The same of bytes at a multiple of 64 that outlive the object.
    static Status open_bytes(const void* bytes, std::uint64_t n_bytes, StateFile* out) noexcept;

    const StateHeader& header() const noexcept { return *reinterpret_cast<const StateHeader*>(bytes_); }
    const StateSection* sections() const noexcept {
        return reinterpret_cast<const StateSection*>(bytes_ + sizeof(StateHeader));
    }
    const unsigned char* bytes(const StateSection& section) const noexcept { return bytes_ + section.offset; }
    // What the header says of the cache.
    const CacheConfig& config() const noexcept { return config_; }
    ModelFingerprint model() const noexcept;
    // Ends this object's use of the mapping.
    MappedFile release() noexcept { return std::move(file_); }

  private:
    Status check_header() noexcept;

    MappedFile file_;
    const unsigned char* bytes_ = nullptr;
    std::uint64_t n_bytes_ = 0;
    CacheConfig config_;
};

// One entry of a layer's table of blocks.
struct StateBlock {
    const StateSection* key = nullptr;
    const StateSection* value = nullptr;
    bool repeats = false;  // the bytes of the entry before it
};

// Sections of one layer, by kind of tensor where there are two; null when the file has none.
struct StateLayerSections {
    StateLayer layer = {};
    KvSpec spec;  // with the rates of this layer
    const void* planes[2] = {nullptr, nullptr};
    const void* sinks[2] = {nullptr, nullptr};
    const void* profiles[2] = {nullptr, nullptr};
    const void* buffer[2] = {nullptr, nullptr};
    std::uint64_t profile_bytes[2] = {0, 0};
    const StateQueries* queries = nullptr;
    const StateSection* blocks = nullptr;  // pairs, the first of n_blocks
    std::uint64_t n_blocks = 0;

    StateBlock block(std::uint64_t i) const noexcept;
};

// Walks the sections in their order. What it hands out is checked but for the contents of blocks, of which
// only the headers are.
class StateReader {
  public:
    // `config` is checked, and that of the cache to be made. With is_checked the file went through
    // check_file: checksums and rows are not looked at again.
    StateReader(const StateFile& file, const CacheConfig& config, bool is_checked = false) noexcept;
    // Layers 0, 1, ... Errors: damaged, corrupt_state, bad_block, capacity_exceeded.
    Status read_layer(std::uint32_t layer, StateLayerSections* out) noexcept;
    // The contents of a layer's blocks. Errors: damaged, bad_block.
    Status check_blocks(const StateLayerSections& sections, Executor& executor) const noexcept;
    // After all layers; null when there is none.
    Status read_extra(const StateSection** out) noexcept;

  private:
    // The next section when it is of this kind and layer, else null.
    const StateSection* peek(StateKind kind, std::uint32_t layer) const noexcept;
    // Checks where a section lies, and moves behind it.
    Status take(const StateSection& section, bool repeats) noexcept;
    // Takes the section if it is there, of n_bytes, and checks its checksum. *out is null when it is not.
    Status read(StateKind kind, std::uint32_t layer, std::uint64_t n_bytes, const void** out) noexcept;
    Status read_rows(StateKind kind, std::uint32_t layer, std::uint64_t n_tokens, const void** out) noexcept;
    Status read_blocks(std::uint32_t layer, StateLayerSections* out) noexcept;
    Status read_queries(std::uint32_t layer, StateLayerSections* out) noexcept;
    Status check_layer(std::uint32_t layer, const StateLayer& found) const noexcept;
    Status check_block_header(std::uint32_t layer, const StateLayerSections& sections, TensorKind kind,
                              const StateSection& section, bool first) const noexcept;

    const StateFile& file_;
    const CacheConfig& config_;
    bool is_checked_;
    std::uint64_t next_ = 0;   // section
    std::uint64_t place_ = 0;  // where it must start
};

// All of the file but, when they are to be looked at later, the contents of blocks; finds the section of the
// caller's bytes. Errors: as above.
Status check_file(const StateFile& file, const CacheConfig& config, StateChecking checking,
                  Executor& executor, const StateSection** extra) noexcept;

// Whether the file is of the cache that is expected. Errors: other_codec, other_model.
Status match_config(const StateFile& file, const CacheConfig& config, const ModelFingerprint& model) noexcept;

}  // namespace gearkv
