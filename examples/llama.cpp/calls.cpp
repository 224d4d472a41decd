// Random calls on the memory of two contexts of one model, one as the engine is and one with gearkv: the same
// positions, the same answers, and nothing left behind. Knows llama.h alone (build.sh DIR calls).
//   calls MODEL [SEQUENCES OF CALLS] [SPEC] [STREAMS: unified or own] [SEED] [THREADS: gearkv's contexts take
//   turns with one, two and so on up to this]
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <random>
#include <string>
#include <vector>

#include "program.h"

namespace {

constexpr int n_seqs = 4;
constexpr int n_calls = 12;  // after which both start anew

struct Both {
    llama_model* model = nullptr;
    llama_context* plain = nullptr;
    llama_context* gear = nullptr;
    bool unified = true;
    bool is_hybrid = false;  // convolutions and the like keep no past: calls that want it are refused
    int n_vocab = 0;
    double worst_kl = 0.0, sum_kl = 0.0;
    long n_answers = 0, n_same_top = 0;

    void make(const char* spec, int n_threads) {
        llama_context_params params = llama_context_default_params();
        params.n_ctx = unified ? 2048 : 2048 * n_seqs;
        params.n_batch = params.n_ubatch = 256;
        params.n_seq_max = n_seqs;
        params.kv_unified = unified;
        params.n_threads = params.n_threads_batch = 1;
        params.type_k = params.type_v = GGML_TYPE_F32;
        params.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_DISABLED;
        plain = make_context(model, params, nullptr);
        params.n_threads = params.n_threads_batch = n_threads;
        gear = make_context(model, params, spec);
    }
    void free() {
        llama_free(plain);
        llama_free(gear);
    }
    void each(const std::function<void(llama_context*, llama_memory_t)>& call) const {
        call(plain, llama_get_memory(plain));
        call(gear, llama_get_memory(gear));
    }
    int end(int seq) const { return llama_memory_seq_pos_max(llama_get_memory(plain), seq) + 1; }

    void compare_positions() const {
        for (int seq = 0; seq < n_seqs; ++seq) {
            const auto a = llama_get_memory(plain), b = llama_get_memory(gear);
            if (llama_memory_seq_pos_min(a, seq) != llama_memory_seq_pos_min(b, seq) ||
                llama_memory_seq_pos_max(a, seq) != llama_memory_seq_pos_max(b, seq))
                fail("positions of sequence " + std::to_string(seq));
        }
    }
    // KL of the answers to a token, and whether the first choice is the same.
    void compare_answers(int i) {
        const float* const a = llama_get_logits_ith(plain, i);
        const float* const b = llama_get_logits_ith(gear, i);
        const double max_a = *std::max_element(a, a + n_vocab), max_b = *std::max_element(b, b + n_vocab);
        double sum_a = 0.0, sum_b = 0.0, kl = 0.0;
        for (int v = 0; v < n_vocab; ++v) {
            sum_a += std::exp(a[v] - max_a);
            sum_b += std::exp(b[v] - max_b);
        }
        for (int v = 0; v < n_vocab; ++v) {
            const double log_a = a[v] - max_a - std::log(sum_a), log_b = b[v] - max_b - std::log(sum_b);
            kl += std::exp(log_a) * (log_a - log_b);
        }
        if (!(kl < 1e9)) fail("an answer is no number");
        worst_kl = std::max(worst_kl, kl);
        sum_kl += kl;
        ++n_answers;
        n_same_top += std::max_element(a, a + n_vocab) - a == std::max_element(b, b + n_vocab) - b ? 1 : 0;
    }
};

struct Caller {
    Both& both;
    std::mt19937& random;
    std::vector<std::uint8_t> saved[2];
    bool has_saved = false;
    bool is_pending = false;  // a shift or a copy, since the last token

    int below(int n) { return static_cast<int>(random() % static_cast<unsigned>(n)); }

    // New tokens for some sequences; alike, when they share their past and `together`.
    void decode(const std::vector<int>& seqs, int n, bool together) {
        llama_batch batch = llama_batch_init(256, 0, n_seqs);
        for (int i = 0; i < n; ++i) {
            for (std::size_t s = 0; s < (together ? 1 : seqs.size()); ++s) {
                const int at = batch.n_tokens++;
                batch.token[at] = 3 + below(both.n_vocab - 3);
                batch.pos[at] = both.end(seqs[s]) + i;
                batch.n_seq_id[at] = together ? static_cast<int>(seqs.size()) : 1;
                for (int j = 0; j < batch.n_seq_id[at]; ++j)
                    batch.seq_id[at][j] = together ? seqs[static_cast<std::size_t>(j)] : seqs[s];
                batch.logits[at] = i + 1 == n;
            }
        }
        both.each([&](llama_context* context, llama_memory_t) {
            if (const int code = llama_decode(context, batch))
                fail("llama_decode gave " + std::to_string(code));
        });
        for (int i = 0; i < batch.n_tokens; ++i)
            if (batch.logits[i]) both.compare_answers(i);
        llama_batch_free(batch);
        is_pending = false;
    }

    // False where a hybrid refuses, which both must then.
    bool remove(int seq, int p0, int p1) {
        const bool done = llama_memory_seq_rm(llama_get_memory(both.plain), seq, p0, p1);
        if (done != llama_memory_seq_rm(llama_get_memory(both.gear), seq, p0, p1) ||
            (!done && !both.is_hybrid))
            fail("seq_rm");
        return done;
    }

