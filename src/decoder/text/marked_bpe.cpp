// BPE on characters, as Gemma 4 has it: spaces are marked, line ends are parted from what is between them,
// and in every piece the pair that comes first in the list of merges is merged, leftmost first, until none is
// in it. What is no token then becomes byte tokens.
#include "decoder/gguf/utf8.hpp"
#include "decoder/text/encoder.hpp"
#include "decoder/text/marked_text.hpp"
#include "decoder/text/merge_table.hpp"
#include "decoder/text/merger.hpp"

namespace gearkv {
namespace {

class MarkedBpeEncoder final : public Encoder {
  public:
    MarkedBpeEncoder(const Vocabulary& vocabulary, MergeTable table)
        : vocabulary_(vocabulary), table_(std::move(table)) {}

    Status encode(std::string_view text, bool first, std::vector<Token>* out) const override {
        const std::string marked = mark_spaces(text, first && vocabulary_.add_space_prefix);
        const std::string_view all = marked;
        Merger merger;
        Status status;
        for (std::size_t begin = 0, end; begin < all.size() && status.ok(); begin = end) {
            const bool ends_lines = all[begin] == '\n';
            end = ends_lines ? all.find_first_not_of('\n', begin) : all.find('\n', begin);
            end = std::min(end, all.size());
            const std::string_view piece = all.substr(begin, end - begin);
            if (ends_lines && append_whole(piece, out)) continue;
            status = append_merged(piece, merger, out);
        }
        return status;
    }

    void decode(Token token, std::string* out) const override { decode_marked(vocabulary_, token, out); }

  private:
    bool append_whole(std::string_view piece, std::vector<Token>* out) const {
        if (piece.size() > max_token_bytes) return false;
        const Symbol symbol = vocabulary_.mergeable.find(vocabulary_.texts, piece);
        if (symbol >= vocabulary_.n_tokens()) return false;
        out->push_back(static_cast<Token>(symbol));
        return true;
    }

    Status append_merged(std::string_view piece, Merger& merger, std::vector<Token>* out) const {
        merger.clear();
        for (std::size_t at = 0; at < piece.size();) {
            const std::size_t n = character_bytes(piece.substr(at));
            merger.add(static_cast<std::uint32_t>(at), static_cast<std::uint32_t>(n),
                       vocabulary_.mergeable.find(vocabulary_.texts, piece.substr(at, n)));
            at += n;
        }
        const auto find = [&](const Merger::Piece& left, const Merger::Piece& right) -> Merged {
            if (left.symbol == no_symbol || right.symbol == no_symbol) return {};
            return table_.find(left.symbol, right.symbol);
        };
        for (const Merger::Piece& merged : merger.merge(find)) {
            if (merged.n_bytes == 0) continue;
            if (merged.symbol < vocabulary_.n_tokens()) {
                out->push_back(static_cast<Token>(merged.symbol));
                continue;
            }
            const Status status =
                append_byte_tokens(vocabulary_, piece.substr(merged.begin, merged.n_bytes), out);
            if (!status.ok()) return status;
        }
        return {};
    }

    const Vocabulary& vocabulary_;
    MergeTable table_;
};

}  // namespace

Status create_marked_bpe_encoder(const GgufFile& file, Vocabulary& vocabulary,
                                 std::unique_ptr<Encoder>* out) {
    MergeTable table;
    const Status status = table.read(file, vocabulary);
    if (status.ok()) *out = std::make_unique<MarkedBpeEncoder>(vocabulary, std::move(table));
    return status;
}

}  // namespace gearkv
