// The sections of a state on its way in: nothing in them is believed before it was compared.
#pragma once

#include "cache/impl.hpp"
#include "state/state_file.hpp"

namespace gearkv {

// A pair of blocks that was read.
struct BlockPlace {
    const void* key = nullptr;
    const void* value = nullptr;
    BlockOwner* owner = nullptr;  // of a copy, which is the reader's until this is set to null
};

// One entry of a layer's table of blocks.
struct StateBlock {
    const StateSection* key = nullptr;
    const StateSection* value = nullptr;
    BlockPlace* place = nullptr;
    bool repeats = false;  // the bytes of the entry before it
};

// Sections of one layer, by kind of tensor where there are two; null when the state has none.
struct StateLayerSections {
    StateLayer layer = {};
    LayerDims dims;
    KvSpec spec;  // with the rates of this layer
    const void* planes[2] = {nullptr, nullptr};
    const void* sinks[2] = {nullptr, nullptr};
    const void* profiles[2] = {nullptr, nullptr};
    const void* buffer[2] = {nullptr, nullptr};
    std::uint64_t profile_bytes[2] = {0, 0};
    const StateQueries* queries = nullptr;
    const StateRope* rope = nullptr;
    const StateSquares* squares = nullptr;
    const StateSection* blocks = nullptr;  // pairs, the first of n_blocks
    BlockPlace* places = nullptr;          // [n_blocks]
    std::uint64_t n_blocks = 0;

    StateBlock block(std::uint64_t i) const noexcept;
};

// Walks the sections in their order. What it hands out is checked but for the contents of blocks, of which
// only the headers are.
class StateReader {
  public:
    // After read_table. `config` is checked, and that of the cache to be made. Blocks are read into memory of
    // `copies`, a cache of it; without one they are left in place, as bytes of the input must be then. All
    // outlive the object.
    StateReader(const StateFile& file, StateInput* input, const CacheConfig& config,
                CacheAccess::Impl* copies) noexcept
        : file_(file), input_(input), config_(config), copies_(copies) {}
    ~StateReader() { finish_layer(); }
    StateReader(const StateReader&) = delete;
    StateReader& operator=(const StateReader&) = delete;

    // Layers 0, 1, ...; what it gives lasts until the next call. Errors: those of the input; truncated,
    // damaged, corrupt_state, bad_block, capacity_exceeded, out_of_memory, over_budget.
    Status read_layer(std::uint32_t layer, StateLayerSections* out) noexcept;
    // The contents of a layer's blocks. Errors: damaged, bad_block.
    Status check_blocks(const StateLayerSections& sections, Executor& executor) const noexcept;
    // After all layers: the caller's bytes, of which there is room for so many; null when there are none.
    // Errors: as read_layer; wrong_size.
    Status read_extra(std::uint64_t room, const void** bytes, std::uint64_t* n_bytes) noexcept;

  private:
    // The next section when it is of this kind and layer, else null.
    const StateSection* peek(StateKind kind, std::uint32_t layer) const noexcept;
    bool is_at(std::uint64_t i, StateKind kind, std::uint32_t layer) const noexcept;
    // Whether the next section can lie where it says, which is there.
    Status take(const StateSection& section) noexcept;
    Status check_reserved(const StateSection& section) const noexcept;
    // The zeros behind it.
    Status pass_padding(const StateSection& section) noexcept;
    // Reads the section if it is there, of n_bytes, and checks its checksum. *out is null when it is not.
    Status read(StateKind kind, std::uint32_t layer, std::uint64_t n_bytes, const void** out) noexcept;
    Status read_rows(StateKind kind, std::uint32_t layer, std::uint64_t n_tokens, const void** out) noexcept;
    Status read_blocks(std::uint32_t layer, StateLayerSections* out) noexcept;
    Status read_pair(std::uint32_t layer, const StateLayerSections& sections, BlockPlace* out) noexcept;
    Status copy_pair(std::uint32_t layer, const StateLayerSections& sections, BlockPlace* out) noexcept;
    Status read_queries(std::uint32_t layer, StateLayerSections* out) noexcept;
    Status read_rope(std::uint32_t layer, StateLayerSections* out) noexcept;
    Status read_squares(std::uint32_t layer, StateLayerSections* out) noexcept;
    Status check_layer(std::uint32_t layer, const StateLayer& found) const noexcept;
    Status check_block_header(std::uint32_t layer, const StateLayerSections& sections, TensorKind kind,
                              const StateSection& section, const BlockHeader& header) const noexcept;
    // Whether a block of the next pair of so many tokens may have a header that `is_like`.
    template <class IsLike>
    bool any_layout(const StateLayerSections& sections, TensorKind kind, std::uint32_t n_tokens,
                    const IsLike& is_like) const noexcept;
    void finish_layer() noexcept;

    const StateFile& file_;
    StateInput* input_;
    const CacheConfig& config_;
    CacheAccess::Impl* copies_;
    std::uint64_t next_ = 0;  // section
    // Of the layer that was read last.
    std::uint32_t layer_ = 0;
    BlockPlace* places_ = nullptr;
    std::uint64_t n_places_ = 0;
};

// Reads all of a state in place and checks it. Errors: as above.
Status check_state(const StateFile& file, StateInput* input, const CacheConfig& config,
                   Executor& executor) noexcept;

}  // namespace gearkv
