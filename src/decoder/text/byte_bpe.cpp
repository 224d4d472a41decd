// Byte-level BPE: a text is split by a rule; then every piece starts as bytes, each written as a character of
// its own, and the pair that comes first in the list of merges is merged, leftmost first, until none is in
// it.
#include <algorithm>

#include "decoder/gguf/utf8.hpp"
#include "decoder/text/encoder.hpp"
#include "decoder/text/merge_table.hpp"
#include "decoder/text/merger.hpp"
#include "decoder/text/split.hpp"

namespace gearkv {
namespace {

constexpr std::uint32_t n_mapped = 0x100 + 68;

// Bytes that are printable in Latin-1 stand for themselves, the other 68 are U+0100 and up in their order.
struct ByteMap {
    std::uint32_t character[256] = {};
    std::int16_t byte[n_mapped] = {};  // -1: a character that stands for no byte

    constexpr ByteMap() {
        std::fill(std::begin(byte), std::end(byte), std::int16_t{-1});
        std::uint32_t next = 0x100;
        for (std::uint32_t i = 0; i < 256; i++) {
            const bool printable = (i >= 0x21 && i <= 0x7e) || (i >= 0xa1 && i <= 0xac) || i >= 0xae;
            character[i] = printable ? i : next++;
            byte[character[i]] = static_cast<std::int16_t>(i);
        }
    }
};
constexpr ByteMap byte_map;

// U+FFFD for every byte that is no UTF-8.
std::string with_replacements(std::string_view text) {
    std::string out;
    std::uint32_t c = 0;
    for (std::size_t at = 0; at < text.size();) {
        const std::size_t n = decode_character(text.substr(at), &c);
        append_character(n == 0 ? 0xfffd : c, &out);
        at += std::max<std::size_t>(n, 1);
    }
    return out;
}

class ByteBpeEncoder final : public Encoder {
  public:
    ByteBpeEncoder(const Vocabulary& vocabulary, MergeTable table, std::unique_ptr<Splitter> splitter,
                   bool ignore_merges)
        : vocabulary_(vocabulary),
          table_(std::move(table)),
          splitter_(std::move(splitter)),
          ignore_merges_(ignore_merges) {
        std::string character;
        for (std::size_t i = 0; i < 256; i++) {
            character.clear();
            append_character(byte_map.character[i], &character);
            byte_symbols_[i] = vocabulary_.mergeable.find(vocabulary_.texts, character);
            has_all_bytes_ = has_all_bytes_ && byte_symbols_[i] < vocabulary_.n_tokens();
        }
        for (std::size_t i = 0; i < vocabulary.n_tokens(); i++) {
            longest_ = std::max(longest_, vocabulary.texts[i].size());
        }
    }

    Status encode(std::string_view text, bool, std::vector<Token>* out) const override {
        std::string replaced;
        if (!has_all_bytes_ && !is_utf8(text)) {
            replaced = with_replacements(text);
            text = replaced;
        }
        std::vector<std::uint32_t> ends;
        Status status = splitter_->split(text, &ends);
        Merger merger;
        std::string mapped;
        std::size_t begin = 0;
        for (const std::size_t end : ends) {
            if (!status.ok()) return status;
            const std::string_view piece = text.substr(begin, end - begin);
            begin = end;
            if (ignore_merges_ && append_whole(piece, &mapped, out)) continue;
            status = append_merged(piece, merger, out);
        }
        return status;
    }

    void decode(Token token, std::string* out) const override {
        const std::string_view text = vocabulary_.text(token);
        for (std::size_t at = 0; at < text.size();) {
            std::uint32_t c = 0;
            const std::size_t n = decode_character(text.substr(at), &c);
            if (n != 0 && c < n_mapped && byte_map.byte[c] >= 0) {
                *out += static_cast<char>(byte_map.byte[c]);
            } else {
                out->append(text.substr(at, std::max<std::size_t>(n, 1)));
            }
            at += std::max<std::size_t>(n, 1);
        }
    }

  private:
    bool append_whole(std::string_view piece, std::string* mapped, std::vector<Token>* out) const {
        if (piece.size() > longest_) return false;
        mapped->clear();
        for (const char c : piece) {
            append_character(byte_map.character[static_cast<unsigned char>(c)], mapped);
        }
        const Symbol symbol = vocabulary_.mergeable.find(vocabulary_.texts, *mapped);
        if (symbol >= vocabulary_.n_tokens()) return false;
        out->push_back(static_cast<Token>(symbol));
        return true;
    }

    Status append_merged(std::string_view piece, Merger& merger, std::vector<Token>* out) const {
        merger.clear();
        for (std::size_t i = 0; i < piece.size(); i++) {
            merger.add(static_cast<std::uint32_t>(i), 1, byte_symbols_[static_cast<unsigned char>(piece[i])]);
        }
        return table_.append_merged(merger, piece, vocabulary_.n_tokens(), out,
                                    [&](std::string_view bytes) { return append_bytes(bytes, out); });
    }

    Status append_bytes(std::string_view bytes, std::vector<Token>* out) const {
        for (std::size_t i = 0; i < bytes.size(); i++) {
            const Symbol symbol = byte_symbols_[static_cast<unsigned char>(bytes[i])];
            if (symbol < vocabulary_.n_tokens()) {
                out->push_back(static_cast<Token>(symbol));
                continue;
            }
            const Status status = append_unknown(vocabulary_, bytes.substr(i, 1), out);
            if (!status.ok()) return status;
        }
        return {};
    }

    const Vocabulary& vocabulary_;
    MergeTable table_;
    std::unique_ptr<Splitter> splitter_;
    bool ignore_merges_;
    std::size_t longest_ = 0;  // bytes of a token's text
    Symbol byte_symbols_[256];
    bool has_all_bytes_ = true;  // there is a token for every byte, hence for all that is no UTF-8
};

}  // namespace

Status create_byte_bpe_encoder(const GgufFile& file, const SplitRule& rule, Vocabulary& vocabulary,
                               std::unique_ptr<Encoder>* out) {
    std::unique_ptr<Splitter> splitter;
    Status status = create_splitter(rule, &splitter);
    MergeTable table;
    if (status.ok()) status = table.read(file, vocabulary);
    if (!status.ok()) return status;
    *out = std::make_unique<ByteBpeEncoder>(vocabulary, std::move(table), std::move(splitter),
                                            rule.ignore_merges);
    return {};
}

}  // namespace gearkv
