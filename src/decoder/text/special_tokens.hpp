// Cutting special tokens out of a text: the longest text first, wherever it stands.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "decoder/text/vocabulary.hpp"

namespace gearkv {

// A run of text, which is one special token (token >= 0) or ordinary text.
struct Fragment {
    std::size_t begin;
    std::size_t end;
    Token token;
};

// Finds unknown, control and user-defined tokens by an automaton over all their texts (Aho and Corasick), so
// that time does not grow with their number.
class SpecialTokens {
  public:
    // May throw std::bad_alloc. Errors: bad_tokenizer (too many bytes of special texts).
    Status build(const Vocabulary& vocabulary);

    // Replaces *out by the fragments of a text of less than 4 GiB, in order; ordinary ones are never empty.
    // User-defined tokens are always cut out, the others only when `all`. Of tokens that overlap the longest
    // stays, then the lowest, then the leftmost. May throw std::bad_alloc.
    void cut(std::string_view text, bool all, std::vector<Fragment>* out) const;

  private:
    using Node = std::uint32_t;
    static constexpr Node root = 0;
    static constexpr Node none = 0xffffffff;

    struct State {
        Node child = none;    // the first of a list
        Node sibling = none;  // the next in the list
        Node fail = root;     // of the longest proper suffix that begins a special text
        // Of the longest suffix, itself included, that is a special text: a user-defined one, and any.
        Node match[2] = {none, none};
        std::uint32_t rank[2] = {0, 0};  // of the text that ends here, likewise: its place in `ranked_`
        char byte = 0;
    };
    struct Special {
        Token token;
        std::uint32_t n_bytes;
        Node node;
        bool user_defined;
    };

    Node step(Node node, char c) const noexcept;
    Node follow(Node node, char c) const noexcept;
    Node add(std::string_view text);
    void link();
    // The next shorter special text that ends where that of `node` does.
    Node shorter(Node node, bool all) const noexcept { return states_[states_[node].fail].match[all]; }

    std::vector<State> states_;
    std::vector<Special> ranked_;  // longest first, then by token
    Node first_[256];              // children of the root
};

}  // namespace gearkv
