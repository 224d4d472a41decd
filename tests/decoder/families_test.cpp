// Every family on small random weights against a plain forward pass in double, and that each of its constants
// matters: a file or a reference with one of them changed must not agree.
#include <algorithm>
#include <cmath>
#include <functional>
#include <string>

#include "decoder/network/model.hpp"
#include "gearkv/decoder.hpp"
#include "support/catch.hpp"
#include "support/count_memory.hpp"
#include "support/reference_decoder.hpp"

using namespace gearkv;
using namespace gearkv::test;

namespace {

using Logits = std::vector<std::vector<double>>;  // [token][n_vocab]

constexpr std::size_t n_tokens = 72;
constexpr double agreement = 1e-4;  // of the largest logit of a token
constexpr double difference = 1e-3;

std::vector<Token> random_tokens() {
    std::vector<Token> tokens;
    std::mt19937 random(5);
    for (std::size_t i = 0; i < n_tokens; i++) {
        tokens.push_back(static_cast<Token>(random() % test_vocabulary().size()));
    }
    return tokens;
}

Logits reference_logits(ReferenceDecoder& reference) {
    Logits logits;
    for (const Token token : random_tokens()) {
        logits.push_back(reference.feed(static_cast<std::size_t>(token)));
    }
    return logits;
}

std::shared_ptr<const FileModel> load(const Bytes& bytes) {
    std::shared_ptr<const FileModel> model;
    const Status status = FileModel::load_bytes(bytes.data(), bytes.size(), &model);
    INFO(status.message());
    REQUIRE(status.ok());
    return model;
}

// Logits of the decoder; chunks of 1 are decoded one by one.
Logits decoder_logits(const ModelMaker& maker, std::uint32_t chunk = n_tokens, std::uint32_t n_ctx = 0) {
    const Bytes bytes = maker.file.write();
    const auto model = load(bytes);
    SessionConfig config;
    REQUIRE(parse_spec("f32", &config.spec).ok());
    config.chunk = chunk;
    config.n_ctx = n_ctx;
    std::unique_ptr<Session> session;
    const Status made = Session::create(model, config, serial_executor(), &session);
    INFO(made.message());
    REQUIRE(made.ok());
    const std::vector<Token> tokens = random_tokens();
    std::vector<float> all(n_tokens * maker.n_vocab);
    if (chunk == 1) {
        for (std::size_t t = 0; t < n_tokens; t++) {
            REQUIRE(session->decode(tokens[t]).ok());
            std::copy_n(session->logits(), maker.n_vocab, all.data() + t * maker.n_vocab);
        }
    } else {
        REQUIRE(session->prefill(tokens.data(), n_tokens, all.data()).ok());
    }
    Logits logits;
    for (std::size_t t = 0; t < n_tokens; t++) {
        const float* row = all.data() + t * maker.n_vocab;
        logits.emplace_back(row, row + maker.n_vocab);
    }
    return logits;
}

// The largest difference of a logit, as a share of the largest logit of its token.
double distance(const Logits& a, const Logits& b) {
    REQUIRE(a.size() == b.size());
    double worst = 0;
    for (std::size_t t = 0; t < a.size(); t++) {
        double size = 0;
        double largest = 0;
        for (std::size_t i = 0; i < a[t].size(); i++) {
            size = std::max(size, std::fabs(b[t][i]));
            largest = std::max(largest, std::fabs(a[t][i] - b[t][i]));
        }
        worst = std::max(worst, largest / size);
    }
    return worst;
}

struct OtherFile {
    const char* name;
    std::function<void(ModelShape&)> change;
};
struct OtherFacts {
    const char* name;
    std::function<void(FamilyFacts&)> change;
};

// The decoder agrees with the reference, whole and token by token; and neither a file that says something
// else than the reference knows, nor a reference that does something else than the family, agrees.
void check_family(const ModelShape& shape, const std::vector<OtherFile>& files,
                  const std::vector<OtherFacts>& facts) {
    CAPTURE(shape.family);
    const ModelMaker maker(shape);
    ReferenceDecoder reference(maker);
    const Logits expected = reference_logits(reference);
    const Logits found = decoder_logits(maker);
    CHECK(distance(found, expected) < agreement);
    CHECK(distance(decoder_logits(maker, 1), expected) < agreement);
    CHECK(distance(decoder_logits(maker, 13), expected) < agreement);
    for (const OtherFile& other : files) {
        CAPTURE(other.name);
        ModelShape changed = shape;
        other.change(changed);
        CHECK(distance(decoder_logits(ModelMaker(changed)), expected) > difference);
    }
    for (const OtherFacts& other : facts) {
        CAPTURE(other.name);
        ReferenceDecoder wrong(maker);
        other.change(wrong.facts);
        CHECK(distance(found, reference_logits(wrong)) > difference);
    }
}

ModelShape small(const char* family) {
    ModelShape shape;
    shape.family = family;
    shape.n_layers = 3;
    shape.head_dim = shape.rope_dim = 16;  // 64 channels of heads beside 32 of the embedding
    shape.n_ff = 48;
    shape.n_ctx = 128;
    return shape;
}

const OtherFile other_base = {"base", [](ModelShape& s) { s.rope_base *= 1.25f; }};
const OtherFile other_epsilon = {"epsilon", [](ModelShape& s) { s.norm_eps *= 10; }};
const OtherFile other_rope_dim = {"rotated channels", [](ModelShape& s) { s.rope_dim -= 2; }};
const OtherFile other_scale = {"scale of scores", [](ModelShape& s) { s.attention_scale = 0.26f; }};
const OtherFacts other_pairing = {"pairing", [](FamilyFacts& f) { f.adjacent = !f.adjacent; }};
const OtherFacts other_gate = {"gate", [](FamilyFacts& f) { f.gelu = !f.gelu; }};
const OtherFacts other_norm_place = {"norm after RoPE", [](FamilyFacts& f) { f.norm_after_rope = true; }};
const OtherFacts no_post_norms = {"post norms", [](FamilyFacts& f) { f.post_norms = false; }};
const OtherFacts no_head_norms = {"head norms", [](FamilyFacts& f) { f.head_norms = f.whole_norms = false; }};

}  // namespace

