// The closing of a unit: its way from tokens in the buffer to a block, in pieces that are spread over the
// tokens that follow. The block takes the place of the tokens after a number of tokens, not when it happens
// to be ready.
#pragma once

#include <atomic>

#include "cache/closed_block.hpp"
#include "cache/rules.hpp"
#include "codec/compress.hpp"

namespace gearkv {

// Pieces of a compression, in groups that may run at once, each with a number below n as its slot.
struct PieceRun {
    std::uint32_t n = 0;
    std::uint32_t first = 0, end = 0;  // of the pieces
    TensorKind kind = TensorKind::key;
    void* block = nullptr;
    void* scratch = nullptr;
    CompressTask task;
    std::atomic<std::uint64_t>* nanoseconds = nullptr;  // where the time of each is added
};
void run_group(const PieceRun& run, std::uint32_t i, Executor& executor) noexcept;

// What pieces read beside the block, by kind of tensor where there are two.
struct PieceSource {
    const Kernels* kernels = nullptr;
    Rows rows[2];                                           // of the unit's first token
    const unsigned char* profiles[2] = {nullptr, nullptr};  // of the stream, once it has some
    std::uint64_t seeds[2] = {0, 0};
    const float* key_weights = nullptr;
    const Scratch* shared_scratch = nullptr;  // of all layers; a unit too large for it has its own
    std::atomic<std::uint64_t>* nanoseconds = nullptr;
};

// How a block begins.
struct ClosingPlan {
    BlockHeader headers[2] = {};  // by kind
    std::uint64_t scratch_bytes = 0;
    const std::uint32_t* plane_starts[2] = {nullptr, nullptr};
    Unit unit;

    // Errors: as lay_out_unit.
    Status lay_out(const CacheConfig& config, std::uint32_t layer, const TensorSpec (&specs)[2],
                   std::uint32_t n_tokens, bool prompt, const bool (&first)[2]) noexcept;
    std::uint64_t block_bytes() const noexcept { return headers[0].n_bytes + headers[1].n_bytes; }
};

// A unit that was closed, with what it takes to have it open again.
struct ClosedUnit {
    NewBlock block;              // as the table shows it
    std::uint32_t n_tokens = 0;  // 0: there is none
    bool prompt = false;
    std::uint32_t n_appended = 0;  // while it was open
};

// A unit is either open or there is none, and only these lead from one to the other:
//     none -- begin --> open -- finish --> none, with a block;   open -- drop --> none, without
//     open -- advance, rewind --> open, as tokens come and go;   none -- reopen --> open, with its block done
// While it is open its tokens are the first of the buffer. n_done never exceeds n_pieces; a block leaves with
// all of them done.
class Closing {
  public:
    bool is_open() const noexcept { return n_tokens_ > 0; }
    std::uint32_t n_tokens() const noexcept { return n_tokens_; }  // 0: none is open
    bool prompt() const noexcept { return is_open() && prompt_; }
    // Tokens that came since it was begun.
    std::uint32_t n_appended() const noexcept { return is_open() ? n_appended_ : 0; }
    // Its block so far; null when none is open.
    const BlockHeader* header(TensorKind kind) const noexcept {
        return static_cast<const BlockHeader*>(kind == TensorKind::key ? block_.key : block_.value);
    }

    // False when memory is short; none is open then.
    bool begin(const Memory& memory, const ClosingPlan& plan, const Scratch& shared_scratch) noexcept;
    void advance(std::uint64_t n) noexcept;
    void rewind(std::uint64_t n) noexcept;
    // After all pieces: the block and its use of memory go to the caller.
    ClosedUnit finish(const Memory& memory) noexcept;
    void reopen(const ClosedUnit& unit) noexcept;
    void drop(const Memory& memory) noexcept;

    // Of keys, then of values.
    std::uint32_t n_pieces() const noexcept;
    // Those that have to be done by now, when all are after n_spread tokens.
    std::uint32_t n_due(std::uint32_t n_spread) const noexcept;
    // Those below `until` whose groups may run at once, from the first that is not done; then note_done.
    PieceRun next(const PieceSource& source, std::uint32_t until) const noexcept;
    void note_done(const PieceRun& run) noexcept { n_done_ += run.end - run.first; }
    // All of them below `until`.
    void run(const PieceSource& source, std::uint32_t until, Executor& executor) noexcept;

  private:
    NewBlock block_;
    std::uint32_t n_tokens_ = 0;
    bool prompt_ = false;
    std::uint32_t n_appended_ = 0;
    std::uint32_t n_done_ = 0;
    Scratch scratch_;  // of a unit too large for what the layers share
};

}  // namespace gearkv
