// How byte-level BPE cuts a text into pieces before it merges: rules by name, run by PCRE2.
#pragma once

#include <cstdint>
#include <memory>
#include <string_view>
#include <vector>

#include "gearkv/status.hpp"

namespace gearkv {

// Stages run in order on every piece of the stage before; the matches of a stage's pattern and the gaps
// between them are its pieces, and to a pattern a piece is all there is.
struct SplitRule {
    const char* names;           // as in tokenizer.ggml.pre, with commas between them
    bool ignore_merges = false;  // a piece that is a token is taken whole
    bool adds_bos = false;       // when the file does not say
    const char* stages[6] = {};  // patterns, in which \s and \S mean Unicode white space
};

// Null for a name that is not known.
const SplitRule* find_split_rule(std::string_view name) noexcept;

// One name of each rule, with commas between them: short enough for a message.
const char* main_split_rule_names() noexcept;

class Splitter {
  public:
    virtual ~Splitter() = default;
    // Replaces *ends by where each piece ends, ascending; pieces follow one another without gaps and are
    // never empty. A byte that is no UTF-8 counts as a control character. Time grows with the bytes of the
    // text. May throw std::bad_alloc. Errors: out_of_memory.
    virtual Status split(std::string_view text, std::vector<std::uint32_t>* ends) const = 0;
};

// Immutable, shared freely between threads. May throw std::bad_alloc. Errors: out_of_memory.
Status create_splitter(const SplitRule& rule, std::unique_ptr<Splitter>* out);

}  // namespace gearkv
