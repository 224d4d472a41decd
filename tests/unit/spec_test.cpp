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

TEST_CASE("gear-2, gear-3 and gear-4 are trellis presets with sinks", "[spec]") {
    for (const char* text : {"gear-2", "gear-3", "gear-4", "gear-2:nb=256,sinks=8"}) {
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
        {"", "character 1:", "f32, f16, q8, gear-2"},
        {"gaer-2", "character 1:", "gear[l]"},
        {"gear-5", "character 6:", "2, 3, 4 or 8"},
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
        {"gear-2;edge-2=gear-4;edge-2=f16", "character 21:", "the end"},
        {"auto:3;edge-2=gear-4", "character 7:", "the end"},
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
        {"gear-2;edge-1=f16", "2049 edge layers", [](KvSpec& s) { s.edge_layers = 2049; }},
        {"gear-2;edge-1=f16", "edge layers beside auto", [](KvSpec& s) { s.auto_bits = 3.0f; }},
        {"gear-2;edge-1=f16", "f32 in some layers only",
         [](KvSpec& s) {
             s.edge_key = {Backbone::raw32, 32};
         }},
        {"gear-2;edge-1=kivi-4", "multiple of the edge keys' group of 96",
         [](KvSpec& s) { s.edge_key.group = 96; }},
        {"gear-2;edge-1=kivi-4", "edge values have 5 bits", [](KvSpec& s) { s.edge_value.bits = 5; }},
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
    while (n_fractions < 100000) {
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

TEST_CASE("the longest SPEC fits in max_spec_chars", "[spec]") {
    KvSpec spec;
    spec.key = {Backbone::token, 2, 4096, 64, 63, 1.17549435e-38f};
    spec.value = spec.key;
    spec.value.bits = 3;
    spec.buffer_tokens = 4095;
    spec.sink_tokens = 63;
    spec.recent_tokens = 65535;
    spec.edge_layers = 2047;
    spec.edge_key = spec.value;
    spec.edge_value = spec.key;
    const std::string text = formatted(spec);
    INFO(text);
    CHECK(text.size() > 200);
    CHECK(parsed(text) == spec);
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
    int n_valid = 0;
    for (int i = 0; i < 20000; ++i) {
        KvSpec spec;
        spec.key = tensor();
        spec.value = random() % 2 == 0 ? spec.key : tensor();
        if (random() % 3 == 0) {
            spec.edge_layers = 1 + static_cast<std::uint32_t>(random() % 2048);
            spec.edge_key = tensor();
            spec.edge_value = tensor();
        }
        spec.recent_tokens = random() % 3 == 0 ? static_cast<std::uint32_t>(random() % 65537) : 0;
        spec.sink_tokens = random() % 2 == 0 ? 4 : static_cast<std::uint32_t>(random() % 65);
        spec.buffer_tokens = random() % 2 == 0 ? static_cast<std::uint32_t>(random() % 2 == 0 ? 64 : 128)
                                               : static_cast<std::uint32_t>(1 + random() % 4096);
        if (!validate_spec(spec).ok()) continue;
        ++n_valid;
        const std::string text = formatted(spec);
        INFO(text);
        CHECK(parsed(text) == spec);
    }
    CHECK(n_valid > 5000);
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
}
