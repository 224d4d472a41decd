#include "decoder/text/special_tokens.hpp"

#include <algorithm>

namespace gearkv {
namespace {

constexpr std::size_t max_special_bytes = 2u << 20;  // of all special texts; Gemma has 80,000

bool is_special(TokenType type) {
    return type == TokenType::unknown || type == TokenType::control || type == TokenType::user_defined;
}

}  // namespace

SpecialTokens::Node SpecialTokens::step(Node node, char c) const noexcept {
    if (node == root) return first_[static_cast<unsigned char>(c)];
    Node child = states_[node].child;
    while (child != none && states_[child].byte != c) {
        child = states_[child].sibling;
    }
    return child;
}

// The state after one more byte.
SpecialTokens::Node SpecialTokens::follow(Node node, char c) const noexcept {
    for (;;) {
        const Node next = step(node, c);
        if (next != none) return next;
        if (node == root) return root;
        node = states_[node].fail;
    }
}

SpecialTokens::Node SpecialTokens::add(std::string_view text) {
    Node node = root;
    for (const char c : text) {
        Node next = step(node, c);
        if (next == none) {
            next = static_cast<Node>(states_.size());
            State state;
            state.byte = c;
            if (node == root) {
                first_[static_cast<unsigned char>(c)] = next;
            } else {
                state.sibling = states_[node].child;
                states_[node].child = next;
            }
            states_.push_back(state);
        }
        node = next;
    }
    return node;
}

// Fills in `fail` and `match`, nearest to the root first.
void SpecialTokens::link() {
    std::vector<Node> order;
    order.reserve(states_.size());
    for (const Node child : first_) {
        if (child != none) order.push_back(child);
    }
    for (std::size_t i = 0; i < order.size(); i++) {
        const Node node = order[i];
        for (int all = 0; all < 2; all++) {
            Node& match = states_[node].match[all];
            if (match == none) match = states_[states_[node].fail].match[all];
        }
        for (Node child = states_[node].child; child != none; child = states_[child].sibling) {
            states_[child].fail = follow(states_[node].fail, states_[child].byte);
            order.push_back(child);
        }
    }
}

Status SpecialTokens::build(const Vocabulary& vocabulary) {
    std::fill(std::begin(first_), std::end(first_), none);
    states_.assign(1, {});
    ranked_.clear();
    std::size_t n_bytes = 0;
    for (std::size_t i = 0; i < vocabulary.n_tokens(); i++) {
        const TokenType type = vocabulary.types[i];
        const std::string_view text = vocabulary.texts[i];
        if (!is_special(type) || text.empty()) continue;
        n_bytes += text.size();
        if (n_bytes > max_special_bytes) {
            return Status::error(Code::bad_tokenizer, "the special tokens have more than %zu bytes",
                                 max_special_bytes);
        }
        ranked_.push_back({static_cast<Token>(i), static_cast<std::uint32_t>(text.size()), root,
                           type == TokenType::user_defined});
    }
    std::stable_sort(ranked_.begin(), ranked_.end(),
                     [](const Special& a, const Special& b) { return a.n_bytes > b.n_bytes; });
    for (std::uint32_t rank = 0; rank < ranked_.size(); rank++) {
        Special& special = ranked_[rank];
        special.node = add(vocabulary.text(special.token));
        State& state = states_[special.node];
        for (int all = special.user_defined ? 0 : 1; all < 2; all++) {
            if (state.match[all] != none) continue;  // of equal texts the lowest token stands for all
            state.match[all] = special.node;
            state.rank[all] = rank;
        }
    }
    link();
    return {};
}

void SpecialTokens::cut(std::string_view text, bool all, std::vector<Fragment>* out) const {
    out->clear();
    // By rank, the places where its text ends. For every place only the longest candidate is kept: a shorter
    // one follows when that has lost to a token before it, so there are never more candidates than bytes.
    std::vector<std::vector<std::uint32_t>> ends;
    Node node = root;
    for (std::size_t i = 0; i < text.size(); i++) {
        node = follow(node, text[i]);
        const Node match = states_[node].match[all];
        if (match == none) continue;
        if (ends.empty()) ends.resize(ranked_.size());
        ends[states_[match].rank[all]].push_back(static_cast<std::uint32_t>(i + 1));
    }
    std::vector<bool> taken(ends.empty() ? 0 : text.size(), false);
    for (std::size_t rank = 0; rank < ends.size(); rank++) {
        std::sort(ends[rank].begin(), ends[rank].end());
        const Special& special = ranked_[rank];
        for (const std::uint32_t end : ends[rank]) {
            // Whatever was taken is at least as long, so it covers the first byte or the last one.
            if (taken[end - 1]) continue;
            if (taken[end - special.n_bytes]) {
                const Node next = shorter(special.node, all);
                if (next != none) ends[states_[next].rank[all]].push_back(end);
                continue;
            }
            std::fill_n(taken.begin() + (end - special.n_bytes), special.n_bytes, true);
            out->push_back({end - special.n_bytes, end, special.token});
        }
    }
    std::sort(out->begin(), out->end(),
              [](const Fragment& a, const Fragment& b) { return a.begin < b.begin; });
    // The ordinary text between them.
    const std::size_t n_special = out->size();
    std::size_t begin = 0;
    for (std::size_t i = 0; i < n_special; i++) {
        if ((*out)[i].begin > begin) out->push_back({begin, (*out)[i].begin, -1});
        begin = (*out)[i].end;
    }
    if (begin < text.size()) out->push_back({begin, text.size(), -1});
    std::inplace_merge(out->begin(), out->begin() + static_cast<std::ptrdiff_t>(n_special), out->end(),
                       [](const Fragment& a, const Fragment& b) { return a.begin < b.begin; });
}

}  // namespace gearkv
