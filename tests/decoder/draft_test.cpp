// Drafts: verified with the bits of single tokens, and found by prompt lookup.
#include <algorithm>

#include "sessions.hpp"

using namespace gearkv;
using namespace gearkv::test;

namespace {

Token likeliest(const float* logits, std::size_t n_vocab) {
    return static_cast<Token>(std::max_element(logits, logits + n_vocab) - logits);
}

}  // namespace

TEST_CASE("verified tokens have the bits of single ones, also where blocks close", "[draft]") {
    for (const char* spec : {"f16", "gear-4:sinks=2", "kivi-2:g=32,nb=32", "paper:gear-4:g=32,nb=32"}) {
        for (const std::uint32_t type : {gguf_f16, gguf_q8_0}) {
            CAPTURE(spec, type);
            ModelShape shape;
            shape.n_layers = 2;
            shape.matrix_type = type;
            Fixture fixture(spec, shape);
            fixture.config.n_ctx = 400;
            const std::size_t n_vocab = fixture.maker.n_vocab;
            const auto single = fixture.session(), several = fixture.session();
            const auto tokens = some_tokens(330);
            std::vector<float> logits(40 * n_vocab);
            for (std::size_t at = 0, n = 1; at + n <= tokens.size(); at += n, n = n % 37 + 4) {
                REQUIRE(several->decode(tokens.data() + at, n, logits.data()).ok());
                const std::vector<Token> part(tokens.data() + at, tokens.data() + at + n);
                const std::vector<float> expected = decode_all(single.get(), part, n_vocab);
                REQUIRE(std::equal(expected.begin(), expected.end(), logits.begin()));
                REQUIRE(copy_logits(*several, n_vocab) == copy_logits(*single, n_vocab));
                REQUIRE(several->tokens() == single->tokens());
            }
        }
    }
}

TEST_CASE("greedy text with drafts of a prompt lookup is that without, token by token", "[draft]") {
    for (const char* spec : {"f16", "kivi-2:g=32,nb=32"}) {
        CAPTURE(spec);
        Fixture fixture(spec);
        fixture.config.n_ctx = 200;
        const std::size_t n_vocab = fixture.maker.n_vocab;
        const auto plain = fixture.session();
        fixture.config.rollback_tokens = 8;
        const auto drafted = fixture.session();
        std::vector<Token> prompt = some_tokens(20);
        prompt.insert(prompt.end(), prompt.begin(), prompt.begin() + 10);
        REQUIRE(plain->prefill(prompt.data(), prompt.size()).ok());
        REQUIRE(drafted->prefill(prompt.data(), prompt.size()).ok());
        while (plain->n_tokens() < 150)
            REQUIRE(plain->decode(likeliest(plain->logits(), n_vocab)).ok());

        std::vector<float> logits(9 * n_vocab);
        Token next = likeliest(drafted->logits(), n_vocab);
        std::size_t n_right = 0, n_wrong = 0, n_steps = 0;
        while (drafted->n_tokens() < 150) {
            std::vector<Token> tokens = drafted->tokens();
            tokens.push_back(next);
            Token draft[8] = {next};
            const std::size_t n = 1 + look_up_draft(tokens.data(), tokens.size(), 3, 7, draft + 1);
            // What a small model says repeats itself: some drafts are made wrong.
            if (n_steps++ % 3 == 0 && n > 2) draft[n / 2] = static_cast<Token>((draft[n / 2] + 1) % n_vocab);
            const std::uint64_t before = drafted->n_tokens();
            REQUIRE(drafted->decode(draft, n, logits.data()).ok());
            std::size_t n_kept = 1;
            while (n_kept < n && draft[n_kept] == likeliest(logits.data() + (n_kept - 1) * n_vocab, n_vocab))
                n_kept++;
            bool lossless = true;
            if (n_kept < n) REQUIRE(drafted->truncate(before + n_kept, &lossless).ok());
            REQUIRE(lossless);
            next = likeliest(logits.data() + (n_kept - 1) * n_vocab, n_vocab);
            n_right += n_kept - 1;
            n_wrong += n - n_kept;
        }
        CHECK(n_right > 0);
        CHECK(n_wrong > 0);
        const std::vector<Token>&a = plain->tokens(), &b = drafted->tokens();
        CHECK(std::equal(a.begin(), a.begin() + 150, b.begin()));
    }
}

TEST_CASE("a draft is what followed the same tokens last", "[draft]") {
    const std::vector<Token> tokens = {1, 2, 3, 9, 1, 2, 3, 7, 8, 2, 3, 5, 1, 2, 3};
    Token draft[8];
    REQUIRE(look_up_draft(tokens.data(), tokens.size(), 3, 4, draft) == 4);
    CHECK(std::vector<Token>(draft, draft + 4) == std::vector<Token>{7, 8, 2, 3});
    REQUIRE(look_up_draft(tokens.data(), tokens.size(), 2, 1, draft) == 1);
    CHECK(draft[0] == 5);
    CHECK(look_up_draft(tokens.data(), 3, 3, 4, draft) == 0);
    CHECK(look_up_draft(nullptr, 0, 3, 4, draft) == 0);
}

TEST_CASE("drafts that cannot be fed are refused and nothing is fed", "[draft]") {
    Fixture fixture("f16");
    fixture.config.n_ctx = 10;
    fixture.config.chunk = 8;
    const auto session = fixture.session();
    const auto tokens = some_tokens(9);
    std::vector<float> logits(9 * fixture.maker.n_vocab);
    REQUIRE(session->decode(tokens.data(), 4, logits.data()).ok());
    const auto before = copy_logits(*session, fixture.maker.n_vocab);
    const Token bad[] = {1, -5};
    CHECK(session->decode(bad, 2, logits.data()).code() == Code::bad_token);
    CHECK(session->decode(tokens.data(), 0, logits.data()).code() == Code::wrong_size);
    CHECK(session->decode(tokens.data(), 9, logits.data()).code() == Code::wrong_size);
    CHECK(session->decode(tokens.data(), 7, logits.data()).code() == Code::context_full);
    CHECK(session->decode(nullptr, 2, logits.data()).code() == Code::invalid_argument);
    CHECK(session->decode(tokens.data(), 2, nullptr).code() == Code::invalid_argument);
    CHECK(session->n_tokens() == 4);
    CHECK(copy_logits(*session, fixture.maker.n_vocab) == before);
    CHECK(session->decode(tokens.data(), 6, logits.data()).ok());
}
