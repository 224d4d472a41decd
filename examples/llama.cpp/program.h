// What the programs of this folder begin with. Knows llama.h alone.
#pragma once

#include <llama.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

[[noreturn]] inline void fail(const std::string& what) {
    std::fprintf(stderr, "FAILED: %s\n", what.c_str());
    std::exit(1);
}

// A model on the CPU; of what the engine logs its errors are printed.
inline llama_model* open_model(const char* path) {
    llama_log_set(
        [](ggml_log_level level, const char* text, void*) {
            if (level == GGML_LOG_LEVEL_ERROR) std::fputs(text, stderr);
        },
        nullptr);
    llama_backend_init();
    llama_model_params params = llama_model_default_params();
    params.n_gpu_layers = 0;
    llama_model* const model = llama_model_load_from_file(path, params);
    if (model == nullptr) fail(std::string("no model ") + path);
    return model;
}

inline int n_vocab_of(const llama_model* model) {
    return llama_vocab_n_tokens(llama_model_get_vocab(model));
}

// With the engine's own cache if `spec` is null, whatever the environment says. May be null.
inline llama_context* try_context(llama_model* model, const llama_context_params& params, const char* spec) {
    if (spec != nullptr)
        setenv("GEARKV_SPEC", spec, 1);
    else
        unsetenv("GEARKV_SPEC");
    llama_context* const context = llama_init_from_model(model, params);
    unsetenv("GEARKV_SPEC");
    return context;
}

inline llama_context* make_context(llama_model* model, const llama_context_params& params, const char* spec) {
    llama_context* const context = try_context(model, params, spec);
    if (context == nullptr) fail("no context");
    return context;
}

// All tokens of a text file, and what the model begins texts with.
inline std::vector<llama_token> read_tokens(const llama_model* model, const char* path) {
    std::ifstream in(path, std::ios::binary);
    const std::string text((std::istreambuf_iterator<char>(in)), {});
    std::vector<llama_token> tokens(text.size() + 8);
    const int n_read =
        llama_tokenize(llama_model_get_vocab(model), text.data(), static_cast<int>(text.size()),
                       tokens.data(), static_cast<int>(tokens.size()), true, false);
    tokens.resize(static_cast<std::size_t>(std::max(n_read, 0)));
    return tokens;
}