TEST_CASE("llama is computed as the reference does, and every constant of it counts") {
    ModelShape shape = small("llama");
    shape.norm_eps = 0.01f;
    check_family(shape, {other_base, other_epsilon, other_rope_dim, other_scale},
                 {other_pairing, other_gate});
}

TEST_CASE("llama with factors of its frequencies, biases everywhere and fused projections") {
    ModelShape shape = small("llama");
    shape.rope_factors = shape.biases = shape.branch_biases = shape.own_output = true;
    SECTION("apart") {
        check_family(shape, {other_base},
                     {{"bias of queries", [](FamilyFacts& f) { f.query_biases = false; }},
                      {"bias of keys", [](FamilyFacts& f) { f.key_biases = false; }},
                      {"bias of values", [](FamilyFacts& f) { f.value_biases = false; }}});
    }
    SECTION("fused") {
        shape.fused_qkv = true;
        check_family(shape, {other_base}, {other_pairing});
    }
    SECTION("the type of scaling that Llama 3 states is its factors alone") {
        shape.scaling = "llama3";
        shape.factor = 8.0f;
        ModelShape plain = shape;
        plain.scaling.clear();
        plain.factor = 0.0f;
        const ModelMaker maker(plain);
        ReferenceDecoder reference(maker);
        CHECK(distance(decoder_logits(ModelMaker(shape)), reference_logits(reference)) < agreement);
    }
}

TEST_CASE("qwen2 is computed as the reference does, and every constant of it counts") {
    ModelShape shape = small("qwen2");
    shape.biases = true;
    shape.rope_base = 1e6f;
    SECTION("apart") {
        check_family(shape, {other_base, {"width", [](ModelShape& s) { s.attention_scale = 1.0f / 3; }}},
                     {other_pairing,
                      other_gate,
                      {"bias of queries", [](FamilyFacts& f) { f.query_biases = false; }},
                      {"bias of keys", [](FamilyFacts& f) { f.key_biases = false; }},
                      {"bias of values", [](FamilyFacts& f) { f.value_biases = false; }}});
    }
    SECTION("fused") {
        shape.fused_qkv = true;
        check_family(shape, {other_base}, {other_pairing});
    }
}

