// Small vocabularies of every kind, as GGUF files without tensors.
#pragma once

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "decoder/text/tokenizer.hpp"
#include "support/gguf_writer.hpp"

namespace gearkv::test {

struct Entry {
    std::string text;
    float score = 0.0f;
    TokenType type = TokenType::normal;
};

// The character that byte-level BPE writes for a byte.
inline std::string mapped_byte(unsigned byte) {
    unsigned c = byte;
    const auto is_printable = [](unsigned i) {
        return (i >= 0x21 && i <= 0x7e) || (i >= 0xa1 && i <= 0xac) || i >= 0xae;
    };
    if (!is_printable(byte)) {
        c = 0x100;
        for (unsigned i = 0; i < byte; i++) {
            c += is_printable(i) ? 0 : 1;
        }
    }
    if (c < 0x80) return std::string(1, static_cast<char>(c));
    return {static_cast<char>(0xc0 | c >> 6), static_cast<char>(0x80 | (c & 0x3f))};
}

inline std::string mapped(const std::string& text) {
    std::string out;
    for (const char c : text) {
        out += mapped_byte(static_cast<unsigned char>(c));
    }
    return out;
}

inline std::string byte_token(unsigned byte) {
    const char* digits = "0123456789ABCDEF";
    return std::string("<0x") + digits[byte / 16] + digits[byte % 16] + ">";
}

inline void set_entries(GgufWriter& file, const std::vector<Entry>& entries) {
    std::vector<std::string> texts;
    std::vector<float> scores;
    std::vector<std::int32_t> types;
    for (const Entry& entry : entries) {
        texts.push_back(entry.text);
        scores.push_back(entry.score);
        types.push_back(static_cast<std::int32_t>(entry.type));
    }
    file.set_array("tokenizer.ggml.tokens", texts);
    file.set_array("tokenizer.ggml.scores", scores);
    file.set_array("tokenizer.ggml.token_type", types);
}

// SentencePiece, with neither BOS nor a space prefix.
inline GgufWriter sentencepiece_file(const std::vector<Entry>& entries) {
    GgufWriter file;
    file.set("tokenizer.ggml.model", "llama");
    set_entries(file, entries);
    file.set("tokenizer.ggml.add_bos_token", false);
    file.set("tokenizer.ggml.add_space_prefix", false);
    return file;
}

// Byte-level BPE: the 256 bytes in order, what the merges make, then further entries.
inline GgufWriter byte_bpe_file(const std::string& pre,
                                const std::vector<std::pair<std::string, std::string>>& merges,
                                const std::vector<Entry>& entries = {}) {
    std::vector<Entry> all;
    for (unsigned byte = 0; byte < 256; byte++) {
        all.push_back({mapped_byte(byte)});
    }
    std::vector<std::string> lines;
    for (const auto& [left, right] : merges) {
        all.push_back({mapped(left + right)});
        lines.push_back(mapped(left) + " " + mapped(right));
    }
    all.insert(all.end(), entries.begin(), entries.end());
    GgufWriter file;
    file.set("tokenizer.ggml.model", "gpt2");
    if (!pre.empty()) file.set("tokenizer.ggml.pre", pre);
    set_entries(file, all);
    file.erase("tokenizer.ggml.scores");
    file.set_array("tokenizer.ggml.merges", lines);
    return file;
}

inline Status try_tokenizer(const GgufWriter& writer, std::shared_ptr<const Tokenizer>* out,
                            const TokenizerOptions& options = {}) {
    const Bytes bytes = writer.write();
    GgufFile file;
    const Status status = parse_gguf(&file, bytes.data(), bytes.size());
    return status.ok() ? create_tokenizer(file, options, out) : status;
}

}  // namespace gearkv::test
