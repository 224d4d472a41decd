#include <clocale>
#include <cstring>
#include <limits>
#include <random>
#include <string>

#include "gearkv/config.hpp"
#include "support/catch.hpp"

using namespace gearkv;

namespace {

KvSpec parsed(const std::string& text) {
    KvSpec spec;
    const Status status = parse_spec(text.c_str(), &spec);
    INFO(text << ": " << status.message());
    REQUIRE(status.ok());
    return spec;
}

std::string formatted(const KvSpec& spec) {
    char text[max_spec_chars];
    REQUIRE(format_spec(spec, text, sizeof(text)).ok());
    return text;
}

std::string refusal(const std::string& text) {
    KvSpec spec;
    spec.buffer_tokens = 12345;
    const Status status = parse_spec(text.c_str(), &spec);
    INFO(text);
    CHECK(status.code() == Code::bad_spec);
    CHECK(spec.buffer_tokens == 12345);
    return status.message();
}

}  // namespace

TEST_CASE("names stand for backbones, bits and parts", "[spec]") {
    const struct {
        const char* text;
        Backbone backbone;
        int bits, rank;
        float sparsity;
    } names[] = {{"f32", Backbone::raw32, 32, 0, 0},         {"f16", Backbone::raw16, 16, 0, 0},
                 {"q8", Backbone::token, 8, 0, 0},           {"kivi-2", Backbone::kivi, 2, 0, 0},
                 {"kcvt-4", Backbone::kcvt, 4, 0, 0},        {"token-3", Backbone::token, 3, 0, 0},
                 {"gearl-2", Backbone::kivi, 2, 4, 0},       {"paper:gear-2", Backbone::kivi, 2, 4, 0.02f},
                 {"gear-8", Backbone::kivi, 8, 4, 0.02f},    {"gear-kcvt-4", Backbone::kcvt, 4, 4, 0.02f},
                 {"gearl-token-3", Backbone::token, 3, 4, 0}};
    for (const auto& name : names) {
        const KvSpec spec = parsed(name.text);
        INFO(name.text);
        CHECK(spec.key == spec.value);
        CHECK(spec.key.backbone == name.backbone);
        CHECK(spec.key.bits == name.bits);
        CHECK(spec.key.rank_prompt == name.rank);
        CHECK(spec.key.rank_decode == name.rank / 2);
        CHECK(spec.key.sparsity == name.sparsity);
        CHECK(spec.buffer_tokens == 64);
        const std::string text = name.text;
        CHECK(formatted(spec) == (text == "q8" ? "token-8" : text == "gear-8" ? "paper:gear-8" : text));
    }
}

TEST_CASE("gear-1 to gear-4 are trellis presets with sinks", "[spec]") {
    for (const char* text : {"gear-1", "gear-2", "gear-3", "gear-4", "gear-1:nb=256,sinks=8"}) {
        const KvSpec spec = parsed(text);
        CHECK(spec.key.backbone == Backbone::trellis);
        CHECK(spec.value.backbone == Backbone::trellis);
        CHECK(spec.key.rate > spec.value.rate);
        CHECK(spec.buffer_tokens % 128 == 0);
        CHECK(spec.sink_tokens > 0);
        CHECK(formatted(spec) == text);
    }
    CHECK(parsed("k=gear-2;v=gear-2") == parsed("gear-2"));
    CHECK(parsed("k=trellis-2.625;v=trellis-2") == parsed("gear-2"));
    const KvSpec mixed = parsed("k=trellis-5;v=kivi-2");
    CHECK(mixed.key.rate == 5.0f);
    CHECK(mixed.buffer_tokens == 128);
    CHECK(mixed.sink_tokens == 4);
}

TEST_CASE("auto takes bits, and only what a cache has once", "[spec]") {
    for (const char* text : {"auto:3.5", "auto:1", "auto:5", "auto:2.25,nb=256", "auto:4,nb=384,sinks=0"}) {
        const KvSpec spec = parsed(text);
        CHECK(spec.auto_bits > 0.0f);
        CHECK(spec.key.backbone == Backbone::trellis);
        CHECK(spec.value.backbone == Backbone::trellis);
        CHECK(formatted(spec) == text);
        CHECK(parsed(formatted(spec)) == spec);
    }
    CHECK_FALSE(parsed("auto:3") == parsed("k=trellis-3;v=trellis-3"));
}

