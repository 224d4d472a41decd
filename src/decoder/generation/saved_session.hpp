// What a session file holds beside the cache: the caller's bytes of a state file (src/format/state.hpp), in
// its byte order.
//
//   header [48 bytes] | tokens i32 [n_tokens] | logits f32 [n_logits] | sampler [n_sampler] | note [n_note]
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>
#include <vector>

#include "gearkv/status.hpp"
#include "gearkv/tokenizer.hpp"

namespace gearkv {

struct SavedSessionHeader {
    char magic[8] = {'G', 'K', 'V', 'S', 'E', 'S', 'S', '\n'};
    std::uint32_t version = 1;
    std::uint32_t n_vocab = 0;
    std::uint64_t n_tokens = 0;
    std::uint64_t n_logits = 0;  // 0 or n_vocab
    std::uint64_t n_sampler = 0;
    std::uint64_t n_note = 0;
};
static_assert(sizeof(SavedSessionHeader) == 48);

struct SavedSession {
    std::uint32_t n_vocab = 0;
    std::vector<Token> tokens;
    std::vector<float> logits;  // [n_vocab], or empty
    std::vector<unsigned char> sampler;
    std::string_view note;
};

// May throw std::bad_alloc.
std::vector<unsigned char> write_saved_session(const SavedSession& session);

// Of a session of a model of n_vocab tokens; the note lies in `bytes`. May throw std::bad_alloc. Errors:
// bad_version, corrupt_state; *out is untouched then.
Status read_saved_session(const std::vector<unsigned char>& bytes, std::uint32_t n_vocab, SavedSession* out);

}  // namespace gearkv
