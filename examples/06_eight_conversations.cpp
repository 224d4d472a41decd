// Eight conversations at once: a step of all of them reads the weights once. Each gets the text it would get
// alone, token by token, which is computed beside to show it and to compare the time.
//
//   06_eight_conversations MODEL.gguf [SPEC]
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "gearkv/decoder.hpp"

using namespace gearkv;

namespace {

constexpr int n_tokens = 48;  // of each answer
constexpr const char* prompts[] = {"The old captain looked at the sea and",
                                   "It was a fine morning, and",
                                   "Nobody in the town had ever seen",
                                   "She opened the letter and read:",
                                   "In the north, where the winters are long,",
                                   "The first thing to know about bread is",
                                   "When the war was over,",
                                   "\"I do not believe it,\" said the boy, \"because"};

void require(const Status& status) {
    if (status.ok()) return;
    std::fprintf(stderr, "%s: %s\n", code_name(status.code()), status.message());
    std::exit(1);
}

std::unique_ptr<Session> start(const std::shared_ptr<const Model>& model, const SessionConfig& config,
                               const char* prompt, Executor& executor) {
    std::unique_ptr<Session> session;
    require(Session::create(model, config, executor, &session));
    std::vector<Token> tokens;
    require(model->tokenizer().encode(prompt, {}, &tokens));
    require(session->prefill(tokens.data(), tokens.size()));
    return session;
}

Token next_token(const Session& session, Sampler& sampler, const Model& model) {
    Token token;
    require(sampler.sample(session.logits(), model.params().n_vocab, &token));
    return token;
}

double seconds_since(std::chrono::steady_clock::time_point from) {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - from).count();
}

}  // namespace

int main(int argc, char** argv) {
    if (argc < 2) {
        std::fprintf(stderr, "usage: 06_eight_conversations MODEL.gguf [SPEC]\n");
        return 2;
    }
    std::shared_ptr<const Model> model;
    require(Model::load(argv[1], &model));
    std::unique_ptr<Executor> executor;
    require(create_executor(0, &executor));
    std::unique_ptr<Sampler> sampler;
    require(Sampler::create({}, &sampler));  // temperature 0: the likeliest token

    // One working memory for all caches: they attend together. Small chunks, since each session has room for
    // one.
    std::unique_ptr<Workspace> workspace;
    require(Workspace::create(default_allocator(), &workspace));
    SessionConfig config;
    require(parse_spec(argc > 2 ? argv[2] : "gear-4", &config.spec));
    config.n_ctx = 512;
    config.chunk = 64;
    config.workspace = workspace.get();

    std::vector<std::unique_ptr<Session>> alone, together;
    for (const char* prompt : prompts) {
        alone.push_back(start(model, config, prompt, *executor));
        together.push_back(start(model, config, prompt, *executor));
    }

    auto clock = std::chrono::steady_clock::now();
    for (const auto& session : alone) {
        for (int i = 0; i < n_tokens; ++i)
            require(session->decode(next_token(*session, *sampler, *model)));
    }
    const double alone_seconds = seconds_since(clock);

    clock = std::chrono::steady_clock::now();
    std::vector<DecodeRequest> requests(together.size());
    for (int i = 0; i < n_tokens; ++i) {
        for (std::size_t s = 0; s < together.size(); ++s) {
            requests[s].session = together[s].get();
            requests[s].token = next_token(*together[s], *sampler, *model);
        }
        require(Session::decode_batch(requests.data(), requests.size()));
    }
    const double together_seconds = seconds_since(clock);

    bool same = true;
    for (std::size_t s = 0; s < together.size(); ++s) {
        same &= together[s]->tokens() == alone[s]->tokens();
        std::string text;
        for (const Token token : together[s]->tokens())
            require(model->tokenizer().decode(token, &text));
        std::printf("--- %zu\n%s\n", s + 1, text.c_str());
    }
    const double n = static_cast<double>(n_tokens) * static_cast<double>(together.size());
    std::printf("--- one after another %.0f tokens a second, together %.0f; the tokens are %s\n",
                n / alone_seconds, n / together_seconds, same ? "the same" : "NOT the same");
    return same ? 0 : 1;
}