    void call(bool first) {
        const int seq = below(n_seqs), other = below(n_seqs), n = both.end(seq);
        switch (first ? 0 : below(11)) {
            case 0:
                if (first && both.unified) {
                    std::vector<int> seqs = {seq};
                    if (other != seq) seqs.push_back(other);
                    decode(seqs, 20 + below(200), true);
                } else {
                    decode({seq}, 1 + below(100), false);
                }
                break;
            case 1:
            case 2: {
                std::vector<int> seqs = {seq};
                if (other != seq) seqs.push_back(other);
                decode(seqs, 1 + below(8), false);
                break;
            }
            case 3:
                if (n > 0) remove(seq, below(n), -1);
                break;
            case 4:
            case 5: {  // context shift
                if (n < 30) break;
                const int p0 = below(n - 20), p1 = p0 + 1 + below(19);
                if (llama_memory_seq_pos_min(llama_get_memory(both.plain), seq) > p0) break;
                own(seq);
                if (!remove(seq, p0, p1)) break;
                both.each([&](llama_context*, llama_memory_t memory) {
                    llama_memory_seq_add(memory, seq, p1, -1, p0 - p1);
                });
                is_pending = true;
                break;
            }
            case 6:  // a hole
                if (n > 30) remove(seq, 10, 10 + below(15));
                break;
            case 7:
                if (seq == other) break;
                remove(other, -1, -1);
                both.each([&](llama_context*, llama_memory_t memory) {
                    llama_memory_seq_cp(
                        memory, seq, other, -1,
                        both.unified && !both.is_hybrid && n > 0 && seq % 2 == 0 ? n / 2 : -1);
                });
                is_pending = is_pending || !both.unified;
                break;
            case 8:  // with streams of their own the engine keeps the others' attention, and drops the rest
                if (below(4) == 0 && (both.unified || !both.is_hybrid))
                    both.each(
                        [&](llama_context*, llama_memory_t memory) { llama_memory_seq_keep(memory, seq); });
                if (below(8) == 0)
                    both.each(
                        [&](llama_context*, llama_memory_t memory) { llama_memory_clear(memory, true); });
                break;
            case 9:
                settle();
                if (has_saved && below(2) == 0) {
                    int i = 0;
                    both.each([&](llama_context* context, llama_memory_t) {
                        if (llama_state_set_data(context, saved[i].data(), saved[i].size()) == 0)
                            fail("llama_state_set_data");
                        ++i;
                    });
                } else {
                    int i = 0;
                    both.each([&](llama_context* context, llama_memory_t) {
                        saved[i].resize(llama_state_get_size(context));
                        if (llama_state_get_data(context, saved[i].data(), saved[i].size()) !=
                            saved[i].size())
                            fail("llama_state_get_data");
                        ++i;
                    });
                    has_saved = true;
                }
                break;
            default:  // one sequence, under another's name
                if (n == 0) break;
                settle();
                both.each([&](llama_context* context, llama_memory_t) {
                    std::vector<std::uint8_t> bytes(llama_state_seq_get_size(context, seq));
                    if (llama_state_seq_get_data(context, bytes.data(), bytes.size(), seq) != bytes.size())
                        fail("llama_state_seq_get_data");
                    if (llama_state_seq_set_data(context, bytes.data(), bytes.size(), other) == 0)
                        fail("llama_state_seq_set_data");
                });
        }
        both.compare_positions();
    }

    // The engine saves what is still to be turned or copied as if it were done: it is made to do it first.
    void settle() {
        if (is_pending) decode({below(n_seqs)}, 1, false);
    }

    // In the engine a shift moves cells that several sequences share for all of them: this one gets its own
    // first.
    void own(int seq) {
        settle();
        both.each([&](llama_context* context, llama_memory_t) {
            std::vector<std::uint8_t> bytes(llama_state_seq_get_size(context, seq));
            if (llama_state_seq_get_data(context, bytes.data(), bytes.size(), seq) != bytes.size() ||
                llama_state_seq_set_data(context, bytes.data(), bytes.size(), seq) == 0)
                fail("a sequence on its own");
        });
    }
};

}  // namespace

int main(int argc, char** argv) {
    if (argc < 2)
        return std::fprintf(stderr,
                            "calls MODEL [SEQUENCES OF CALLS] [SPEC] [unified or own] [SEED] [THREADS]\n"),
               2;
    const int n_sequences = argc > 2 ? std::atoi(argv[2]) : 1000;
    const char* const spec = argc > 3 ? argv[3] : "f32";
    Both both;
    both.unified = argc <= 4 || std::strcmp(argv[4], "own") != 0;
    std::mt19937 random(argc > 5 ? static_cast<unsigned>(std::atoi(argv[5])) : 1);
    const int most_threads = argc > 6 ? std::atoi(argv[6]) : 1;
    if (n_sequences < 1 || most_threads < 1) fail("numbers above 0");
    both.model = open_model(argv[1]);
    both.is_hybrid = llama_model_is_hybrid(both.model);
    both.n_vocab = n_vocab_of(both.model);
    for (int i = 0; i < n_sequences; ++i) {
        // New contexts now and then: what they hold is theirs to end.
        if (i % 50 == 0) {
            if (i > 0) both.free();
            both.make(spec, 1 + i / 50 % most_threads);
        }
        both.each([](llama_context*, llama_memory_t memory) { llama_memory_clear(memory, true); });
        Caller caller{both, random, {}, false};
        for (int call = 0; call < n_calls; ++call)
            caller.call(call == 0);
    }
    both.free();
    llama_model_free(both.model);
    std::printf(
        "%d sequences of %d calls, %s, %s streams: %ld answers, KL mean %.2g, most %.2g, first choice the "
        "same %.2f %%\n",
        n_sequences, n_calls, spec, both.unified ? "unified" : "own", both.n_answers,
        both.sum_kl / static_cast<double>(both.n_answers), both.worst_kl,
        100.0 * static_cast<double>(both.n_same_top) / static_cast<double>(both.n_answers));
    return 0;
}
