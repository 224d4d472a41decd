#include "decoder/network/family.hpp"

namespace gearkv {
namespace {

constexpr Family families[] = {
    // Llama 1 to 3.2, Mistral, SmolLM 1 and 2.
    {.name = "llama", .pairing = Pairing::adjacent, .may_have_biases = true},
    {.name = "qwen2", .pairing = Pairing::half_split, .needs_biases = true},
    {.name = "qwen3", .pairing = Pairing::half_split, .head_norm = HeadNorm::per_head},
    {.name = "gemma", .pairing = Pairing::half_split, .gate = Gate::gelu, .scaled_embedding = true},
    {.name = "gemma2",
     .pairing = Pairing::half_split,
     .gate = Gate::gelu,
     .post_norms = true,
     .scaled_embedding = true,
     .attention_cap = 50.0f,
     .logit_cap = 30.0f,
     .window = 4096,
     .window_period = 2,
     .scale_by_width = 46},
    {.name = "gemma3",
     .pairing = Pairing::half_split,
     .gate = Gate::gelu,
     .post_norms = true,
     .head_norm = HeadNorm::per_head,
     .scaled_embedding = true,
     .needs_window = true,
     .window_period = 6,
     .own_local_rope = true,
     .local_base = 10000.0f,
     .scale_by_width = 62},
    {.name = "phi3", .pairing = Pairing::half_split, .fused_gate = true},
    {.name = "smollm3", .pairing = Pairing::adjacent, .rope_gap = 4},
    {.name = "granite", .pairing = Pairing::adjacent, .may_have_biases = true, .multipliers = true},
    // OLMo 2 and 3.
    {.name = "olmo2",
     .pairing = Pairing::half_split,
     .pre_norms = false,
     .post_norms = true,
     .head_norm = HeadNorm::whole,
     .window_period = pattern_needed,
     .own_local_rope = true},
};

}  // namespace

const Family* find_family(std::string_view name) noexcept {
    for (const Family& family : families) {
        if (family.name == name) return &family;
    }
    return nullptr;
}

std::string family_names() {
    std::string names;
    for (const Family& family : families) {
        names += names.empty() ? "" : ", ";
        names += family.name;
    }
    return names;
}

}  // namespace gearkv
