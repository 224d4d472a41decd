// The merges of a vocabulary: every way to cut a token into two symbols.
#include <algorithm>

#include "decoder/text/vocabulary.hpp"

namespace gearkv {
namespace {

// A character of up to 4 bytes with its length as one number.
std::uint64_t character_key(const char* text, std::size_t n_bytes) {
    std::uint64_t key = n_bytes;
    for (std::size_t i = 0; i < n_bytes; i++) {
        key = key << 8 | static_cast<unsigned char>(text[i]);
    }
    return key;
}

// Finds the entries that are a prefix of a text, shortest first, by narrowing a range of the sorted entries
// byte by byte: all prefixes of a text take time in proportion to its length. Reversed texts give suffixes.
template <class Iterator>
class PrefixSearch {
  public:
    PrefixSearch(Iterator begin, Iterator end) : begin_(begin), end_(end) {}

    // Adds a byte to the prefix; returns the symbol of the entry that equals the prefix now, or no_symbol.
    Symbol extend(char c) {
        const int wanted = static_cast<unsigned char>(c);
        begin_ = skip_forward([this, wanted](Iterator entry) { return next_byte(entry) < wanted; });
        end_ = skip_backward([this, wanted](Iterator entry) { return next_byte(entry) > wanted; });
        depth_++;
        return begin_ != end_ && begin_->first.size() == depth_ ? begin_->second : no_symbol;
    }

  private:
    int next_byte(Iterator entry) const {
        return entry->first.size() > depth_ ? static_cast<unsigned char>(entry->first[depth_]) : -1;
    }

    // The ends of the range move by a few entries as a rule, so both are found by doubling steps.
    template <class Predicate>
    Iterator skip_forward(Predicate skipped) const {
        const std::ptrdiff_t n = end_ - begin_;
        std::ptrdiff_t below = 0;  // the first `below` entries are skipped
        std::ptrdiff_t step = 1;
        while (below + step <= n && skipped(begin_ + (below + step - 1))) {
            below += step;
            step *= 2;
        }
        while (step > 0) {
            if (below + step <= n && skipped(begin_ + (below + step - 1))) below += step;
            step /= 2;
        }
        return begin_ + below;
    }

    template <class Predicate>
    Iterator skip_backward(Predicate skipped) const {
        const std::ptrdiff_t n = end_ - begin_;
        std::ptrdiff_t above = 0;
        std::ptrdiff_t step = 1;
        while (above + step <= n && skipped(end_ - (above + step))) {
            above += step;
            step *= 2;
        }
        while (step > 0) {
            if (above + step <= n && skipped(end_ - (above + step))) above += step;
            step /= 2;
        }
        return end_ - above;
    }