TEST_CASE("options set what they name", "[spec]") {
    KvSpec spec = parsed("paper:gear-2:g=32,r=8,rg=3,s=0.05,nb=128");
    CHECK(spec.key.group == 32);
    CHECK(spec.key.rank_prompt == 8);
    CHECK(spec.key.rank_decode == 3);
    CHECK(spec.key.sparsity == 0.05f);
    CHECK(spec.buffer_tokens == 128);
    spec = parsed("k=paper:gear-4:r=2;v=kivi-2:nb=192");
    CHECK(spec.key.bits == 4);
    CHECK(spec.value.bits == 2);
    CHECK(spec.value.rank_prompt == 0);
    CHECK(spec.buffer_tokens == 192);
    CHECK(parsed("paper:gear-2:r=1").key.rank_decode == 1);
    CHECK(parsed("paper:gear-2:r=0").key.rank_decode == 0);
    CHECK(parsed("paper:gear-2:r=1,rg=3") == parsed("paper:gear-2:rg=3,r=1"));
    CHECK(parsed("paper:gear-2:r=1,rg=3").key.rank_decode == 3);
    CHECK(parsed("k=paper:gear-2:nb=128;v=kivi-4") == parsed("k=paper:gear-2;v=kivi-4:nb=128"));
    CHECK(parsed("k=f16;v=gear-2").key == parsed("f16").key);
    CHECK(parsed("k=token-2;v=kivi-2:nb=20").buffer_tokens == 20);
    CHECK(parsed("kivi-2:s=1e-2").key.sparsity == 0.01f);
    CHECK(parsed("kcvt-4:nb=20").buffer_tokens == 20);
}

