// Texts by number, and numbers by text.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace gearkv {

// What a text is made of while it is merged: a token, or a text behind the last token that only leads to one.
using Symbol = std::uint32_t;
inline constexpr Symbol no_symbol = 0xffffffff;

// Many short texts in one piece of memory.
class TokenTexts {
  public:
    void reserve(std::size_t n, std::size_t n_bytes) {
        ends_.reserve(n);
        bytes_.reserve(n_bytes);
    }
    // At most 4 GiB altogether. May throw std::bad_alloc.
    void append(std::string_view text) {
        bytes_.append(text);
        ends_.push_back(static_cast<std::uint32_t>(bytes_.size()));
    }
    std::size_t size() const noexcept { return ends_.size(); }
    std::size_t n_bytes() const noexcept { return bytes_.size(); }
    std::string_view operator[](std::size_t i) const noexcept {
        const std::size_t begin = i == 0 ? 0 : ends_[i - 1];
        return std::string_view(bytes_).substr(begin, ends_[i] - begin);
    }

  private:
    std::string bytes_;
    std::vector<std::uint32_t> ends_;
};

// Finds texts of a TokenTexts by hashing. Texts chosen to collide are refused, so that neither building nor
// searching takes more than a bounded number of steps a text.
class TextIndex {
  public:
    // Makes room for n texts. May throw std::bad_alloc.
    void reserve(const TokenTexts& texts, std::size_t n);
    // Adds a text unless one like it is there, which stays. False when too many texts share a hash. May throw
    // std::bad_alloc.
    bool add(const TokenTexts& texts, Symbol symbol);
    // no_symbol when there is none.
    Symbol find(const TokenTexts& texts, std::string_view text) const noexcept;

  private:
    struct Slot {
        Symbol symbol = no_symbol;
        std::uint32_t hash = 0;
    };

    // The slot of the text or the free one where it belongs; null after too many steps.
    const Slot* search(const TokenTexts& texts, std::string_view text, std::uint64_t hash) const noexcept;

    std::vector<Slot> slots_;  // a power of two, at most half of them in use
    std::size_t n_used_ = 0;
};

}  // namespace gearkv
