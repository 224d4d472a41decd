// The sequences of an engine in gearkv caches: which positions each has, in the order of its cache, and what
// the engine's calls on them mean there. Knows nothing of the engine.
//
// Sequences that share all their tokens share one cache (a prompt for several answers), until one of them
// goes its own way and forks. Removals and shifts are only noted: when the sequence is next computed or
// saved, they are replayed as truncations and context shifts, which do not touch what is compressed. What
// gearkv cannot express that way (a gap that stays, tokens that move apart, two sequences joined) is read,
// turned and compressed anew.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "gearkv/cache.hpp"

namespace llama_gearkv_detail {

// One token of a cache. The engine says where it is; its key was rotated for `at`.
struct Token {
    std::int32_t pos;
    std::int32_t at;
    std::int32_t gone;  // removed by the engine, and still in the cache
};

struct Sequence {
    std::unique_ptr<gearkv::Cache> cache;
    std::vector<Token> tokens;
    bool edited = false;   // some token is gone or has moved
    gearkv::Status fault;  // why nothing can be computed on it any more

    // False for a layer without attention, and for one that this model's graph does not compute.
    bool uses(std::uint32_t layer) const { return cache->n_tokens(layer) > 0; }
};

// Tokens of a batch, in the engine's arrays.
struct Batch {
    std::uint32_t n_tokens;
    const std::int32_t* pos;
    const std::int32_t* n_ids;       // sequences of each token
    const std::int32_t* const* ids;  // and which
};

// Tokens of a batch that lie side by side and belong to the same sequences.
struct Run {
    std::vector<gearkv::Cache*> caches;  // get the rows; the first is attended
    std::uint64_t n_before;              // tokens in it then
    std::uint32_t first, n;
};

struct Setup {
    gearkv::CacheConfig cache;                     // shapes, windows and workspace are filled in by create
    std::vector<gearkv::LayerDims> dims;           // by layer; nothing in one without keys
    std::vector<std::vector<double>> frequencies;  // by layer; none where keys are not rotated
    bool interleaved = false;
    std::uint32_t window = 0;       // of the queries of all layers; 0: none
    bool give_back = false;         // what the window left behind
    bool distances_matter = false;  // ALiBi
    bool one_stream_each = false;   // copies replace what was there
};

class Sequences {
  public:
    using Write = std::function<void(const void*, std::size_t)>;  // may throw
    using Read = std::function<void(void*, std::size_t)>;         // may throw

    // Errors: of Cache::create.
    gearkv::Status create(const Setup& setup);

    void clear() { seqs_.clear(); }
    // id < 0: of all. False when a sequence cannot be cut there, and is lost.
    bool remove(std::int32_t id, std::int32_t p0, std::int32_t p1);
    void copy(std::int32_t src, std::int32_t dst, std::int32_t p0, std::int32_t p1);
    void keep(std::int32_t id);
    // Positions in [p0, p1) become what `to` makes of them; tokens below 0 go.
    void move(std::int32_t id, std::int32_t p0, std::int32_t p1,
              const std::function<std::int32_t(std::int32_t)>& to);
    // pos_min, or the first position that no window has left if that is later.
    std::int32_t pos_min(std::int32_t id, std::int32_t pos_min) const;

    // Makes the sequences of a batch ready for it, and lists its runs.
    gearkv::Status begin(const Batch& batch);
    const std::vector<Run>& runs() const { return runs_; }

    // id < 0: all. Reading gives them the ids they had; id >= 0: one sequence, that id.
    gearkv::Status write(std::int32_t id, const Write& write);
    gearkv::Status read(std::int32_t id, std::int32_t n_ids, const Read& read);

    // Its pointers are to what belongs to this.
    const gearkv::CacheConfig& config() const { return setup_.cache; }
    // A line for each sequence with a cache of its own.
    void describe(const std::function<void(const std::string&)>& line) const;

  private:
    using Shared = std::shared_ptr<Sequence>;
    struct Piece {
        const Sequence* from;
        std::size_t index;
        Token token;
    };

    gearkv::Status make(Shared* out) const;
    gearkv::Status fork(const Sequence& from, Shared* out) const;
    gearkv::Status settle(Sequence& sequence) const;
    gearkv::Status assemble(std::vector<Piece> pieces, Shared* out) const;
    gearkv::Status carry(const std::vector<Piece>& pieces, std::uint32_t layer, Sequence& to) const;
    gearkv::Status cut_gone(Sequence& sequence) const;
    void turn(float* keys, std::size_t n_tokens, std::uint32_t layer, std::int32_t by) const;
    Sequence* own(std::int32_t id);

    Setup setup_;
    std::vector<std::uint32_t> windows_;
    std::vector<gearkv::RopeConfig> ropes_;  // by layer
    std::unique_ptr<gearkv::Workspace> workspace_;
    std::map<std::int32_t, Shared> seqs_;
    std::vector<Run> runs_;
};

}  // namespace llama_gearkv_detail