TEST_CASE("qwen3 is computed as the reference does, and every constant of it counts") {
    ModelShape shape = small("qwen3");
    check_family(shape, {other_base, other_scale},
                 {other_pairing, other_gate, other_norm_place, no_head_norms});
}

TEST_CASE("gemma is computed as the reference does, and every constant of it counts") {
    ModelShape shape = small("gemma");
    check_family(shape, {other_base, other_scale},
                 {other_pairing, other_gate, {"embedding", [](FamilyFacts& f) { f.embedding_scale = 1; }}});
}

TEST_CASE("gemma2 is computed as the reference does, and every constant of it counts") {
    ModelShape shape = small("gemma2");
    shape.window = 20;
    shape.attention_cap = 2.0f;
    shape.logit_cap = 3.0f;
    const std::vector<OtherFile> files = {
        other_base,
        other_scale,
        {"window, shorter", [](ModelShape& s) { s.window--; }},
        {"window, longer", [](ModelShape& s) { s.window++; }},
        {"cap of scores", [](ModelShape& s) { s.attention_cap *= 1.05f; }},
        {"no cap of scores", [](ModelShape& s) { s.attention_cap = 0.0f; }},
        {"cap of logits", [](ModelShape& s) { s.logit_cap *= 1.05f; }},
        {"no cap of logits", [](ModelShape& s) { s.logit_cap = 0.0f; }},
        {"pattern", [](ModelShape& s) { s.window_period = 3; }},
    };
    check_family(shape, files,
                 {other_pairing,
                  other_gate,
                  no_post_norms,
                  {"embedding", [](FamilyFacts& f) { f.embedding_scale *= 1.01; }},
                  {"windows of odd layers", [](FamilyFacts& f) { f.window_period = 1; }},
                  {"windows of all layers", [](FamilyFacts& f) { f.window_period = 0; }}});
}

TEST_CASE("gemma2 has its caps, its window and its alternation where the file is silent") {
    ModelShape shape = small("gemma2");
    shape.attention_scale = 8.0f;  // scores that 50 cuts
    check_family(shape, {},
                 {{"cap of scores", [](FamilyFacts& f) { f.attention_cap = 55; }},
                  {"cap of logits", [](FamilyFacts& f) { f.logit_cap = 25; }}});
    const Bytes bytes = ModelMaker(shape).file.write();
    CHECK(load(bytes)->params().windows == std::vector<std::uint32_t>{4096, 0, 4096});
}

TEST_CASE("gemma3 is computed as the reference does, and every constant of it counts") {
    ModelShape shape = small("gemma3");
    shape.n_layers = 7;
    shape.window = 20;
    shape.rope_base = 1e5f;
    shape.scaling = "linear";
    shape.factor = 4.0f;
    const std::vector<OtherFile> files = {
        other_base,
        other_scale,
        {"window, shorter", [](ModelShape& s) { s.window--; }},
        {"window, longer", [](ModelShape& s) { s.window++; }},
        {"base of windows", [](ModelShape& s) { s.local_base = 11000.0f; }},
        {"factor", [](ModelShape& s) { s.factor = 4.4f; }},
        {"no factor", [](ModelShape& s) { s.scaling = "none"; }},
        {"pattern", [](ModelShape& s) { s.window_period = 5; }},
        {"cap of logits", [](ModelShape& s) { s.logit_cap = 10.0f; }},
    };
    check_family(shape, files,
                 {other_pairing,
                  other_gate,
                  other_norm_place,
                  no_head_norms,
                  no_post_norms,
                  {"embedding", [](FamilyFacts& f) { f.embedding_scale *= 1.01; }},
                  {"factor of windows", [](FamilyFacts& f) { f.local_is_scaled = true; }},
                  {"one base", [](FamilyFacts& f) { f.local_base = 1e5; }},
                  {"no windows", [](FamilyFacts& f) { f.window = 1000; }}});
    // The file may say all that the family is known for.
    shape.window_pattern = {true, true, true, true, true, false, true};
    shape.local_base = 10000.0f;
    check_family(shape, {{"pattern", [](ModelShape& s) { s.window_pattern[3] = false; }}}, {});
}

