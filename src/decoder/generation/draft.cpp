// Drafts of the tokens that may come, out of those that came.
#include <algorithm>

#include "gearkv/session.hpp"

namespace gearkv {

std::size_t look_up_draft(const Token* tokens, std::size_t n_tokens, std::size_t n_match, std::size_t n_draft,
                          Token* draft) noexcept {
    for (std::size_t n = std::min(n_match, n_tokens); n >= 2; n--) {
        const Token* last = tokens + n_tokens - n;
        for (std::size_t at = n_tokens - n; at-- > 0;) {
            if (!std::equal(last, last + n, tokens + at)) continue;
            for (std::size_t i = 0; i < n_draft; i++) {
                const std::size_t from = at + n + i;
                draft[i] = from < n_tokens ? tokens[from] : draft[from - n_tokens];
            }
            return n_draft;
        }
    }
    return 0;
}

}  // namespace gearkv
