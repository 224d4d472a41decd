// Continue a text with a model, once with an fp16 cache and once with a compressed one.
//
//   03_generate MODEL.gguf [SPEC] [PROMPT]
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "gearkv/decoder.hpp"

using namespace gearkv;

namespace {

void require(const Status& status) {
    if (status.ok()) return;
    std::fprintf(stderr, "%s: %s\n", code_name(status.code()), status.message());
    std::exit(1);
}

// Generates n_tokens greedily; returns their text.
std::string generate(const std::shared_ptr<const Model>& model, const char* spec, const std::string& prompt,
                     int n_tokens, Executor& executor) {
    SessionConfig config;
    require(parse_spec(spec, &config.spec));
    std::unique_ptr<Session> session;
    require(Session::create(model, config, executor, &session));

    std::vector<Token> tokens;
    require(model->tokenizer().encode(prompt, {}, &tokens));
    require(session->prefill(tokens.data(), tokens.size()));

    std::unique_ptr<Sampler> sampler;
    require(Sampler::create({}, &sampler));  // temperature 0: the likeliest token
    std::string text;
    for (int i = 0; i < n_tokens; ++i) {
        Token token;
        require(sampler->sample(session->logits(), model->params().n_vocab, &token));
        if (token == model->tokenizer().eos()) break;
        require(model->tokenizer().decode(token, &text));
        require(session->decode(token));
    }

    const CacheStats stats = session->cache().stats();
    std::printf("--- %s: %llu tokens, %.2f bits per element, %llu bytes in blocks, %llu in the buffer\n%s\n",
                spec, static_cast<unsigned long long>(stats.n_tokens), stats.bits_per_element,
                static_cast<unsigned long long>(stats.bytes.keys.bytes + stats.bytes.values.bytes),
                static_cast<unsigned long long>(stats.bytes.buffer), text.c_str());
    return text;
}

}  // namespace

int main(int argc, char** argv) {
    if (argc < 2) {
        std::fprintf(stderr, "usage: 03_generate MODEL.gguf [SPEC] [PROMPT]\n");
        return 2;
    }
    const char* spec = argc > 2 ? argv[2] : "gear-4";
    const std::string prompt =
        argc > 3 ? argv[3] : "It was a fine morning, and the old man said to his daughter,\n";

    std::shared_ptr<const Model> model;
    require(Model::load(argv[1], &model));  // may be shared by any number of sessions
    std::unique_ptr<Executor> executor;
    require(create_executor(0, &executor));  // one thread per processor
    const std::string plain = generate(model, "f16", prompt, 160, *executor);
    const std::string compressed = generate(model, spec, prompt, 160, *executor);
    std::size_t n_same = 0;
    while (n_same < plain.size() && n_same < compressed.size() && plain[n_same] == compressed[n_same])
        ++n_same;
    std::printf("--- the first %zu of %zu bytes are the same\n", n_same, plain.size());
    return plain.empty() || compressed.empty() ? 1 : 0;
}