TEST_CASE("the largest gemma2 and gemma3 scale scores by the width of the model") {
    for (const bool is_third : {false, true}) {
        ModelShape shape = small(is_third ? "gemma3" : "gemma2");
        shape.n_layers = is_third ? 62 : 46;
        shape.window = 20;
        const double by_head = 1.0 / 4.0;
        ModelShape fewer = shape;
        fewer.n_layers--;
        const Bytes many_bytes = ModelMaker(shape).file.write(), fewer_bytes = ModelMaker(fewer).file.write();
        CHECK(static_cast<double>(load(many_bytes)->network().attention_scale) ==
              Approx(1.0 / std::sqrt(32.0 / 4.0)));
        CHECK(static_cast<double>(load(fewer_bytes)->network().attention_scale) == Approx(by_head));
    }
}

TEST_CASE("phi3 is computed as the reference does, and every constant of it counts") {
    ModelShape shape = small("phi3");
    shape.fused_qkv = true;
    shape.rope_dim = 12;
    SECTION("short") {
        check_family(shape, {other_base, other_rope_dim},
                     {other_pairing, other_gate, {"halves", [](FamilyFacts& f) { f.gate_first = false; }}});
    }
    SECTION("with a window") {
        shape.window = 20;
        check_family(shape,
                     {{"shorter", [](ModelShape& s) { s.window--; }},
                      {"longer", [](ModelShape& s) { s.window++; }},
                      {"none", [](ModelShape& s) { s.window = 0; }}},
                     {});
    }
    SECTION("with projections apart") {
        shape.fused_qkv = false;
        check_family(shape, {}, {other_pairing});
    }
}

TEST_CASE("phi3 takes its long factors beyond the original context, its short ones within") {
    ModelShape shape = small("phi3");
    shape.fused_qkv = shape.rope_factor_sets = true;
    shape.original_context = 100;
    shape.attention_factor = 1.3f;
    check_family(shape,
                 {{"magnitude", [](ModelShape& s) { s.attention_factor = 1.25f; }},
                  {"original context", [](ModelShape& s) { s.original_context = 128; }}},
                 {});
    const ModelMaker maker(shape);
    ReferenceDecoder longer(maker, 101), shorter(maker, 100);
    const Logits by_long = reference_logits(longer), by_short = reference_logits(shorter);
    CHECK(distance(by_long, by_short) > difference);
    CHECK(distance(decoder_logits(maker, 72, 101), by_long) < agreement);
    CHECK(distance(decoder_logits(maker, 72, 100), by_short) < agreement);
    // Where no magnitude is stated, it follows from the two contexts.
    shape.attention_factor = 0.0f;
    shape.original_context = 20;
    shape.scaling = "longrope";
    check_family(shape, {{"magnitude", [](ModelShape& s) { s.attention_factor = 1.0f; }}}, {});
}

TEST_CASE("smollm3 is computed as the reference does, and every constant of it counts") {
    ModelShape shape = small("smollm3");
    shape.n_layers = 5;
    check_family(shape, {other_base},
                 {other_pairing,
                  other_gate,
                  {"gaps", [](FamilyFacts& f) { f.rope_gap = 0; }},
                  {"other gaps", [](FamilyFacts& f) { f.rope_gap = 5; }}});
}

