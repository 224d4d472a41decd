#include "decoder/text/tokenizer.hpp"

#include <queue>

#include "decoder/gguf/guarded.hpp"

namespace gearkv {
namespace {

constexpr std::string_view space_mark = "\xe2\x96\x81";  // U+2581, which stands for a space

// A run of text that is one symbol; a doubly linked list in text order.
struct Piece {
    std::uint32_t previous;
    std::uint32_t next;
    std::uint32_t begin;
    std::uint32_t n_bytes;  // 0 once merged into the piece before
    Symbol symbol;
};
constexpr std::uint32_t no_piece = 0xffffffff;

struct Candidate {
    float score;
    std::uint32_t left;
    std::uint32_t right;
    std::uint32_t n_bytes;  // of both; differs from the pieces' own when one has grown since
    Symbol merged;
};

// Priority: higher score, then further left.
struct Worse {
    bool operator()(const Candidate& a, const Candidate& b) const {
        return a.score != b.score ? a.score < b.score : a.left > b.left;
    }
};

// Merges one text in n log n steps.
class Merger {
  public:
    Merger(const Vocabulary& vocabulary, const MergeTable& table, const std::string& text)
        : vocabulary_(vocabulary), table_(table) {
        for (std::size_t at = 0; at < text.size();) {
            const std::size_t n = character_bytes(text.data() + at, text.size() - at);
            const auto index = static_cast<std::uint32_t>(pieces_.size());
            pieces_.push_back({index == 0 ? no_piece : index - 1, index + 1, static_cast<std::uint32_t>(at),
                               static_cast<std::uint32_t>(n), table.find_character(text.data() + at, n)});
            at += n;
        }
        if (!pieces_.empty()) pieces_.back().next = no_piece;
    }

    // The pieces when nothing can be merged any more; those with n_bytes == 0 are gone.
    const std::vector<Piece>& merge() {
        for (std::uint32_t i = 0; i + 1 < pieces_.size(); i++) {
            propose(i, i + 1);
        }
        while (!queue_.empty()) {
            const Candidate best = queue_.top();
            queue_.pop();
            Piece& left = pieces_[best.left];
            Piece& right = pieces_[best.right];
            if (left.n_bytes == 0 || right.n_bytes == 0 || left.n_bytes + right.n_bytes != best.n_bytes)
                continue;
            left.n_bytes = best.n_bytes;
            left.symbol = best.merged;
            left.next = right.next;
            right.n_bytes = 0;
            if (left.next != no_piece) pieces_[left.next].previous = best.left;
            propose(left.previous, best.left);
            propose(best.left, left.next);
        }
        return pieces_;
    }

  private:
    void propose(std::uint32_t left, std::uint32_t right) {
        if (left == no_piece || right == no_piece) return;
        const Symbol merged = table_.find_merge(pieces_[left].symbol, pieces_[right].symbol);
        if (merged == no_symbol) return;
        const std::uint32_t n_bytes = pieces_[left].n_bytes + pieces_[right].n_bytes;
        queue_.push({vocabulary_.scores[merged], left, right, n_bytes, merged});
    }

    const Vocabulary& vocabulary_;
    const MergeTable& table_;
    std::vector<Piece> pieces_;
    std::priority_queue<Candidate, std::vector<Candidate>, Worse> queue_;
};

std::string mark_spaces(std::string_view text, bool prefix) {
    std::string marked;
    marked.reserve(text.size() + space_mark.size());
    if (prefix) marked += space_mark;
    for (const char c : text) {
        if (c == ' ') {
            marked += space_mark;
        } else {
            marked += c;
        }
    }
    return marked;
}

class BpeTokenizer final : public Tokenizer {
  public:
    explicit BpeTokenizer(Vocabulary vocabulary) : vocabulary_(std::move(vocabulary)), table_(vocabulary_) {}

    Status encode(std::string_view text, bool add_bos, std::vector<Token>* out) const noexcept override {
        if (out == nullptr) return Status::error(Code::invalid_argument, "null output");
        // Marks treble the bytes of spaces, and pieces count bytes in 32 bits.
        constexpr std::size_t max_text_bytes = std::size_t{1} << 30;
        if (text.size() > max_text_bytes) {
            return Status::error(Code::prompt_too_long, "a text of %zu bytes, expected at most %zu",
                                 text.size(), max_text_bytes);
        }
        return guarded([&] { return encode_text(text, add_bos, *out); });
    }

    Status decode(Token token, std::string* out) const noexcept override {
        if (out == nullptr) return Status::error(Code::invalid_argument, "null output");
        const std::size_t n_vocab = vocabulary_.texts.size();
        if (token < 0 || static_cast<std::size_t>(token) >= n_vocab) {
            return Status::error(Code::bad_token, "token %d, expected 0 to %zu", token, n_vocab - 1);
        }
        return guarded([&] {
            *out += token_bytes(static_cast<std::size_t>(token));
            return Status();
        });
    }

    Token bos() const noexcept override { return vocabulary_.bos; }
    Token eos() const noexcept override { return vocabulary_.eos; }

  private:
    Status encode_text(std::string_view text, bool add_bos, std::vector<Token>& out) const {
        std::vector<Token> tokens;
        if (add_bos && vocabulary_.add_bos && vocabulary_.bos >= 0) tokens.push_back(vocabulary_.bos);
        const std::string marked = mark_spaces(text, vocabulary_.add_space_prefix && !text.empty());
        Merger merger(vocabulary_, table_, marked);
        for (const Piece& piece : merger.merge()) {
            if (piece.n_bytes == 0) continue;
            if (piece.symbol < vocabulary_.texts.size()) {
                tokens.push_back(static_cast<Token>(piece.symbol));
                continue;
            }
            for (std::uint32_t i = 0; i < piece.n_bytes; i++) {
                const auto byte = static_cast<unsigned char>(marked[piece.begin + i]);
                const Token token = vocabulary_.byte_tokens[byte];
                if (token < 0) {
                    return Status::error(Code::bad_tokenizer, "the vocabulary has no token for byte 0x%02x",
                                         byte);
                }
                tokens.push_back(token);
            }
        }
        out = std::move(tokens);
        return {};
    }

    std::string token_bytes(std::size_t token) const {
        const TokenType type = vocabulary_.types[token];
        const std::string& text = vocabulary_.texts[token];
        if (type == TokenType::control || type == TokenType::unknown) return {};
        if (type == TokenType::byte) return std::string(1, static_cast<char>(parse_byte_token(text)));
        std::string bytes;
        for (std::size_t at = 0; at < text.size();) {
            const bool space = text.compare(at, space_mark.size(), space_mark) == 0;
            bytes += space ? ' ' : text[at];
            at += space ? space_mark.size() : 1;
        }
        return bytes;
    }

    Vocabulary vocabulary_;
    MergeTable table_;
};

}  // namespace

std::unique_ptr<Tokenizer> create_tokenizer(Vocabulary vocabulary) {
    return std::make_unique<BpeTokenizer>(std::move(vocabulary));
}

}  // namespace gearkv