    Iterator begin_;
    Iterator end_;
    std::size_t depth_ = 0;
};

// Of equal texts, the lowest token stands for all.
template <class Entries>
void sort_unique(Entries& entries) {
    std::sort(entries.begin(), entries.end());
    const auto same_text = [](const auto& a, const auto& b) { return a.first == b.first; };
    entries.erase(std::unique(entries.begin(), entries.end(), same_text), entries.end());
}

// Starts of the characters of a text, and its end.
void find_characters(const std::string& text, std::vector<std::size_t>* starts) {
    starts->clear();
    for (std::size_t at = 0; at < text.size(); at += character_bytes(text.data() + at, text.size() - at)) {
        starts->push_back(at);
    }
    starts->push_back(text.size());
}

}  // namespace

MergeTable::MergeTable(const Vocabulary& vocabulary) {
    Entries entries;
    for (std::size_t i = 0; i < vocabulary.texts.size(); i++) {
        const TokenType type = vocabulary.types[i];
        const bool mergeable = type == TokenType::normal || type == TokenType::user_defined;
        if (mergeable && !vocabulary.texts[i].empty()) {
            entries.emplace_back(vocabulary.texts[i], static_cast<Symbol>(i));
        }
    }
    sort_unique(entries);
    const std::size_t n_mergeable = entries.size();
    collect_characters(static_cast<Symbol>(vocabulary.texts.size()), entries);
    collect_merges(entries);
    index_merges(vocabulary.texts.size() + (entries.size() - n_mergeable));
}

// A token may consist of characters that are no tokens themselves; these become symbols behind the last
// token.
void MergeTable::collect_characters(Symbol n_tokens, Entries& entries) {
    std::vector<std::size_t> starts;
    for (const auto& [text, symbol] : entries) {
        find_characters(text, &starts);
        if (starts.size() == 2) characters_.emplace_back(character_key(text.data(), text.size()), symbol);
    }
    std::sort(characters_.begin(), characters_.end());

    Entries missing;
    for (const auto& [text, symbol] : entries) {
        find_characters(text, &starts);
        for (std::size_t i = 0; i + 1 < starts.size(); i++) {
            const std::size_t n = starts[i + 1] - starts[i];
            if (find_character(text.data() + starts[i], n) != no_symbol) continue;
            missing.emplace_back(text.substr(starts[i], n), no_symbol);
        }
    }
    sort_unique(missing);
    for (auto& [text, symbol] : missing) {
        symbol = n_tokens++;
        characters_.emplace_back(character_key(text.data(), text.size()), symbol);
    }
    std::sort(characters_.begin(), characters_.end());
    entries.insert(entries.end(), missing.begin(), missing.end());
    std::sort(entries.begin(), entries.end());
}

void MergeTable::collect_merges(const Entries& entries) {
    Entries reversed = entries;
    for (auto& [text, symbol] : reversed) {
        std::reverse(text.begin(), text.end());
    }
    std::sort(reversed.begin(), reversed.end());
    std::vector<Symbol> prefixes;  // [bytes]
    std::vector<std::size_t> starts;
    for (const auto& [text, symbol] : entries) {
        find_characters(text, &starts);
        prefixes.assign(text.size() + 1, no_symbol);
        PrefixSearch prefix(entries.begin(), entries.end());
        for (std::size_t i = 0; i < text.size(); i++) {
            prefixes[i + 1] = prefix.extend(text[i]);
        }
        PrefixSearch suffix(reversed.begin(), reversed.end());
        std::size_t border = starts.size() - 2;  // the character border the suffix grows towards
        for (std::size_t i = text.size() - 1; i > 0; i--) {
            const Symbol right = suffix.extend(text[i]);
            if (i != starts[border]) continue;
            border--;
            if (right != no_symbol && prefixes[i] != no_symbol)
                merges_.push_back({prefixes[i], right, symbol});
        }
    }
}

void MergeTable::index_merges(std::size_t n_symbols) {
    std::sort(merges_.begin(), merges_.end(), [](const Merge& a, const Merge& b) {
        return a.left != b.left ? a.left < b.left : a.right < b.right;
    });
    first_merge_.assign(n_symbols + 1, 0);
    for (const Merge& merge : merges_) {
        first_merge_[merge.left + 1]++;
    }
    for (std::size_t i = 0; i < n_symbols; i++) {
        first_merge_[i + 1] += first_merge_[i];
    }
}

Symbol MergeTable::find_character(const char* text, std::size_t n_bytes) const noexcept {
    const std::uint64_t key = character_key(text, n_bytes);
    const auto at = std::lower_bound(characters_.begin(), characters_.end(), key,
                                     [](const auto& entry, std::uint64_t k) { return entry.first < k; });
    return at != characters_.end() && at->first == key ? at->second : no_symbol;
}

Symbol MergeTable::find_merge(Symbol left, Symbol right) const noexcept {
    if (left == no_symbol || right == no_symbol) return no_symbol;
    const auto begin = merges_.begin() + first_merge_[left];
    const auto end = merges_.begin() + first_merge_[left + 1];
    const auto at = std::lower_bound(begin, end, right, [](const Merge& m, Symbol s) { return m.right < s; });
    return at != end && at->right == right ? at->merged : no_symbol;
}

}  // namespace gearkv