TEST_CASE("granite is computed as the reference does, and every constant of it counts") {
    ModelShape shape = small("granite");
    shape.embedding_scale = 3.0f;
    shape.residual_scale = 0.4f;
    shape.attention_scale = 0.2f;
    shape.logit_scale = 6.0f;
    check_family(shape,
                 {other_base,
                  {"embedding", [](ModelShape& s) { s.embedding_scale = 3.1f; }},
                  {"branches", [](ModelShape& s) { s.residual_scale = 0.41f; }},
                  {"scores", [](ModelShape& s) { s.attention_scale = 0.21f; }},
                  {"logits", [](ModelShape& s) { s.logit_scale = 6.1f; }}},
                 {other_pairing, other_gate, {"product", [](FamilyFacts& f) { f.logit_divisor = 1.0 / 6; }}});
    shape.branch_biases = shape.biases = true;
    check_family(shape, {}, {});
}

TEST_CASE("granite that says its RoPE was not trained has none") {
    ModelShape shape = small("granite");
    shape.logit_scale = 6.0f;
    ModelMaker maker(shape);
    maker.file.set("granite.rope.scaling.finetuned", false);
    ReferenceDecoder with(maker), without(maker);
    without.facts.rope_gap = 1;
    const Logits found = decoder_logits(maker);
    CHECK(distance(found, reference_logits(without)) < agreement);
    CHECK(distance(found, reference_logits(with)) > difference);
}

TEST_CASE("olmo2 is computed as the reference does, and every constant of it counts") {
    ModelShape shape = small("olmo2");
    shape.own_output = true;
    check_family(shape, {other_base}, {other_pairing, other_gate, no_post_norms, no_head_norms});
    // OLMo 3: windows by a pattern, YaRN where there are none.
    shape.window = 20;
    shape.window_pattern = {true, false, true};
    shape.scaling = "yarn";
    shape.factor = 8.0f;
    shape.original_context = 32;
    check_family(shape,
                 {{"shorter", [](ModelShape& s) { s.window--; }},
                  {"pattern", [](ModelShape& s) { s.window_pattern[1] = true; }},
                  {"factor", [](ModelShape& s) { s.factor = 9.0f; }}},
                 {{"YaRN of windows", [](FamilyFacts& f) { f.local_is_scaled = true; }}});
}

TEST_CASE("positions are scaled linearly and by YaRN in any family, and every constant counts") {
    for (const char* family : {"llama", "qwen2"}) {
        ModelShape shape = small(family);
        shape.biases = std::string(family) == "qwen2";
        shape.factor = 4.0f;
        check_family(shape, {{"factor", [](ModelShape& s) { s.factor = 4.4f; }}}, {});
        shape.attention_factor = 1.2f;
        check_family(shape, {{"magnitude", [](ModelShape& s) { s.attention_factor = 1.25f; }}}, {});
        shape.attention_factor = 0.0f;
        shape.scaling = "yarn";
        shape.rope_base = 1000.0f;
        shape.original_context = 64;
        const std::vector<OtherFile> files = {
            other_base,
            {"factor", [](ModelShape& s) { s.factor = 4.4f; }},
            {"linear", [](ModelShape& s) { s.scaling = "linear"; }},
            {"original context", [](ModelShape& s) { s.original_context = 32; }},
            {"fast turns", [](ModelShape& s) { s.yarn_fast = 2.0f; }},
            {"slow turns", [](ModelShape& s) { s.yarn_slow = 0.5f; }},
            {"magnitude", [](ModelShape& s) { s.attention_factor = 1.05f; }},
            {"multiplier", [](ModelShape& s) { s.yarn_log_multiplier = 1.0f; }},
        };
        check_family(shape, files, {other_pairing});
        shape.yarn_fast = 2.0f;
        shape.yarn_slow = 0.5f;
        shape.yarn_log_multiplier = 0.5f;
        shape.attention_factor = 1.1f;
        check_family(shape, {}, {});
    }
}

