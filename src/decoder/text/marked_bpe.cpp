// BPE on characters, as Gemma 4 has it: spaces are marked, line ends are parted from what is between them,
// and in every piece the pair that comes first in the list of merges is merged, leftmost first, until none is
// in it. What is no token then becomes byte tokens.
#include "decoder/text/encoder.hpp"
#include "decoder/text/marked_text.hpp"
#include "decoder/text/merge_table.hpp"

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
        add_characters(vocabulary_, piece, merger);
        return table_.append_merged(merger, piece, vocabulary_.n_tokens(), out, [&](std::string_view bytes) {
            return append_byte_tokens(vocabulary_, bytes, out);
        });
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
