#include "decoder/text/split.hpp"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <algorithm>
#include <string>

#include "decoder/gguf/utf8.hpp"

namespace gearkv {
namespace {

constexpr char no_character = '\x01';  // in the place of a byte that is no UTF-8

struct FreePcre2 {
    void operator()(pcre2_code* code) const noexcept { pcre2_code_free(code); }
    void operator()(pcre2_match_data* data) const noexcept { pcre2_match_data_free(data); }
    void operator()(pcre2_match_context* context) const noexcept { pcre2_match_context_free(context); }
};
using Code8 = std::unique_ptr<pcre2_code, FreePcre2>;
using MatchData = std::unique_ptr<pcre2_match_data, FreePcre2>;
using MatchContext = std::unique_ptr<pcre2_match_context, FreePcre2>;

PCRE2_SPTR units(std::string_view text) {
    return reinterpret_cast<PCRE2_SPTR>(text.data());
}

// PCRE2's own \s counts U+180E, which has been no white space since Unicode 6.3.
std::string with_unicode_spaces(std::string_view pattern) {
    std::string out;
    for (std::size_t i = 0; i < pattern.size(); i++) {
        if (pattern[i] != '\\') {
            out += pattern[i];
            continue;
        }
        const char escaped = pattern[++i];
        if (escaped == 's' || escaped == 'S') {
            out += escaped == 's' ? "\\p{White_Space}" : "\\P{White_Space}";
        } else {
            out += {'\\', escaped};
        }
    }
    return out;
}

// The text with the same places, but well-formed.
std::string repaired(std::string_view text) {
    std::string out(text);
    std::uint32_t code_point;
    for (std::size_t at = 0; at < text.size();) {
        const std::size_t n = decode_character(text.substr(at), &code_point);
        if (n == 0) out[at] = no_character;
        at += std::max<std::size_t>(n, 1);
    }
    return out;
}

class PatternSplitter final : public Splitter {
  public:
    explicit PatternSplitter(std::vector<Code8> stages, MatchContext context)
        : stages_(std::move(stages)), context_(std::move(context)) {}

    Status split(std::string_view text, std::vector<std::uint32_t>* ends) const override {
        std::string copy;
        if (!is_utf8(text)) {
            copy = repaired(text);
            text = copy;
        }
        const MatchData match(pcre2_match_data_create(1, nullptr));
        if (match == nullptr) return no_memory();
        ends->assign(1, static_cast<std::uint32_t>(text.size()));
        if (text.empty()) ends->clear();
        std::vector<std::uint32_t> next;
        for (const Code8& stage : stages_) {
            next.clear();
            std::uint32_t begin = 0;
            for (const std::uint32_t end : *ends) {
                const Status status =
                    split_piece(stage.get(), match.get(), text.substr(begin, end - begin), begin, &next);
                if (!status.ok()) return status;
                begin = end;
            }
            ends->swap(next);
        }
        return {};
    }

  private:
    static Status no_memory() { return Status::error(Code::out_of_memory, "out of memory"); }

    // Appends the ends of a piece's matches and gaps, counted from the start of the text.
    Status split_piece(const pcre2_code* code, pcre2_match_data* match, std::string_view piece,
                       std::uint32_t begin, std::vector<std::uint32_t>* ends) const {
        std::size_t at = 0;
        while (at < piece.size()) {
            int found =
                pcre2_match(code, units(piece), piece.size(), at, PCRE2_NO_UTF_CHECK, match, context_.get());
            if (found == PCRE2_ERROR_JIT_STACKLIMIT) {
                found = pcre2_match(code, units(piece), piece.size(), at, PCRE2_NO_UTF_CHECK | PCRE2_NO_JIT,
                                    match, context_.get());
            }
            if (found == PCRE2_ERROR_NOMATCH) break;
            // The limits are as high as they go, so memory is all that can run out.
            if (found < 0) return no_memory();
            const PCRE2_SIZE* place = pcre2_get_ovector_pointer(match);
            if (place[0] > at) ends->push_back(begin + static_cast<std::uint32_t>(place[0]));
            ends->push_back(begin + static_cast<std::uint32_t>(place[1]));
            at = place[1];
        }
        if (at < piece.size()) ends->push_back(begin + static_cast<std::uint32_t>(piece.size()));
        return {};
    }

    std::vector<Code8> stages_;
    MatchContext context_;
};

}  // namespace

Status create_splitter(const SplitRule& rule, std::unique_ptr<Splitter>* out) {
    MatchContext context(pcre2_match_context_create(nullptr));
    if (context == nullptr) return Status::error(Code::out_of_memory, "out of memory");
    // No pattern goes back over more than it has just passed; the default limits are met by long texts alone.
    pcre2_set_match_limit(context.get(), UINT32_MAX);
    pcre2_set_depth_limit(context.get(), UINT32_MAX);
    pcre2_set_heap_limit(context.get(), UINT32_MAX);
    std::vector<Code8> stages;
    for (const char* stage : rule.stages) {
        if (stage == nullptr) break;
        const std::string pattern = with_unicode_spaces(stage);
        int error = 0;
        PCRE2_SIZE place = 0;
        Code8 code(pcre2_compile(units(pattern), pattern.size(), PCRE2_UTF, &error, &place, nullptr));
        if (code == nullptr) {
            return Status::error(Code::out_of_memory, "PCRE2 error %d at %zu of a split pattern", error,
                                 place);
        }
        // Where the system forbids it, patterns are interpreted.
        (void)pcre2_jit_compile(code.get(), PCRE2_JIT_COMPLETE);
        stages.push_back(std::move(code));
    }
    *out = std::make_unique<PatternSplitter>(std::move(stages), std::move(context));
    return {};
}

}  // namespace gearkv