TEST_CASE("a bad SPEC is refused with its place and what is known there", "[spec]") {
    const struct {
        const char *text, *place, *known;
    } cases[] = {
        {"", "character 1:", "f32, f16, q8, gear-1, gear-2"},
        {"gaer-2", "character 1:", "gear[l]"},
        {"gear-5", "character 6:", "1, 2, 3, 4 or 8"},
        {"paper:gear-1", "character 12:", "2, 3, 4 or 8"},
        {"kivi-1", "character 6:", "2, 3, 4 or 8"},
        {"gear-", "character 6:", "2, 3, 4 or 8"},
        {"paper:gear-22", "character 13:", "options"},
        {"paper:gear-2:x=1", "character 14:", "g=GROUP, r=RANK, rg=RANK, s=FRACTION, nb=TOKENS"},
        {"paper:gear-2:", "character 14:", "g=GROUP"},
        {"paper:gear-2:g=", "character 16:", "multiple of 32"},
        {"paper:gear-2:g=-1", "character 16:", "multiple of 32"},
        {"paper:gear-2:r=65", "character 16:", "from 0 to 64"},
        {"paper:gear-2:r=99999999999", "character 16:", "from 0 to 64"},
        {"paper:gear-2:s=1", "character 16:", "fraction"},
        {"paper:gear-2:s=nan", "character 16:", "fraction"},
        {"paper:gear-2:s=-0.1", "character 16:", "fraction"},
        {"paper:gear-2:g=64;", "character 18:", "the end"},
        {"paper:gear-2:g=48", "character 16:", "a multiple of 32 from 32 to 4096"},
        {"paper:gear-2:g=8192", "character 16:", "a multiple of 32 from 32 to 4096"},
        {"paper:gear-2:g=0", "character 16:", "a multiple of 32 from 32 to 4096"},
        {"paper:gear-2:nb=0", "character 17:", "from 1 to 4096"},
        {"paper:gear-2:nb=4097", "character 17:", "from 1 to 4096"},
        {"paper:gear-2:r=4,r=4", "character 18:", "every option once"},
        {"paper:gear-2:nb=96", "character 17:", "a multiple of the keys' group of 64"},
        {"k=paper:gear-2:g=128;v=kivi-2:nb=64", "character 34:", "a multiple of the keys' group of 128"},
        {"paper:gear-2:r=4,g=128", "character 20:", "a group that divides the buffer of 64"},
        {"k=kivi-2:nb=64;v=kivi-2:nb=128", "character 28:", "64, one buffer for keys and values"},
        {"k=k=gear-2;v=f16", "character 3:", "gear[l]"},
        {"f16:g=64", "character 5:", "nb=TOKENS"},
        {"gear-2:g=32", "character 8:", "paper:gear-B"},
        {"auto", "character 1:", "auto:BITS"},
        {"auto:", "character 6:", "from 1 to 5"},
        {"auto:0.5", "character 6:", "from 1 to 5"},
        {"auto:5.5", "character 6:", "from 1 to 5"},
        {"auto:3,g=32", "character 8:", "nb=TOKENS"},
        {"auto:3;v=f16", "character 7:", "the end"},
        {"k=auto:3;v=f16", "character 3:", "trellis-RATE"},
        {"gear-2:nb=64", "character 11:", "multiple of 128"},
        {"paper:kivi-2", "character 7:", "gear or gearl"},
        {"paper:f16", "character 7:", "gear or gearl"},
        {"trellis-", "character 9:", "a number from 0.5 to 6"},
        {"trellis-7", "character 9:", "a number from 0.5 to 6"},
        {"trellis-2:r=1", "character 11:", "nb=TOKENS, sinks=TOKENS or recent=TOKENS"},
        {"f16:sinks=65", "character 11:", "from 0 to 64"},
        {"k=f16:sinks=1;v=f16:sinks=2", "character 27:", "the same sinks"},
        {"f16:recent=65537", "character 12:", "from 0 to 65536"},
        {"k=f16:recent=1;v=f16:recent=2", "character 29:", "the same recent"},
        {"gear-2;edge-0=f16", "character 13:", "from 1 to 2048"},
        {"gear-2;edge-2", "character 14:", "\"=\""},
        {"gear-2;edge-2=gear-5", "character 20:", "2, 3, 4 or 8"},
        {"gear-2;edge-2=gear-4:nb=256", "character 25:", "hold for all layers"},
        {"gear-2;edge-2=gear-4;f16", "character 21:", "the end, \";edge-N=SPEC\""},
        {"gear-2;layers-=f16", "character 15:", "from 0 to 4095"},
        {"gear-2;layers-4096=f16", "character 15:", "from 0 to 4095"},
        {"gear-2;layers-3-2=f16", "character 17:", "from 3 to 4095"},
        {"gear-2;layers-3-=f16", "character 17:", "from 3 to 4095"},
        {"gear-2;layers-3-4-5=f16", "character 18:", "\"=\""},
        {"gear-2;layer-3=f16", "character 7:", "\";layers-FIRST-LAST=SPEC\""},
        {"gear-2;layers-1=gear-4;layers-2=k=gear-4", "character 41:", "v=SPEC"},
        {"gear-2;layers-1=gear-4;edge-1=q8:sinks=2", "character 40:", "hold for all layers"},
        {"gear-2;layers-1=k=f16;v=f16:recent=2", "character 36:", "hold for all layers"},
        {"gear-2;layers-1=auto:3", "character 17:", "gear-2"},
        {"f16;edge-1=q8;edge-1=q8;edge-1=q8;edge-1=q8;edge-1=q8;edge-1=q8;edge-1=q8;edge-1=q8;edge-1=q8",
         "character 84:", "at most 8 rules"},
        {"auto:3;edge-2=gear-4", "character 7:", "the end"},
        {"auto:3;layers-2=gear-4", "character 7:", "the end"},
        {"k=gear-2", "character 9:", "v=SPEC"},
        {"k=gear-2;gear-2", "character 10:", "v=SPEC"},
        {"k=gear-2;v=", "character 12:", "f32"},
        {"gear-2 ", "character 7:", "options"}};
    for (const auto& c : cases) {
        const std::string message = refusal(c.text);
        INFO(c.text << " -> " << message);
        CHECK(message.find(c.place) != std::string::npos);
        CHECK(message.find(c.known) != std::string::npos);
    }
}

TEST_CASE("a refused SPEC of any length is quoted around the place", "[spec]") {
    CHECK(refusal("k=gear-2;v=kivi-4:g=40,nb=64").find("\"k=gear-2;v=kivi-4:g=[^]40,nb=64\"") !=
          std::string::npos);
    CHECK(refusal(std::string(10000, 'k')).find("character 1:") != std::string::npos);
    CHECK(refusal("gear-2:" + std::string(10000, 'k')).find("nb=TOKENS") != std::string::npos);
}

TEST_CASE("null arguments are refused", "[spec]") {
    KvSpec spec;
    CHECK(parse_spec(nullptr, &spec).code() == Code::invalid_argument);
    CHECK(parse_spec("f16", nullptr).code() == Code::invalid_argument);
    CHECK(format_spec(spec, nullptr, 128).code() == Code::invalid_argument);
}

