// SentencePiece-style BPE: a text is cut into characters; then the adjacent pair whose union is the
// best-scored token is merged, leftmost first among equals, until no union is a token. What the vocabulary
// lacks becomes byte tokens.
#include "decoder/gguf/utf8.hpp"
#include "decoder/text/encoder.hpp"
#include "decoder/text/merger.hpp"

namespace gearkv {
namespace {

constexpr std::string_view space_mark = "\xe2\x96\x81";  // U+2581, which stands for a space

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

class SentencepieceEncoder final : public Encoder {
  public:
    explicit SentencepieceEncoder(const Vocabulary& vocabulary) : vocabulary_(vocabulary) {
        for (std::size_t i = 0; i < vocabulary.n_tokens(); i++) {
            longest_ = std::max(longest_, vocabulary.texts[i].size());
        }
    }

    Status encode(std::string_view text, bool first, std::vector<Token>* out) const override {
        const std::string marked = mark_spaces(text, first && vocabulary_.add_space_prefix);
        const std::string_view all = marked;
        Merger merger;
        for (std::size_t at = 0; at < all.size();) {
            const std::size_t n = character_bytes(all.substr(at));
            merger.add(static_cast<std::uint32_t>(at), static_cast<std::uint32_t>(n),
                       vocabulary_.mergeable.find(vocabulary_.texts, all.substr(at, n)));
            at += n;
        }
        // A union is looked up by its text, so that pieces which are no tokens can be parts of one.
        const auto find = [&](const Merger::Piece& left, const Merger::Piece& right) -> Merged {
            const std::size_t n = std::size_t{left.n_bytes} + right.n_bytes;
            if (n > longest_) return {};
            const Symbol symbol = vocabulary_.mergeable.find(vocabulary_.texts, all.substr(left.begin, n));
            if (symbol == no_symbol) return {};
            return {symbol, vocabulary_.priorities[symbol]};
        };
        for (const Merger::Piece& piece : merger.merge(find)) {
            if (piece.n_bytes == 0) continue;
            if (piece.symbol != no_symbol) {
                out->push_back(static_cast<Token>(piece.symbol));
                continue;
            }
            const Status status = append_bytes(all.substr(piece.begin, piece.n_bytes), out);
            if (!status.ok()) return status;
        }
        return {};
    }

    void decode(Token token, std::string* out) const override {
        std::string_view text = vocabulary_.text(token);
        if (vocabulary_.type(token) == TokenType::byte) {
            *out += static_cast<char>(parse_byte_token(text));
            return;
        }
        for (std::size_t at; (at = text.find(space_mark)) != std::string_view::npos;) {
            out->append(text.substr(0, at));
            *out += ' ';
            text.remove_prefix(at + space_mark.size());
        }
        out->append(text);
    }

  private:
    // A character that is in no token: its bytes, or one unknown token for all of them.
    Status append_bytes(std::string_view character, std::vector<Token>* out) const {
        for (const char c : character) {
            if (vocabulary_.byte_tokens[static_cast<unsigned char>(c)] < 0)
                return append_unknown(vocabulary_, character, out);
        }
        for (const char c : character) {
            out->push_back(vocabulary_.byte_tokens[static_cast<unsigned char>(c)]);
        }
        return {};
    }

    const Vocabulary& vocabulary_;
    std::size_t longest_ = 0;  // bytes of a token's text
};

}  // namespace

std::unique_ptr<Encoder> create_sentencepiece_encoder(const Vocabulary& vocabulary) {
    return std::make_unique<SentencepieceEncoder>(vocabulary);
}

}  // namespace gearkv
