// How fast an engine's context computes at one depth, and what it holds then; with gearkv if GEARKV_SPEC is
// set. Knows llama.h alone (build.sh DIR rates). Filling a context takes minutes and timing it seconds, so
// that the state of a filled one is kept in a file: measure.py fills on a busy machine, and times on a quiet
// one.
//   rates fill MODEL STATE D1,D2,... [OPTION=VALUE]...   files STATE-D1 ... of random tokens, unless there
//   rates time MODEL STATE DEPTH [OPTION=VALUE]...         a line of JSON; at depth 0 of no file, a prompt
//   too
// Options: threads=1, flash=1, type=f16 (of the engine's cache: f32, f16, q8_0), context=8192, generated=32,
// prompt=1024
#include <sys/resource.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <map>
#include <random>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "program.h"

namespace {

struct Tokens {
    std::mt19937 random{1};
    int n_vocab;

    std::vector<llama_token> next(int n) {
        std::vector<llama_token> out(static_cast<std::size_t>(n));
        for (llama_token& token : out)
            token = 3 + static_cast<int>(random() % static_cast<unsigned>(n_vocab - 3));
        return out;
    }
};

void decode(llama_context* context, std::vector<llama_token> tokens) {
    for (std::size_t i = 0; i < tokens.size(); i += llama_n_batch(context)) {
        const auto n = static_cast<int>(std::min<std::size_t>(llama_n_batch(context), tokens.size() - i));
        if (llama_decode(context, llama_batch_get_one(tokens.data() + i, n)) != 0) fail("llama_decode");
    }
    llama_synchronize(context);
}

double now() {
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

}  // namespace

int main(int argc, char** argv) {
    const std::string what = argc > 1 ? argv[1] : "";
    if (argc < 5 || (what != "fill" && what != "time"))
        return std::fprintf(stderr, "rates fill|time MODEL STATE DEPTH [OPTION=VALUE]...\n"), 2;
    const std::string state = argv[3];
    std::vector<int> depths;
    std::stringstream list(argv[4]);
    for (std::string each; std::getline(list, each, ',');)
        depths.push_back(std::atoi(each.c_str()));
    const auto file_of = [&](int depth) { return state + "-" + std::to_string(depth); };
    std::map<std::string, std::string> options = {{"threads", "1"},    {"flash", "1"},
                                                  {"type", "f16"},     {"context", "8192"},
                                                  {"generated", "32"}, {"prompt", "1024"}};
    for (int i = 5; i < argc; ++i) {
        const std::string text = argv[i];
        const auto equals = text.find('=');
        if (options.count(text.substr(0, equals)) == 0 || equals == std::string::npos) fail("option " + text);
        options[text.substr(0, equals)] = text.substr(equals + 1);
    }
    const auto number = [&](const char* name) { return std::atoi(options[name].c_str()); };
    const std::map<std::string, ggml_type> types = {
        {"f32", GGML_TYPE_F32}, {"f16", GGML_TYPE_F16}, {"q8_0", GGML_TYPE_Q8_0}};
    if (types.count(options["type"]) == 0) fail("type " + options["type"]);
    if (what == "fill" && std::all_of(depths.begin(), depths.end(),
                                      [&](int depth) { return std::ifstream(file_of(depth)).good(); }))
        return 0;

    llama_model* const model = open_model(argv[2]);
    llama_context_params params = llama_context_default_params();
    params.n_ctx = static_cast<std::uint32_t>(number("context"));
    params.n_threads = params.n_threads_batch = number("threads");
    params.swa_full = false;  // as all programs of the engine have it
    params.flash_attn_type =
        number("flash") != 0 ? LLAMA_FLASH_ATTN_TYPE_ENABLED : LLAMA_FLASH_ATTN_TYPE_DISABLED;
    params.type_k = params.type_v = types.at(options["type"]);
    llama_context* const context = llama_init_from_model(model, params);
    if (context == nullptr) fail("no context");
    const llama_memory_t memory = llama_get_memory(context);
    Tokens tokens;
    tokens.n_vocab = n_vocab_of(model);

    if (what == "fill") {
        const std::string part = state + ".part";
        int done = 0;
        for (const int depth : depths) {
            std::vector<llama_token> more = tokens.next(depth - done);
            done = depth;
            // A filling that was stopped goes on from the deepest state there is.
            std::size_t n_kept = 0;
            llama_token none;
            if (std::ifstream(file_of(depth)).good()) {
                if (!llama_state_load_file(context, file_of(depth).c_str(), &none, 0, &n_kept))
                    fail("cannot load " + file_of(depth));
                continue;
            }
            decode(context, std::move(more));
            if (!llama_state_save_file(context, part.c_str(), nullptr, 0) ||
                std::rename(part.c_str(), file_of(depth).c_str()) != 0)
                fail("cannot save " + file_of(depth));
        }
        llama_free(context);
        llama_model_free(model);
        return 0;
    }
    double prompt = 0.0;
    const int depth = depths.at(0);
    if (depth > 0) {
        std::size_t n_kept = 0;
        llama_token none;
        if (!llama_state_load_file(context, file_of(depth).c_str(), &none, 0, &n_kept))
            fail("cannot load " + file_of(depth));
    } else if (number("prompt") > 0) {
        decode(context, tokens.next(64));  // the model is in memory, and threads are there
        llama_memory_clear(memory, true);
        const double start = now();
        decode(context, tokens.next(number("prompt")));
        prompt = number("prompt") / (now() - start);
        llama_memory_clear(memory, true);
    }
    const llama_pos end = llama_memory_seq_pos_max(memory, 0);
    if (end + 1 != depth) fail("the state holds " + std::to_string(end + 1) + " tokens");
    const std::size_t n_bytes = llama_state_get_size(context);  // all cells that are in use
    decode(context, tokens.next(1));
    llama_memory_seq_rm(memory, 0, depth, -1);
    const double start = now();
    for (const llama_token token : tokens.next(number("generated")))
        decode(context, {token});
    const double rate = number("generated") / (now() - start);
    rusage usage{};
    getrusage(RUSAGE_SELF, &usage);
    std::printf(
        "{\"depth\": %d, \"decode\": %.3f, \"prompt\": %.3f, \"state_bytes\": %zu, \"peak_mib\": %.1f}\n",
        depth, rate, prompt, n_bytes, static_cast<double>(usage.ru_maxrss) / 1024);
    llama_free(context);
    llama_model_free(model);
    return 0;
}
