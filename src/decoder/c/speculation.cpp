// Speculation for C.
#include "gearkv/speculation.hpp"

#include "decoder/c/convert.hpp"

using namespace gearkv;
using namespace gearkv::c;

namespace {

Speculation* cpp(gearkv_speculation* speculation) noexcept {
    return reinterpret_cast<Speculation*>(speculation);
}
const Speculation* cpp(const gearkv_speculation* speculation) noexcept {
    return reinterpret_cast<const Speculation*>(speculation);
}

Status check_speculation(const gearkv_speculation* speculation) noexcept {
    return speculation == nullptr ? null_argument("speculation") : Status();
}

}  // namespace

void gearkv_speculation_config_init(gearkv_speculation_config* config, size_t struct_size) {
    if (config == nullptr || struct_size < sizeof(size_t)) return;
    const SpeculationConfig defaults;
    gearkv_speculation_config mine = {};
    mine.n_draft = defaults.n_draft;
    mine.n_match = defaults.n_match;
    config->struct_size = struct_size;
    give(mine, config);
}

gearkv_code gearkv_speculation_create(gearkv_session* session, const gearkv_speculation_config* config,
                                      gearkv_speculation** out, gearkv_error* error) {
    if (session == nullptr) return report(null_argument("session"), error);
    if (out == nullptr) return report(null_argument("out"), error);
    gearkv_speculation_config taken;
    gearkv_speculation_config_init(&taken, sizeof(taken));
    if (config != nullptr) {
        if (Status status = take(config, "config", &taken); !status.ok()) return report(status, error);
    }
    std::unique_ptr<Speculation> made;
    const SpeculationConfig wanted = {taken.n_draft, taken.n_match, session_of(taken.drafter)};
    const Status status = Speculation::create(*session_of(session), wanted, &made);
    if (status.ok()) *out = reinterpret_cast<gearkv_speculation*>(made.release());
    return report(status, error);
}

void gearkv_speculation_destroy(gearkv_speculation* speculation) {
    delete cpp(speculation);
}

gearkv_code gearkv_speculation_decode(gearkv_speculation* speculation, gearkv_token token,
                                      gearkv_error* error) {
    if (Status status = check_speculation(speculation); !status.ok()) return report(status, error);
    return report(cpp(speculation)->decode(token), error);
}

const float* gearkv_speculation_logits(const gearkv_speculation* speculation) {
    return speculation == nullptr ? nullptr : cpp(speculation)->logits();
}

uint64_t gearkv_speculation_n_tokens(const gearkv_speculation* speculation) {
    return speculation == nullptr ? 0 : cpp(speculation)->n_tokens();
}

gearkv_code gearkv_speculation_settle(gearkv_speculation* speculation, gearkv_error* error) {
    if (Status status = check_speculation(speculation); !status.ok()) return report(status, error);
    return report(cpp(speculation)->settle(), error);
}

gearkv_code gearkv_speculation_get_stats(const gearkv_speculation* speculation, gearkv_speculation_stats* out,
                                         gearkv_error* error) {
    if (Status status = check_speculation(speculation); !status.ok()) return report(status, error);
    if (Status status = check_output(out, "out"); !status.ok()) return report(status, error);
    const SpeculationStats found = cpp(speculation)->stats();
    give({sizeof(gearkv_speculation_stats), found.n_tokens, found.n_drafted, found.n_right, found.n_passes},
         out);
    return report({}, error);
}
