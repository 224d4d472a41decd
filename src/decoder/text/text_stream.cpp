// Tokens to text, one by one.
#include "decoder/gguf/guarded.hpp"
#include "decoder/gguf/utf8.hpp"
#include "gearkv/tokenizer.hpp"

namespace gearkv {
namespace {

// Bytes at the end of a text that begin a character and lack its rest.
std::size_t unfinished_bytes(std::string_view text) {
    for (std::size_t n = 1; n <= 3 && n <= text.size(); n++) {
        const auto lead = static_cast<unsigned char>(text[text.size() - n]);
        if ((lead & 0xc0) == 0x80) continue;
        const std::size_t wanted = lead >= 0xf0 ? 4 : lead >= 0xe0 ? 3 : lead >= 0xc0 ? 2 : 1;
        if (lead < 0xc2 || lead > 0xf4 || wanted <= n) return 0;
        // Not every continuation leads to a character: with the lowest and highest ones added, one must.
        std::string lowest(text.substr(text.size() - n)), highest = lowest;
        lowest.resize(wanted, '\x80');
        highest.resize(wanted, '\xbf');
        std::uint32_t character;
        return decode_character(lowest, &character) + decode_character(highest, &character) == 0 ? 0 : n;
    }
    return 0;
}

}  // namespace

Status TextStream::push(Token token, std::string* out) noexcept {
    if (out == nullptr || tokenizer_ == nullptr) {
        return Status::error(Code::invalid_argument, "null %s", out == nullptr ? "output" : "tokenizer");
    }
    return guarded([&] {
        std::string text = held_;
        bool at_start = at_start_;
        const Status status = tokenizer_->decode_next(token, options_.special, &at_start, &text);
        if (!status.ok()) return status;
        const std::size_t n_shown = text.size() - unfinished_bytes(text);
        std::string held = text.substr(n_shown);
        out->append(text, 0, n_shown);
        held_.swap(held);
        at_start_ = at_start;
        return Status();
    });
}

Status TextStream::flush(std::string* out) noexcept {
    if (out == nullptr) return Status::error(Code::invalid_argument, "null output");
    return guarded([&] {
        *out += held_;
        held_.clear();
        return Status();
    });
}

}  // namespace gearkv
