// Merging the pieces of a text pair by pair, in n log n steps.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "decoder/text/token_texts.hpp"

namespace gearkv {

// What two neighbouring pieces become.
struct Merged {
    Symbol symbol = no_symbol;   // no_symbol: they stay as they are
    std::uint32_t priority = 0;  // higher merges first
};

// Repeatedly merges the pair of the highest priority, leftmost among equals, until no pair can be merged.
class Merger {
  public:
    // A run of text that is one symbol, or none that is known.
    struct Piece {
        std::uint32_t begin;
        std::uint32_t n_bytes;  // 0 once merged into the piece before
        Symbol symbol;
        std::uint32_t previous;
        std::uint32_t next;
    };

    void clear() noexcept { pieces_.clear(); }
    // The next piece of the text; texts have less than 4 GiB. May throw std::bad_alloc.
    void add(std::uint32_t begin, std::uint32_t n_bytes, Symbol symbol) {
        const auto index = static_cast<std::uint32_t>(pieces_.size());
        pieces_.push_back({begin, n_bytes, symbol, index == 0 ? no_piece : index - 1, index + 1});
    }

    // The pieces when nothing can be merged any more; those with n_bytes == 0 are gone. `find` is a callable
    // that returns the Merged of two pieces. May throw std::bad_alloc.
    template <class Find>
    const std::vector<Piece>& merge(const Find& find) {
        if (!pieces_.empty()) pieces_.back().next = no_piece;
        queue_.clear();
        for (std::uint32_t i = 0; i + 1 < pieces_.size(); i++) {
            propose(i, i + 1, find);
        }
        while (!queue_.empty()) {
            const Candidate best = queue_.front();
            std::pop_heap(queue_.begin(), queue_.end(), worse);
            queue_.pop_back();
            const std::uint32_t index = ~static_cast<std::uint32_t>(best.order);
            Piece& left = pieces_[index];
            if (left.n_bytes == 0 || left.next == no_piece) continue;
            Piece& right = pieces_[left.next];
            if (left.n_bytes + right.n_bytes != best.n_bytes) continue;
            left.n_bytes = best.n_bytes;
            left.symbol = best.symbol;
            left.next = right.next;
            right.n_bytes = 0;
            if (left.next != no_piece) pieces_[left.next].previous = index;
            propose(left.previous, index, find);
            propose(index, left.next, find);
        }
        return pieces_;
    }

  private:
    static constexpr std::uint32_t no_piece = 0xffffffff;

    struct Candidate {
        std::uint64_t order;    // the priority, then the left piece's index inverted: higher merges first
        std::uint32_t n_bytes;  // of both; differs from the pieces' own when one has grown since
        Symbol symbol;
    };

    static bool worse(const Candidate& a, const Candidate& b) { return a.order < b.order; }

    template <class Find>
    void propose(std::uint32_t left, std::uint32_t right, const Find& find) {
        if (left == no_piece || right == no_piece) return;
        const Merged merged = find(pieces_[left], pieces_[right]);
        if (merged.symbol == no_symbol) return;
        const std::uint32_t n_bytes = pieces_[left].n_bytes + pieces_[right].n_bytes;
        queue_.push_back(
            {std::uint64_t{merged.priority} << 32 | (left ^ 0xffffffffu), n_bytes, merged.symbol});
        std::push_heap(queue_.begin(), queue_.end(), worse);
    }

    std::vector<Piece> pieces_;
    std::vector<Candidate> queue_;
};

}  // namespace gearkv