TEST_CASE("a field out of its range is named", "[spec]") {
    const struct {
        const char *text, *named;
        void (*spoil)(KvSpec&);
    } cases[] = {
        {"paper:gear-2", "keys have 5 bits", [](KvSpec& s) { s.key.bits = 5; }},
        {"paper:gear-2", "values have 16 bits", [](KvSpec& s) { s.value.bits = 16; }},
        {"paper:gear-2", "group of keys is 0", [](KvSpec& s) { s.key.group = 0; }},
        {"paper:gear-2", "group of values is 4128", [](KvSpec& s) { s.value.group = 4128; }},
        {"paper:gear-2", "group of values is 33", [](KvSpec& s) { s.value.group = 33; }},
        {"paper:gear-2", "ranks of keys are 65 and 2", [](KvSpec& s) { s.key.rank_prompt = 65; }},
        {"paper:gear-2", "ranks of values are 4 and 65", [](KvSpec& s) { s.value.rank_decode = 65; }},
        {"paper:gear-2", "sparsity of keys is 1", [](KvSpec& s) { s.key.sparsity = 1.0f; }},
        {"paper:gear-2", "sparsity of keys is -0.5", [](KvSpec& s) { s.key.sparsity = -0.5f; }},
        {"paper:gear-2", "sparsity of values is nan",
         [](KvSpec& s) { s.value.sparsity = std::numeric_limits<float>::quiet_NaN(); }},
        {"paper:gear-2", "sparsity of values is inf",
         [](KvSpec& s) { s.value.sparsity = std::numeric_limits<float>::infinity(); }},
        {"paper:gear-2", "buffer of 0 tokens", [](KvSpec& s) { s.buffer_tokens = 0; }},
        {"paper:gear-2", "buffer of 4160 tokens", [](KvSpec& s) { s.buffer_tokens = 4160; }},
        {"paper:gear-2", "buffer of 65 tokens", [](KvSpec& s) { s.buffer_tokens = 65; }},
        {"paper:gear-2", "backbone of values is 6",
         [](KvSpec& s) { s.value.backbone = static_cast<Backbone>(6); }},
        {"f16", "keys are uncompressed with 32 bits", [](KvSpec& s) { s.key.bits = 32; }},
        {"f32", "ranks 1 and 0", [](KvSpec& s) { s.value.rank_prompt = 1; }},
        {"f16", "ranks 0 and 1", [](KvSpec& s) { s.key.rank_decode = 1; }},
        {"f16", "sparsity 0.5", [](KvSpec& s) { s.key.sparsity = 0.5f; }},
        {"gear-2", "auto of 0.5 bits", [](KvSpec& s) { s.auto_bits = 0.5f; }},
        {"gear-2", "auto of nan bits",
         [](KvSpec& s) { s.auto_bits = std::numeric_limits<float>::quiet_NaN(); }},
        {"kivi-2", "auto:3 with a backbone of keys of 2", [](KvSpec& s) { s.auto_bits = 3.0f; }},
        {"gear-2", "keys have a rate of 6.5", [](KvSpec& s) { s.key.rate = 6.5f; }},
        {"gear-2", "values have a rate of 5", [](KvSpec& s) { s.value.rate = 5.0f; }},
        {"gear-2", "keys have a rate of nan",
         [](KvSpec& s) { s.key.rate = std::numeric_limits<float>::quiet_NaN(); }},
        {"gear-2", "keys are a trellis with 2 bits", [](KvSpec& s) { s.key.bits = 2; }},
        {"gear-2", "buffer of 64 tokens, expected a multiple of 128",
         [](KvSpec& s) { s.buffer_tokens = 64; }},
        {"f16", "65 sink tokens", [](KvSpec& s) { s.sink_tokens = 65; }},
        {"f16", "65537 recent tokens", [](KvSpec& s) { s.recent_tokens = 65537; }},
        {"gear-2;edge-1=f16", "2049 edge layers", [](KvSpec& s) { s.layer_rules[0].edge_layers = 2049; }},
        {"gear-2;edge-1=f16", "1 edge layers and 0 to 1", [](KvSpec& s) { s.layer_rules[0].last = 1; }},
        {"gear-2;edge-1=f16;layers-2-3=f16", "rule 1 for layers 4 to 3",
         [](KvSpec& s) { s.layer_rules[1].first = 4; }},
        {"gear-2;layers-2=f16", "layers 2 to 4096", [](KvSpec& s) { s.layer_rules[0].last = 4096; }},
        {"gear-2;layers-2=f16", "9 rules for layers", [](KvSpec& s) { s.n_layer_rules = 9; }},
        {"gear-2;layers-2=f16", "rule 0 for layers is set", [](KvSpec& s) { s.n_layer_rules = 0; }},
        {"gear-2", "rule 7 for layers is set", [](KvSpec& s) { s.layer_rules[7].key.bits = 8; }},
        {"gear-2;edge-1=f16", "rules for layers beside auto", [](KvSpec& s) { s.auto_bits = 3.0f; }},
        {"gear-2;edge-1=f16", "keys of edge-1 are f32",
         [](KvSpec& s) {
             s.layer_rules[0].key = {Backbone::raw32, 32};
         }},
        {"f32;edge-1=f32;layers-1-2=f32", "values of layers-1-2 are not f32",
         [](KvSpec& s) {
             s.layer_rules[1].value = {Backbone::raw16, 16};
         }},
        {"gear-2;layers-1=kivi-4", "multiple of 96, the group of keys of layers-1",
         [](KvSpec& s) { s.layer_rules[0].key.group = 96; }},
        {"gear-2;edge-1=kivi-4", "values of edge-1 have 5 bits",
         [](KvSpec& s) { s.layer_rules[0].value.bits = 5; }},
        {"kivi-2;layers-5=f16", "buffer of 64 tokens, expected a multiple of 128",
         [](KvSpec& s) { s.layer_rules[0].value = parsed("gear-2").value; }},
    };
    for (const auto& c : cases) {
        KvSpec spec = parsed(c.text);
        REQUIRE(validate_spec(spec).ok());
        c.spoil(spec);
        const Status status = validate_spec(spec);
        INFO(c.named << " in: " << status.message());
        CHECK(status.code() == Code::bad_spec);
        CHECK(std::string(status.message()).find(c.named) != std::string::npos);
        char text[max_spec_chars];
        CHECK(format_spec(spec, text, sizeof(text)).code() == Code::bad_spec);
    }
}

