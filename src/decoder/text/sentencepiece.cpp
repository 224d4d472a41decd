// SentencePiece-style BPE: a text is cut into characters; then the adjacent pair whose union is the
// best-scored token is merged, leftmost first among equals, until no union is a token. What the vocabulary
// lacks becomes byte tokens.
#include "decoder/text/encoder.hpp"
#include "decoder/text/marked_text.hpp"

namespace gearkv {
namespace {

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
        add_characters(vocabulary_, all, merger);
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
            const Status status =
                append_byte_tokens(vocabulary_, all.substr(piece.begin, piece.n_bytes), out);
            if (!status.ok()) return status;
        }
        return {};
    }

    void decode(Token token, std::string* out) const override { decode_marked(vocabulary_, token, out); }

  private:
    const Vocabulary& vocabulary_;
    std::size_t longest_ = 0;  // bytes of a token's text
};

}  // namespace

std::unique_ptr<Encoder> create_sentencepiece_encoder(const Vocabulary& vocabulary) {
    return std::make_unique<SentencepieceEncoder>(vocabulary);
}

}  // namespace gearkv
