#include "decoder/text/pieces.hpp"

#include <algorithm>

namespace gearkv {
namespace {

// Some vocabularies have user-defined tokens for runs of line ends and spaces, which mark nothing.
bool is_blank(std::string_view text) {
    constexpr std::string_view space_mark = "\xe2\x96\x81";
    while (!text.empty()) {
        const bool space = text.substr(0, space_mark.size()) == space_mark;
        const bool blank = text[0] == ' ' || (text[0] >= '\t' && text[0] <= '\r');
        if (!space && !blank) return false;
        text.remove_prefix(space ? space_mark.size() : 1);
    }
    return true;
}

class PieceCutter {
  public:
    PieceCutter(const Vocabulary& vocabulary, const SpecialTokens& special, const TextPiece* pieces,
                std::size_t n_pieces)
        : vocabulary_(vocabulary), special_(special), pieces_(pieces), n_pieces_(n_pieces) {}

    std::vector<Fragment> cut(std::string_view text) {
        find_marks();
        std::vector<Fragment> fragments;
        special_.cut(text, true, &fragments);
        if (all_allowed(fragments)) return fragments;
        return cut_one_by_one();
    }

  private:
    // The tokens of the pieces that may have any, without white space.
    void find_marks() {
        std::vector<Fragment> fragments;
        for (std::size_t i = 0; i < n_pieces_; i++) {
            if (!pieces_[i].parse_special) continue;
            special_.cut(pieces_[i].text, true, &fragments);
            for (const Fragment& fragment : fragments) {
                if (fragment.token >= 0 && !is_blank(vocabulary_.text(fragment.token)))
                    marks_.push_back(fragment.token);
            }
        }
        std::sort(marks_.begin(), marks_.end());
    }

    // Whether a piece without control tokens may have this one.
    bool is_plain(Token token) const {
        const std::vector<Token>& ends = vocabulary_.end_of_generation;
        return vocabulary_.type(token) == TokenType::user_defined && token != vocabulary_.bos &&
               !std::binary_search(marks_.begin(), marks_.end(), token) &&
               !std::binary_search(ends.begin(), ends.end(), token);
    }

    bool all_allowed(const std::vector<Fragment>& fragments) const {
        std::size_t piece = 0, begin = 0;  // of the piece where a fragment starts
        for (const Fragment& fragment : fragments) {
            if (fragment.token < 0 || is_plain(fragment.token)) continue;
            while (fragment.begin >= begin + pieces_[piece].text.size()) {
                begin += pieces_[piece++].text.size();
            }
            // Neighbours that are both markup hold it together.
            std::size_t last = piece, end = begin;
            for (; end < fragment.end; end += pieces_[last++].text.size()) {
                if (!pieces_[last].parse_special) return false;
            }
        }
        return true;
    }

    std::vector<Fragment> cut_one_by_one() const {
        std::vector<Fragment> all, fragments;
        std::size_t begin = 0;
        bool joins = false;  // the last fragment is text that goes on
        for (std::size_t i = 0; i < n_pieces_; i++) {
            special_.cut(pieces_[i].text, pieces_[i].parse_special, &fragments);
            for (Fragment fragment : fragments) {
                fragment.begin += begin;
                fragment.end += begin;
                const bool special = fragment.token >= 0;
                const bool refused = special && !pieces_[i].parse_special && !is_plain(fragment.token);
                if (special && !refused) {
                    all.push_back(fragment);
                    joins = false;
                    continue;
                }
                // In two parts, a text cannot become the token it spells.
                const std::size_t middle = refused ? fragment.begin + 1 : fragment.end;
                if (joins) {
                    all.back().end = middle;
                } else {
                    all.push_back({fragment.begin, middle, -1});
                }
                if (middle < fragment.end) all.push_back({middle, fragment.end, -1});
                joins = true;
            }
            begin += pieces_[i].text.size();
        }
        return all;
    }

    const Vocabulary& vocabulary_;
    const SpecialTokens& special_;
    const TextPiece* pieces_;
    std::size_t n_pieces_;
    std::vector<Token> marks_;  // ascending
};

}  // namespace

std::vector<Fragment> cut_pieces(const Vocabulary& vocabulary, const SpecialTokens& special,
                                 const TextPiece* pieces, std::size_t n_pieces, std::string_view text) {
    return PieceCutter(vocabulary, special, pieces, n_pieces).cut(text);
}

}  // namespace gearkv