TEST_CASE("windows, caps and scales are obeyed in families that are not known for them") {
    ModelShape shape = small("llama");
    shape.window = 20;
    shape.window_period = 2;
    shape.attention_cap = 2.0f;
    shape.logit_cap = 3.0f;
    shape.attention_scale = 0.5f;
    check_family(shape,
                 {{"window", [](ModelShape& s) { s.window++; }},
                  {"pattern", [](ModelShape& s) { s.window_period = 0; }},
                  {"cap of scores", [](ModelShape& s) { s.attention_cap = 2.1f; }},
                  {"cap of logits", [](ModelShape& s) { s.logit_cap = 3.1f; }},
                  {"scale", [](ModelShape& s) { s.attention_scale = 0.52f; }}},
                 {});
}

TEST_CASE("windows reach the cache, and what has left them is given back") {
    ModelShape shape = small("gemma3");
    shape.n_layers = 6;
    shape.window = 64;
    shape.n_ctx = 1024;
    const Bytes bytes = ModelMaker(shape).file.write();
    const auto model = load(bytes);
    CHECK(model->params().family == std::string("gemma3"));
    CHECK(model->params().windows == std::vector<std::uint32_t>{64, 64, 64, 64, 64, 0});
    std::vector<Token> tokens;
    for (std::size_t i = 0; i < 1000; i++) {
        tokens.push_back(static_cast<Token>(i * 37 % 290));
    }
    const auto used_bytes = [&](const char* spec, std::uint32_t n_ctx, std::size_t n) {
        SessionConfig config;
        REQUIRE(parse_spec(spec, &config.spec).ok());
        config.n_ctx = n_ctx;
        config.chunk = 64;
        std::unique_ptr<Session> session;
        REQUIRE(Session::create(model, config, serial_executor(), &session).ok());
        CHECK((session->cache().config().windows == nullptr) == (n_ctx <= 64));
        REQUIRE(session->prefill(tokens.data(), n).ok());
        const CacheStats stats = session->cache().stats();
        return stats.bytes.keys.bytes + stats.bytes.values.bytes + stats.bytes.buffer;
    };
    for (const char* spec : {"f16:nb=64", "kivi-4:g=32,nb=64"}) {
        CHECK(used_bytes(spec, 64, 60) > 0);
        const std::uint64_t some = used_bytes(spec, 1024, 300), all = used_bytes(spec, 1024, 1000);
        // Only one layer of six has grown.
        CHECK(all > some);
        CHECK(all < 2 * some);
    }
}

TEST_CASE("in a context shift the keys of every layer turn by its own RoPE, and none is computed anew") {
    for (const char* family : {"gemma3", "smollm3", "olmo2"}) {
        ModelShape shape = small(family);
        shape.n_layers = 4;
        if (shape.family == "smollm3") {  // the last layer has none
            shape.scaling = "yarn";
            shape.factor = 3.0f;
            shape.original_context = 64;
        } else {
            shape.window = 50;
            shape.window_pattern = {true, false, true, true};
            shape.scaling = "linear";  // of the others
            shape.factor = 5.0f;
        }
        for (std::uint32_t layer = 0; layer < shape.n_layers; layer++) {
            CAPTURE(family, layer);
            // Where only one layer's attention counts, keys and values depend on token and place alone.
            ModelMaker maker(shape);
            for (std::uint32_t other = 0; other < shape.n_layers; other++) {
                const std::string name = "blk." + std::to_string(other) + ".attn_output.weight";
                Bytes& weights = maker.file.tensor(name).data;
                if (other != layer) std::fill(weights.begin(), weights.end(), std::uint8_t{0});
            }
            const Bytes bytes = maker.file.write();
            const auto model = load(bytes);
            SessionConfig config;
            REQUIRE(parse_spec("f32", &config.spec).ok());
            std::unique_ptr<Session> shifted, never;
            REQUIRE(Session::create(model, config, serial_executor(), &shifted).ok());
            REQUIRE(Session::create(model, config, serial_executor(), &never).ok());
            std::vector<Token> tokens = random_tokens();
            tokens.resize(110);
            REQUIRE(shifted->prefill(tokens.data(), tokens.size()).ok());
            for (const auto& [first, n] : {std::pair(8, 40), std::pair(0, 5)}) {
                bool anew = true;
                REQUIRE(
                    shifted->remove(static_cast<std::uint64_t>(first), static_cast<std::uint64_t>(n), &anew)
                        .ok());
                CHECK_FALSE(anew);
                CHECK(shifted->logits() != nullptr);
                tokens.erase(tokens.begin() + first, tokens.begin() + first + n);
            }
            REQUIRE(never->prefill(tokens.data(), tokens.size()).ok());
            REQUIRE(shifted->decode(3).ok());
            REQUIRE(never->decode(3).ok());
            for (std::size_t i = 0; i < maker.n_vocab; i++) {
                REQUIRE(shifted->logits()[i] == Approx(never->logits()[i]).margin(1e-4));
            }
        }
    }
}

