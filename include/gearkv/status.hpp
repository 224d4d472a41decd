// Errors as values. Library code never prints, aborts, exits or throws across its API.
#pragma once

#include <cstdint>

#pragma GCC visibility push(default)
namespace gearkv {

// One code per cause. The message of a Status says what was found and what was expected.
enum class Code : std::uint8_t {
    ok = 0,
    invalid_argument,   // an argument is null or contradicts another one
    bad_spec,           // a SPEC string or a TensorSpec that is not in the grammar
    wrong_size,         // a buffer, dimension or count that does not fit its use
    non_finite,         // NaN or Inf in keys, values or queries
    not_representable,  // finite, but beyond what fp16 can hold (65504), or an f32 cache takes (2^64)
    capacity_exceeded,  // more tokens than were reserved
    out_of_memory,      // the allocator said no
    over_budget,        // more bytes than the caller allowed
    forgotten,          // tokens that are asked for, or that a window shows, were given back
    unknown_level,      // a level name that does not exist
    unavailable_level,  // a level this machine or build cannot run
    unavailable_spec,   // a SPEC, or a block or state of it, that this build leaves out
    bad_block,          // bytes that are not a block of this format
    not_a_state,        // the file does not start with the magic of a saved cache
    other_byte_order,   // a file of a machine with another byte order
    other_codec,        // a cache saved with another SPEC
    other_model,        // a cache saved with another model, shape or rotary embedding
    other_rope,         // keys of a layer have moved by another rotary embedding
    no_keys,            // a layer that has no keys of its own
    damaged,            // bytes that do not match their checksum, or are where none should be
    corrupt_state,      // checksums match, but a count, place or order cannot be right
    thread_failure,     // the system refused a thread
    interrupted,        // the caller asked to stop
    io_error,           // the system refused to open, map, read or write a file
    protected_file,     // a path to save to whose file must be kept, such as the model
    write_failed,       // the caller's function did not take the bytes of a state
    read_failed,        // the caller's function did not give them
    bad_version,        // a file version we do not know
    truncated,          // the file or stream ends before what its header promises
    // gearkv-decoder
    not_a_model,        // the file does not start with the GGUF magic
    corrupt_model,      // a length, count, offset or type in the file that cannot be right
    missing_key,        // metadata the architecture needs is absent
    bad_metadata,       // metadata is present with a wrong type or an impossible value
    unsupported_model,  // a sound file, but not an architecture or tensor type we run
    missing_tensor,     // a weight the architecture needs is absent
    shape_mismatch,     // a weight whose shape disagrees with the metadata
    bad_tokenizer,      // vocabulary, scores or token types that cannot be used
    empty_prompt,       // a prompt of no tokens
    prompt_too_long,    // a prompt that does not fit the context
    context_full,       // the context has no room for another token
    bad_token,          // a token id outside the vocabulary
    unknown_template,   // a chat template, or a name of one, that is none of those known
    bad_conversation,   // messages in an order the chat template cannot express
};

// A short fixed name for a code ("non_finite"); never null.
const char* code_name(Code code) noexcept;

// A code and a message. Small, copyable, allocates nothing. Safe to pass between threads.
class [[nodiscard]] Status {
  public:
    Status() noexcept = default;

    // printf-style message; cut at 223 bytes.
    static Status error(Code code, const char* format, ...) noexcept __attribute__((format(printf, 2, 3)));

    bool ok() const noexcept { return code_ == Code::ok; }
    Code code() const noexcept { return code_; }
    // Empty when ok; owned by this Status.
    const char* message() const noexcept { return message_; }

  private:
    Code code_ = Code::ok;
    char message_[223] = {};
};

}  // namespace gearkv
#pragma GCC visibility pop
