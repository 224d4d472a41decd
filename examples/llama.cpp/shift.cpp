// A text that goes past its context, as llama-completion's --context-shift has it: when the context is full,
// half of what lies behind the first tokens goes, and the rest moves up. The same text for three contexts:
// the engine's own cache in f32, one of gearkv's, and the engine's in fp16 with flash attention, which shows
// how far it differs from itself. Prints the KL divergence from the first, before the first shift and behind
// it. Knows llama.h alone (build.sh DIR shift).
//   shift MODEL TEXT SPEC [N_TOKENS] [CONTEXT]
// Ends with 1 when the three do not hold the same positions, or gearkv's answers are worse behind shifts than
// before.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "program.h"

namespace {

constexpr int n_keep = 24;

struct Context {
    llama_context* context;
    double sum[2] = {0.0, 0.0};  // of KL, before the first shift and behind it
    double mean(int behind, int n) const { return sum[behind] / std::max(n, 1); }
};

llama_context* make(llama_model* model, int n_context, ggml_type type, bool flash, const char* spec) {
    llama_context_params params = llama_context_default_params();
    params.n_ctx = static_cast<std::uint32_t>(n_context);
    params.n_batch = params.n_ubatch = 64;
    params.n_threads = params.n_threads_batch = 1;
    params.type_k = params.type_v = type;
    params.flash_attn_type = flash ? LLAMA_FLASH_ATTN_TYPE_ENABLED : LLAMA_FLASH_ATTN_TYPE_DISABLED;
    params.swa_full = true;  // or models with windows cannot shift
    llama_context* const made = make_context(model, params, spec);
    if (!llama_memory_can_shift(llama_get_memory(made))) fail("this model's memory cannot shift");
    return made;
}

std::vector<double> log_softmax(const float* logits, int n) {
    std::vector<double> out(logits, logits + n);
    const double most = *std::max_element(out.begin(), out.end());
    double sum = 0.0;
    for (const double each : out)
        sum += std::exp(each - most);
    for (double& each : out)
        each -= most + std::log(sum);
    return out;
}

double divergence(const std::vector<double>& from, const std::vector<double>& to) {
    double sum = 0.0;
    for (std::size_t i = 0; i < from.size(); ++i)
        sum += std::exp(from[i]) * (from[i] - to[i]);
    return sum;
}

}  // namespace

int main(int argc, char** argv) {
    if (argc < 4) return std::fprintf(stderr, "shift MODEL TEXT SPEC [N_TOKENS] [CONTEXT]\n"), 2;
    const int n_wanted = argc > 4 ? std::atoi(argv[4]) : 1200,
              n_context = argc > 5 ? std::atoi(argv[5]) : 512;
    llama_model* const model = open_model(argv[1]);
    const int n_vocab = n_vocab_of(model);
    const std::vector<llama_token> tokens = read_tokens(model, argv[2]);
    if (static_cast<int>(tokens.size()) < n_wanted || n_wanted <= n_context || n_context < 4 * n_keep)
        fail("no more tokens than the context has, or too small a context");

    std::vector<Context> contexts = {{make(model, n_context, GGML_TYPE_F32, false, nullptr)},
                                     {make(model, n_context, GGML_TYPE_F32, false, argv[3])},
                                     {make(model, n_context, GGML_TYPE_F16, true, nullptr)}};
    int n_past = 0, n_shifts = 0, n_asked[2] = {0, 0};
    for (int at = 0; at < n_wanted;) {
        if (n_past + 1 >= n_context) {
            const int n_gone = (n_past - n_keep) / 2;
            for (const Context& each : contexts) {
                const llama_memory_t memory = llama_get_memory(each.context);
                if (!llama_memory_seq_rm(memory, 0, n_keep, n_keep + n_gone)) fail("seq_rm");
                llama_memory_seq_add(memory, 0, n_keep + n_gone, n_past, -n_gone);
            }
            n_past -= n_gone;
            ++n_shifts;
        }
        const int behind = n_shifts > 0 ? 1 : 0;
        int n = std::min({64, n_wanted - at, n_context - 1 - n_past});
        llama_batch batch = llama_batch_init(n, 0, 1);
        for (batch.n_tokens = 0; batch.n_tokens < n; ++batch.n_tokens) {
            const int i = batch.n_tokens;
            batch.token[i] = tokens[static_cast<std::size_t>(at + i)];
            batch.pos[i] = n_past + i;
            batch.n_seq_id[i] = 1;
            batch.seq_id[i][0] = 0;
            batch.logits[i] = i % 4 == 3;
        }
        for (const Context& each : contexts)
            if (const int code = llama_decode(each.context, batch))
                fail("llama_decode gave " + std::to_string(code));
        for (int i = 3; i < n; i += 4) {
            const auto own = log_softmax(llama_get_logits_ith(contexts[0].context, i), n_vocab);
            for (std::size_t c = 1; c < contexts.size(); ++c)
                contexts[c].sum[behind] +=
                    divergence(own, log_softmax(llama_get_logits_ith(contexts[c].context, i), n_vocab));
            ++n_asked[behind];
        }
        llama_batch_free(batch);
        at += n;
        n_past += n;
        for (const Context& each : contexts) {
            const llama_memory_t memory = llama_get_memory(each.context);
            if (llama_memory_seq_pos_min(memory, 0) != 0 || llama_memory_seq_pos_max(memory, 0) != n_past - 1)
                fail("positions " + std::to_string(llama_memory_seq_pos_min(memory, 0)) + " to " +
                     std::to_string(llama_memory_seq_pos_max(memory, 0)) + ", expected 0 to " +
                     std::to_string(n_past - 1));
        }
    }
    const double before = contexts[1].mean(0, n_asked[0]), after = contexts[1].mean(1, n_asked[1]),
                 noise = std::max(contexts[2].mean(0, n_asked[0]), contexts[2].mean(1, n_asked[1]));
    const bool right = std::isfinite(after) && after < 2 * (before + noise);
    std::printf(
        "%d tokens, context %d, %d shifts: KL of %s before %.2g, behind %.2g; of the engine's fp16 %.2g, "
        "%.2g%s\n",
        n_wanted, n_context, n_shifts, argv[3], before, after, contexts[2].mean(0, n_asked[0]),
        contexts[2].mean(1, n_asked[1]), right ? "" : ": WORSE behind shifts");
    for (const Context& each : contexts)
        llama_free(each.context);
    llama_model_free(model);
    return right ? 0 : 1;
}