TEST_CASE("keys move up by the frequencies, the pairing and the scaling they were turned with") {
    // Of one layer keys and values depend on token and place alone.
    ModelShape plain = small("qwen2");
    plain.biases = true;
    plain.rope_dim = 12;
    ModelShape stretched = plain;
    stretched.scaling = "yarn";
    stretched.factor = 4.0f;
    stretched.original_context = 64;
    ModelShape sets = small("phi3");
    sets.rope_factor_sets = true;
    sets.original_context = 100;
    sets.attention_factor = 1.3f;
    ModelShape unturned = small("granite");
    unturned.logit_scale = 6.0f;
    for (ModelShape shape : {plain, stretched, sets, unturned}) {
        CAPTURE(shape.family, shape.scaling);
        shape.n_layers = 1;
        ModelMaker maker(shape);
        if (shape.family == "granite") maker.file.set("granite.rope.scaling.finetuned", false);
        const Bytes bytes = maker.file.write();
        const auto model = load(bytes);
        SessionConfig config;
        REQUIRE(parse_spec("f32", &config.spec).ok());
        std::unique_ptr<Session> shifted, never;
        REQUIRE(Session::create(model, config, serial_executor(), &shifted).ok());
        REQUIRE(Session::create(model, config, serial_executor(), &never).ok());
        const std::vector<Token> tokens = random_tokens();
        REQUIRE(shifted->prefill(tokens.data(), 40).ok());
        REQUIRE(shifted->remove(5, 12).ok());
        std::vector<Token> rest(tokens.begin(), tokens.begin() + 5);
        rest.insert(rest.end(), tokens.begin() + 17, tokens.begin() + 40);
        REQUIRE(never->prefill(rest.data(), rest.size()).ok());
        REQUIRE(shifted->decode(3).ok());
        REQUIRE(never->decode(3).ok());
        for (std::size_t i = 0; i < maker.n_vocab; i++) {
            REQUIRE(shifted->logits()[i] == Approx(never->logits()[i]).margin(1e-4));
        }
    }
}

TEST_CASE("a decode step allocates nothing in any family") {
    for (const char* family :
         {"llama", "qwen2", "qwen3", "gemma", "gemma2", "gemma3", "phi3", "smollm3", "granite", "olmo2"}) {
        CAPTURE(family);
        ModelShape shape = small(family);
        shape.biases = shape.family == "qwen2";
        shape.rope_factor_sets = shape.family == "phi3";
        if (shape.family == "gemma3") shape.window = 100;
        if (shape.family == "granite") shape.logit_scale = 6.0f;
        const Bytes bytes = ModelMaker(shape).file.write();
        SessionConfig config;
        // Where there is a window buffers grow by a sixteenth, here at 32 tokens.
        REQUIRE(parse_spec("f16:nb=256", &config.spec).ok());
        std::unique_ptr<Session> session;
        REQUIRE(Session::create(load(bytes), config, serial_executor(), &session).ok());
        const std::vector<Token> tokens = random_tokens();
        REQUIRE(session->prefill(tokens.data(), 20).ok());
        REQUIRE(session->decode(tokens[20]).ok());
        const long before = count_allocations();
        for (std::size_t i = 21; i < 30; i++) {
            REQUIRE(session->decode(tokens[i]).ok());
        }
        CHECK(count_allocations() == before);
    }
}