TEST_CASE("every name with every single option parses back from its canonical form", "[spec]") {
    int n_specs = 0;
    for (const char* name : {"kivi", "kcvt", "token", "gearl", "paper:gear", "gearl-kcvt", "gear-kcvt",
                             "gearl-token", "gear-token"}) {
        for (const char* bits : {"2", "3", "4", "8"}) {
            for (const char* options : {"", ":g=32", ":g=64", ":r=0", ":r=1", ":r=2", ":r=4", ":r=64",
                                        ":rg=0", ":rg=2", ":rg=64", ":s=0", ":s=0.02", ":s=0.1", ":nb=64",
                                        ":nb=4096", ":r=0,rg=0", ":r=0,rg=1,s=0", ":r=0,s=0.5"}) {
                const std::string text = std::string(name) + "-" + bits + options;
                INFO(text << " -> " << formatted(parsed(text)));
                CHECK(parsed(formatted(parsed(text))) == parsed(text));
                CHECK(formatted(parsed(formatted(parsed(text)))) == formatted(parsed(text)));
                ++n_specs;
            }
        }
    }
    CHECK(n_specs == 9 * 4 * 19);
}

TEST_CASE("a sparsity comes back to the last bit", "[spec]") {
    std::mt19937 random(3);
    int n_fractions = 0;
    while (n_fractions < 20000) {
        const std::uint32_t bits = static_cast<std::uint32_t>(random()) & 0x3fffffff;
        KvSpec spec = parsed("kcvt-2");
        std::memcpy(&spec.value.sparsity, &bits, sizeof(bits));
        if (!(spec.value.sparsity < 1.0f)) continue;
        ++n_fractions;
        char text[max_spec_chars];
        KvSpec back;
        if (!format_spec(spec, text, sizeof(text)).ok() || !parse_spec(text, &back).ok() || !(back == spec)) {
            FAIL("sparsity with bits " << bits << " became " << text);
        }
    }
}

