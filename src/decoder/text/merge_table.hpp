// The list of merges of a vocabulary.
#pragma once

#include <algorithm>
#include <vector>

#include "decoder/text/merger.hpp"
#include "decoder/text/vocabulary.hpp"

namespace gearkv {

inline constexpr std::uint64_t max_merges = 1u << 21;

// Which pairs of symbols merge, to what, and how early.
class MergeTable {
  public:
    // Texts of merges that are no tokens become symbols behind the last token.
    Status read(const GgufFile& file, Vocabulary& vocabulary) {
        const char* key = "tokenizer.ggml.merges";
        const GgufValue* merges = find_value(file, key);
        if (merges == nullptr) return Status::error(Code::missing_key, "the file has no '%s'", key);
        if (!merges->is_array || merges->element != ValueType::string || merges->n > max_merges) {
            return Status::error(
                Code::bad_tokenizer, "'%s' is %s%s of %llu, expected an array of at most %llu strings", key,
                merges->is_array ? "an array of " : "", value_type_name(merges->element),
                static_cast<unsigned long long>(merges->n), static_cast<unsigned long long>(max_merges));
        }
        std::vector<Merge> list;
        list.reserve(static_cast<std::size_t>(merges->n));
        StringCursor cursor(*merges);
        std::string both;
        for (std::uint32_t rank = 0; rank < merges->n; rank++) {
            const std::string_view text = cursor.next();
            const std::size_t space = text.find(' ', 1);
            if (text.empty() || space == std::string_view::npos || space + 1 == text.size() ||
                text.size() > max_token_bytes + 1) {
                return Status::error(Code::bad_tokenizer, "merge %u is '%s', expected two texts", rank,
                                     escape_text(text.substr(0, 64)).c_str());
            }
            Merge merge = {};
            merge.rank = rank;
            both.assign(text.substr(0, space));
            both.append(text.substr(space + 1));
            Status status = intern(text.substr(0, space), vocabulary, &merge.left);
            if (status.ok()) status = intern(text.substr(space + 1), vocabulary, &merge.right);
            if (status.ok()) status = intern(both, vocabulary, &merge.merged);
            if (!status.ok()) return status;
            list.push_back(merge);
        }
        sort_by_left(list, vocabulary.texts.size());
        return {};
    }

    Merged find(Symbol left, Symbol right) const noexcept {
        auto at = merges_.begin() + first_[left];
        const auto end = merges_.begin() + first_[left + 1];
        at = std::lower_bound(at, end, right, [](const Entry& e, Symbol s) { return e.right < s; });
        if (at == end || at->right != right) return {};
        return {at->merged, ~at->rank};
    }

    // Merges the pieces of a text as far as the table goes and appends their tokens, of which there are
    // n_tokens. What ends as none goes to append_rest(bytes). Errors: its own.
    template <class AppendRest>
    Status append_merged(Merger& merger, std::string_view text, std::size_t n_tokens, std::vector<Token>* out,
                         const AppendRest& append_rest) const {
        const auto find_pair = [&](const Merger::Piece& left, const Merger::Piece& right) -> Merged {
            if (left.symbol == no_symbol || right.symbol == no_symbol) return {};
            return find(left.symbol, right.symbol);
        };
        for (const Merger::Piece& piece : merger.merge(find_pair)) {
            if (piece.n_bytes == 0) continue;
            if (piece.symbol < n_tokens) {
                out->push_back(static_cast<Token>(piece.symbol));
            } else if (Status status = append_rest(text.substr(piece.begin, piece.n_bytes)); !status.ok()) {
                return status;
            }
        }
        return {};
    }

  private:
    static Status intern(std::string_view text, Vocabulary& vocabulary, Symbol* out) {
        *out = vocabulary.mergeable.find(vocabulary.texts, text);
        if (*out != no_symbol) return {};
        *out = static_cast<Symbol>(vocabulary.texts.size());
        if (vocabulary.texts.n_bytes() + text.size() > 2 * max_vocabulary_bytes) {
            return Status::error(Code::bad_tokenizer, "the tokens and merges have more than %zu bytes",
                                 2 * max_vocabulary_bytes);
        }
        vocabulary.texts.append(text);
        if (vocabulary.mergeable.add(vocabulary.texts, *out)) return {};
        return Status::error(Code::bad_tokenizer, "a merge collides with too many texts");
    }

    struct Merge {
        Symbol left;
        Symbol right;
        Symbol merged;
        std::uint32_t rank;
    };
    struct Entry {
        Symbol right;
        Symbol merged;
        std::uint32_t rank;
    };

    // Of equal pairs the first in the list counts: it is the first among those of its right symbol.
    void sort_by_left(const std::vector<Merge>& list, std::size_t n_symbols) {
        first_.assign(n_symbols + 1, 0);
        for (const Merge& merge : list) {
            first_[merge.left + 1]++;
        }
        for (std::size_t i = 0; i < n_symbols; i++) {
            first_[i + 1] += first_[i];
        }
        merges_.resize(list.size());
        std::vector<std::uint32_t> place(first_.begin(), first_.end() - 1);
        for (const Merge& merge : list) {
            merges_[place[merge.left]++] = {merge.right, merge.merged, merge.rank};
        }
        for (std::size_t i = 0; i < n_symbols; i++) {
            std::sort(merges_.begin() + first_[i], merges_.begin() + first_[i + 1],
                      [](const Entry& a, const Entry& b) {
                          return a.right != b.right ? a.right < b.right : a.rank < b.rank;
                      });
        }
    }

    std::vector<Entry> merges_;         // by left symbol, then ascending by right symbol
    std::vector<std::uint32_t> first_;  // [symbol + 1], into merges_
};

}  // namespace gearkv
