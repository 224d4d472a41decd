// A cache as bytes: in a file, saved in one piece or not at all, and loaded by copy or attended where it is
// mapped; in memory; or through functions of the caller's.
//
// The bytes are the same wherever they go, on every machine and at every level, and are described one by one
// in src/format/state.hpp; their version counts apart from the library's. A loaded cache goes on exactly as
// the saved one would have, if that stands between two steps of a model: a layer without tokens is taken for
// one that never gets any (cache.hpp). They are written and read from front to back, without a second look.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>

#include "gearkv/cache.hpp"
#include "gearkv/file_id.hpp"

#pragma GCC visibility push(default)
namespace gearkv {

// The caller's name for what the keys and values came from: model, tokenizer, whatever must be the same. A
// checksum of the weights, say.
struct ModelFingerprint {
    std::uint8_t bytes[32] = {};
    friend bool operator==(const ModelFingerprint& a, const ModelFingerprint& b) noexcept {
        return std::memcmp(a.bytes, b.bytes, sizeof(a.bytes)) == 0;
    }
    friend bool operator!=(const ModelFingerprint& a, const ModelFingerprint& b) noexcept {
        return !(a == b);
    }
};

struct SaveOptions {
    ModelFingerprint model;
    const void* extra = nullptr;  // bytes of the caller's that go with the cache: tokens, a sampler's state
    std::size_t n_extra = 0;
    const FileId* kept = nullptr;  // files that must not be replaced by the save [n_kept]
    std::size_t n_kept = 0;
    // Only the first so many tokens, as Cache::truncate would leave them: a block that is cut goes along
    // whole and shows fewer tokens. state_bytes tells whether that is lossless. UINT64_MAX: all of them.
    std::uint64_t n_tokens = UINT64_MAX;
};

// Where a state goes. write gets all of its bytes in their order, in pieces of any size, on the thread of the
// call, and tells whether it took the piece, which is all of it. It does not throw, nor call the cache.
struct ByteSink {
    bool (*write)(void* context, const void* bytes, std::size_t n_bytes) = nullptr;
    void* context = nullptr;
};

// Where a state comes from. read puts the next bytes at `to`, at least one and at most n_bytes, and tells in
// *n_read how many: 0 when there are no more. False when it failed. On the thread of the call; it does not
// throw. No byte behind the state is asked for.
struct ByteSource {
    bool (*read)(void* context, void* to, std::size_t n_bytes, std::size_t* n_read) = nullptr;
    void* context = nullptr;
};

// Writes the cache to a file: where nobody sees it first, forced to the disk and then renamed over what is at
// `path`, or where its symbolic links lead. A file there is replaced, by one of the same mode and, where the
// system allows it, the same owner; its hard links keep the old bytes. Refused before anything is done: a
// directory, device, FIFO or socket, a file without permission to write, and the kept ones. What ends the
// process on the way leaves the old file, or none. On systems that cannot make files without a name it leaves
// "<path>.<process>-<number>.tmp" too, which the next save to that path removes. Nothing is copied.
// Errors: invalid_argument, io_error, protected_file, out_of_memory, damaged and bad_block (blocks of a
// mapped file that were not looked at before), and with n_tokens those of Cache::fork and truncate; a file
// there is as it was. ok: the new file is in place, and *warning, when given, is ok too or says what did not
// go well beside it: the owner or mode could not be kept, or the directory not be forced to the disk, so that
// a loss of power may bring the old file back. Threads: as any call on the cache.
Status save_state(const Cache& cache, const char* path, const SaveOptions& options, Executor& executor,
                  Status* warning = nullptr) noexcept;

// The same bytes through a function. Errors: invalid_argument, write_failed, out_of_memory, damaged,
// bad_block, those of Cache::fork and truncate. What was written by then is the caller's to drop.
Status save_state(const Cache& cache, const ByteSink& sink, const SaveOptions& options,
                  Executor& executor) noexcept;

// The same bytes to memory that has room for n_room. *n_written, when given, gets their number. Errors:
// invalid_argument, wrong_size (too little room: with the number that is needed), out_of_memory, damaged,
// bad_block, those of Cache::fork and truncate; nothing is written then.
Status save_state(const Cache& cache, void* to, std::size_t n_room, const SaveOptions& options,
                  Executor& executor, std::size_t* n_written = nullptr) noexcept;

// How many bytes any of these saves writes, as long as nothing is called on the cache in between that is not
// const. *lossless, when given, tells of n_tokens what Cache::truncate would; true when all are saved.
// Errors: invalid_argument, wrong_size, those of Cache::fork and truncate; *n_bytes and *lossless are
// untouched then.
Status state_bytes(const Cache& cache, const SaveOptions& options, std::uint64_t* n_bytes,
                   bool* lossless = nullptr) noexcept;

// Whether save_state could begin now, for those who have hours of work before it. Errors: as save_state.
Status check_save_target(const char* path, const SaveOptions& options = {}) noexcept;

enum class StateLoading : std::uint8_t {
    copy,  // blocks are read into the allocator's memory
    map,   // blocks stay in the file, which must not change while the cache or a fork of it lives
};
enum class StateChecking : std::uint8_t {
    all,           // every byte before the call returns
    on_first_use,  // blocks when a call first needs them, which then fails with `damaged`; for `map` only
};

struct LoadOptions {
    ModelFingerprint model;
    StateLoading loading = StateLoading::copy;
    StateChecking checking = StateChecking::all;
    void* extra = nullptr;  // room for the caller's bytes
    std::size_t extra_capacity = 0;
    // In place of `extra`, where their number is not known before: asked for room when all the rest was
    // checked, if there are any; null when it has none, which is out_of_memory. It does not throw.
    void* (*make_room)(void* context, std::size_t n_bytes) = nullptr;
    void* make_room_context = nullptr;
};

// Makes a cache out of a file. `config` says what is expected: layers, heads, dimensions, rotary embedding
// and SPEC must be the file's; ropes that Cache::remove was given come with the file; seed and spread_tokens
// are taken from the file; all else of it is the new cache's own. Buffers, sinks and tables are always
// copied. n_extra, when given, gets the number of the caller's bytes. Errors: those of Cache::create;
// io_error, not_a_state, other_byte_order, bad_version, truncated, damaged, corrupt_state, bad_block,
// other_codec, other_model, capacity_exceeded (more tokens than max_tokens), forgotten (a window of `config`,
// or none, wants what a smaller one of the saved cache left behind), wrong_size (no room for the extra
// bytes), unavailable_spec. *out and *n_extra are untouched then. The file may come from anybody: memory is
// taken for what came, or what `config` allows, never for what a number in it says.
Status load_state(const char* path, const CacheConfig& config, const LoadOptions& options, Executor& executor,
                  std::unique_ptr<Cache>* out, std::size_t* n_extra = nullptr) noexcept;

// The same through a function, which gives the bytes once; only by copy. Errors: those above but io_error;
// read_failed; truncated when the bytes end early.
Status load_state(const ByteSource& source, const CacheConfig& config, const LoadOptions& options,
                  Executor& executor, std::unique_ptr<Cache>* out, std::size_t* n_extra = nullptr) noexcept;

// The same out of n_bytes of memory, which is the state and nothing behind it; only by copy.
Status load_state(const void* bytes, std::size_t n_bytes, const CacheConfig& config,
                  const LoadOptions& options, Executor& executor, std::unique_ptr<Cache>* out,
                  std::size_t* n_extra = nullptr) noexcept;

// What a file says of itself.
struct StateInfo {
    std::uint32_t version = 0;
    std::uint64_t n_bytes = 0;
    // Shape, max_tokens, spec, seed, spread_tokens and rope, but for its frequencies; the rest is not in a
    // file. Where layers differ its dims are the next ones.
    CacheConfig config;
    std::unique_ptr<LayerDims[]> dims;  // [n_layers], null where all layers are alike
    std::uint64_t rope_checksum = 0;
    ModelFingerprint model;
    std::uint64_t n_tokens = 0;     // of the layer that has most
    std::uint64_t n_blocks = 0;     // keys and values, all layers
    std::uint64_t block_bytes = 0;  // of these
    std::uint64_t n_extra = 0;
};

// Checks header and table and reads no more than these and the layers' counts. Errors: invalid_argument,
// io_error, not_a_state, other_byte_order, bad_version, truncated, damaged, corrupt_state, unavailable_spec,
// out_of_memory; *out is untouched then.
Status inspect_state(const char* path, StateInfo* out) noexcept;

// Checks every byte as load_state does, and makes no cache. Errors: those of load_state and inspect_state.
Status verify_state(const char* path, Executor& executor, StateInfo* out) noexcept;

}  // namespace gearkv
#pragma GCC visibility pop
