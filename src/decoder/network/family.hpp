// What tells one family of models from another: one row of data each, and no code.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace gearkv {

// Which channels of a head RoPE turns together: 2i and 2i + 1, or i and i + rope_dim / 2.
enum class Pairing : std::uint8_t { adjacent, half_split };
// What the gate of the feed-forward goes through.
enum class Gate : std::uint8_t { silu, gelu };
// RMS norms of queries and keys before RoPE: of each head, or of all heads as one vector.
enum class HeadNorm : std::uint8_t { none, per_head, whole };

// Layers with a sliding window where the file has no pattern: all of them, those with
// layer % period < period - 1, or unknown.
inline constexpr std::uint32_t every_layer = 0;
inline constexpr std::uint32_t pattern_needed = 0xffffffff;

// A transformer of RMS norms, grouped attention with RoPE and a gated feed-forward, and where the family
// leaves that path. Keys of the file ("NAME.attention.scale" and so on) speak before what stands here.
struct Family {
    const char* name;  // as general.architecture has it
    Pairing pairing;
    Gate gate = Gate::silu;
    bool pre_norms = true;    // attn_norm and ffn_norm, of what goes into a branch
    bool post_norms = false;  // post_attention_norm and post_ffw_norm, of what comes out of it
    HeadNorm head_norm = HeadNorm::none;
    bool needs_biases = false;      // of queries, keys and values; else they are optional
    bool may_have_biases = false;   // of the attention output and the feed-forward
    bool fused_gate = false;        // ffn_up holds the gate's rows before its own
    bool scaled_embedding = false;  // by sqrt(n_embd)
    bool multipliers = false;       // keys scale the embedding, branches and logits, and may switch RoPE off
    float attention_cap = 0.0f;     // soft caps of scores and logits; 0: none
    float logit_cap = 0.0f;
    std::uint32_t window = 0;   // tokens; 0: none
    bool needs_window = false;  // the file must state one
    std::uint32_t window_period = every_layer;
    bool own_local_rope = false;       // layers with a window have unscaled RoPE of their own base,
    float local_base = 0.0f;           // this one; 0: as the others
    std::uint32_t rope_gap = 0;        // > 0: every so many layers, the last has no RoPE
    std::uint32_t scale_by_width = 0;  // models of so many layers scale scores by 1/sqrt(n_embd / n_heads)
};

// Null when the name is of no family here.
const Family* find_family(std::string_view name) noexcept;
// "llama, qwen2, ...", all names.
std::string family_names();

}  // namespace gearkv