TEST_CASE("rules give layers specs of their own, and later ones hold", "[spec]") {
    const std::string text =
        "gear-2;layers-4-9=k=trellis-3.5;v=kivi-4;layers-6=token-8;edge-1=f16;layers-12-4095=gear-3";
    const KvSpec spec = parsed(text);
    CHECK(formatted(spec) == text);
    REQUIRE(spec.n_layer_rules == 4);
    CHECK(parsed("gear-2;layers-4-4=f16;edge-02=q8") == parsed("gear-2;layers-4=f16;edge-2=token-8"));
    CHECK_FALSE(parsed("gear-2;layers-4=f16;edge-2=q8") == parsed("gear-2;edge-2=q8;layers-4=f16"));
    const int rules[] = {2, -1, -1, -1, 0, 0, 1, 0, 0, 0, -1, -1, 3, 3, 3};
    for (std::uint32_t layer = 0; layer < 15; ++layer) {
        CAPTURE(layer);
        const LayerRule* rule = spec.rule_of(layer, 16);
        CHECK(rule == (rules[layer] < 0 ? nullptr : &spec.layer_rules[rules[layer]]));
    }
    CHECK(spec.rule_of(15, 16) == &spec.layer_rules[3]);
    CHECK(spec.rule_of(9, 10) == &spec.layer_rules[2]);
    CHECK(spec.layer_rules[0].key == parsed("trellis-3.5").key);
    CHECK(spec.layer_rules[0].value == parsed("kivi-4").value);
    // A trellis anywhere asks for its buffer and sinks.
    const KvSpec mixed = parsed("kivi-2;layers-1=kivi-4;layers-2=gear-4");
    CHECK(mixed.buffer_tokens == 128);
    CHECK(mixed.sink_tokens == 4);
    CHECK(formatted(mixed) == "kivi-2;layers-1=kivi-4;layers-2=gear-4");
}

TEST_CASE("the longest SPEC fits in max_spec_chars", "[spec]") {
    KvSpec spec;
    spec.key = {Backbone::token, 2, 4096, 64, 63, 1.00070225e-36f};
    spec.value = spec.key;
    spec.value.bits = 3;
    spec.buffer_tokens = 4095;
    spec.sink_tokens = 63;
    spec.recent_tokens = 65535;
    spec.n_layer_rules = 1;
    spec.layer_rules[0] = {0, 4094, 4095, spec.value, spec.key};
    const std::string text = formatted(spec);
    INFO(text);
    CHECK(text.size() == 246);
    CHECK(parsed(text) == spec);
    // More rules are valid as far as they fit.
    std::string rules;
    for (int i = 0; i < 7; ++i)
        rules += ";layers-1000-1001=token-8:g=32";
    rules += ";layers-1000-1001=token-8:g=128";
    for (const std::string recent : {"5", "55", "555", "5555", "55555"}) {
        const std::string whole = "f16:recent=" + recent + rules;
        CAPTURE(whole.size());
        if (whole.size() < max_spec_chars) {
            CHECK(formatted(parsed(whole)) == whole);
        } else {
            CHECK(refusal(whole).find("SPEC of " + std::to_string(whole.size()) + " characters") !=
                  std::string::npos);
        }
    }
    // It is the canonical text that has to.
    CHECK(formatted(parsed("f16:recent=00055555" + rules.substr(0, 210))).size() == 226);
}

TEST_CASE("the decimal point is a point in every locale", "[spec]") {
    // Where the system has no such locale the "C" locale is tested again.
    for (const char* name : {"de_DE.UTF-8", "C"}) {
        std::setlocale(LC_ALL, name);
        CHECK(parsed("paper:gear-2:s=0.25").key.sparsity == 0.25f);
        CHECK(formatted(parsed("paper:gear-2:s=0.25")) == "paper:gear-2:s=0.25");
    }
}

TEST_CASE("what is formatted parses back to the same", "[spec]") {
    std::mt19937 random(1);
    const auto tensor = [&] {
        TensorSpec spec;
        if (random() % 4 == 0) {
            spec = {Backbone::trellis, 0};
            spec.rate = 0.5f + static_cast<float>(random() % 300) / 64.0f;
            return spec;
        }
        if (random() % 5 == 0) return random() % 2 == 0 ? spec : TensorSpec{Backbone::raw32, 32};
        spec.backbone = static_cast<Backbone>(2 + random() % 3);
        const std::uint8_t bits[] = {2, 3, 4, 8};
        spec.bits = bits[random() % 4];
        spec.group = static_cast<std::uint16_t>(32 * (1 + random() % 4));
        spec.rank_prompt = static_cast<std::uint16_t>(random() % 3 == 0 ? 0 : random() % 65);
        spec.rank_decode = static_cast<std::uint16_t>(random() % 3 == 0 ? 0 : random() % 65);
        if (random() % 2 == 0) spec.sparsity = static_cast<float>(random() % 1000) / 1001.0f;
        return spec;
    };
    int n_valid = 0, n_with_rules = 0;
    for (int i = 0; i < 20000; ++i) {
        KvSpec spec;
        spec.key = tensor();
        spec.value = random() % 2 == 0 ? spec.key : tensor();
        if (random() % 3 == 0) {
            spec.n_layer_rules = 1 + static_cast<std::uint32_t>(random() % 3);
            for (std::uint32_t rule = 0; rule < spec.n_layer_rules; ++rule) {
                LayerRule& one = spec.layer_rules[rule];
                one.first = static_cast<std::uint32_t>(random() % 40);
                one.last = one.first + static_cast<std::uint32_t>(random() % 3);
                if (random() % 3 == 0) one = {1 + static_cast<std::uint32_t>(random() % 2048)};
                one.key = tensor();
                one.value = random() % 2 == 0 ? one.key : tensor();
            }
        }
        spec.recent_tokens = random() % 3 == 0 ? static_cast<std::uint32_t>(random() % 65537) : 0;
        spec.sink_tokens = random() % 2 == 0 ? 4 : static_cast<std::uint32_t>(random() % 65);
        spec.buffer_tokens = random() % 2 == 0 ? static_cast<std::uint32_t>(random() % 2 == 0 ? 64 : 128)
                                               : static_cast<std::uint32_t>(1 + random() % 4096);
        if (!validate_spec(spec).ok()) continue;
        ++n_valid;
        n_with_rules += spec.n_layer_rules > 1;
        const std::string text = formatted(spec);
        INFO(text);
        CHECK(parsed(text) == spec);
    }
    CHECK(n_valid > 5000);
    CHECK(n_with_rules > 100);
}

TEST_CASE("a SPEC that does not fit its room is refused and still ended", "[spec]") {
    const KvSpec spec = parsed("k=paper:gear-2:g=32,r=8;v=kivi-4");
    const std::string whole = formatted(spec);
    for (std::size_t n = 1; n <= whole.size(); ++n) {
        std::string room(n, '#');
        CHECK(format_spec(spec, room.data(), n).code() == Code::wrong_size);
        CHECK(std::strlen(room.data()) < n);
    }
    KvSpec bad = spec;
    bad.key.bits = 5;
    char text[max_spec_chars];
    CHECK(format_spec(bad, text, sizeof(text)).code() == Code::bad_spec);
}

TEST_CASE("random bytes never do worse than a refusal", "[spec][fuzz]") {
    std::mt19937 random(7);
    const std::string alphabet = "kv=gear-l;:,2348gsrnb=0.1f6it";
    for (int i = 0; i < 50000; ++i) {
        std::string text(random() % 24, ' ');
        for (char& c : text)
            c = random() % 8 == 0 ? static_cast<char>(1 + random() % 255)
                                  : alphabet[random() % alphabet.size()];
        KvSpec spec;
        if (parse_spec(text.c_str(), &spec).ok()) CHECK(validate_spec(spec).ok());
    }
    // Good ones with a few characters changed, taken out or doubled.
    int n_read = 0;
    for (int i = 0; i < 50000; ++i) {
        std::string text = i % 2 == 0 ? "kivi-2:nb=64;layers-1-12=k=q8:g=32;v=gearl-4:r=3;edge-2=f16"
                                      : "k=gear-2:sinks=2;v=kivi-4;edge-1=gear-4;layers-3=trellis-2.5";
        for (std::size_t n = 1 + random() % 3; n > 0; --n) {
            const std::size_t at = random() % text.size(), length = random() % 12;
            if (random() % 3 == 0)
                text.insert(at, text.substr(at, length));
            else if (random() % 2 == 0)
                text.erase(at, 1);
            else
                text[at] = alphabet[random() % alphabet.size()];
        }
        KvSpec spec;
        if (!parse_spec(text.c_str(), &spec).ok()) continue;
        ++n_read;
        INFO(text);
        CHECK(parsed(formatted(spec)) == spec);
    }
    CHECK(n_read > 1000);
}
