// Speed of append by type and order of the rows, of prompts that stay in fp16 and of single tokens: what it
// takes beside rows of floats, in the same rounds.
#include <CLI/CLI.hpp>
#include <cstdio>
#include <cstring>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "inputs.hpp"
#include "output.hpp"
#include "rounds.hpp"

using namespace gearkv;
using namespace gearkv::bench;

namespace {

constexpr std::uint32_t n_heads = 8, dim = 128;

// Rows of a type, [token][head][channel] or [head][channel][token].
struct Input {
    const char* name;
    Rows rows;
    std::vector<unsigned char> bytes;
};

Input make_input(const char* name, const std::vector<float>& x, std::size_t n_tokens, ElementType type,
                 bool transposed) {
    Input input = {name, {}, {}};
    const std::size_t width = type == ElementType::f32 ? 4 : 2;
    input.rows = {nullptr, n_heads * dim, dim, type, 1};
    if (transposed) input.rows = {nullptr, 1, dim * n_tokens, type, n_tokens};
    input.bytes.resize(x.size() * width);
    for (std::size_t i = 0; i < x.size(); ++i) {
        const std::size_t token = i / (n_heads * dim), head = i / dim % n_heads, channel = i % dim;
        std::uint32_t bits;
        std::memcpy(&bits, &x[i], sizeof(bits));
        if (type == ElementType::bf16) bits >>= 16;
        // Numbers here are normal in half; cut off, not rounded.
        if (type == ElementType::f16) bits = (bits >> 16 & 0x8000) | ((bits & 0x7fffffff) - 0x38000000) >> 13;
        std::memcpy(
            input.bytes.data() + width * (token * input.rows.token_stride + head * input.rows.head_stride +
                                          channel * input.rows.channel_stride),
            &bits, width);
    }
    input.rows.data = input.bytes.data();
    return input;
}

}  // namespace

int main(int argc, char** argv) {
    CLI::App app{"Speed of append by type of rows, 8 heads of 128 channels, one thread"};
    std::string level_text = "auto", json_path;
    std::uint32_t n_tokens = 2048;
    std::size_t n_rounds = 41;
    app.add_option("--tokens", n_tokens, "tokens of a prompt")
        ->capture_default_str()
        ->check(CLI::Range(1, 65536));
    app.add_option("--rounds", n_rounds, "rounds; the median counts")->capture_default_str();
    app.add_option("--level", level_text, "instruction-set level")->capture_default_str();
    app.add_option("--json", json_path, "also write the table as JSON to this file");
    CLI11_PARSE(app, argc, argv);

    std::vector<float> x = make_rows(n_tokens, n_heads, dim, 1);
    for (float& one : x)
        one = std::copysign(std::fabs(one) + 0.01f, one);
    const Input inputs[] = {make_input("f32", x, n_tokens, ElementType::f32, false),
                            make_input("f16", x, n_tokens, ElementType::f16, false),
                            make_input("bf16", x, n_tokens, ElementType::bf16, false),
                            make_input("f32 transposed", x, n_tokens, ElementType::f32, true),
                            make_input("f16 transposed", x, n_tokens, ElementType::f16, true)};
    CacheConfig config;
    config.n_layers = 1;
    config.n_kv_heads = n_heads;
    config.key_dim = config.value_dim = dim;
    config.max_tokens = n_tokens;
    require(parse_spec("f16", &config.spec));
    if (level_text != "auto") require(parse_level(level_text.c_str(), &config.level));
    std::unique_ptr<Cache> cache;
    require(Cache::create(config, &cache));

    nlohmann::json json = {{"schema_version", 1}, {"tokens", n_tokens}, {"rows", nlohmann::json::array()}};
    std::printf("%u tokens, level %s, %zu rounds\n", n_tokens, level_name(cache->level()), n_rounds);
    std::printf("%-16s %-8s %10s %8s %8s\n", "rows", "append", "ns/token", "spread", "of f32");
    for (const std::uint32_t step : {n_tokens, 1u}) {
        std::vector<Timed> cases;
        for (const Input& input : inputs) {
            cases.push_back({[&cache, &input, step, n_tokens] {
                Rows rows = input.rows;
                const std::size_t width = rows.type == ElementType::f32 ? 4 : 2;
                for (std::uint32_t t = 0; t < n_tokens; t += step) {
                    rows.data = input.bytes.data() + width * t * rows.token_stride;
                    require(cache->append(0, rows, rows, step, serial_executor()));
                }
            }});
        }
        run_rounds(&cases, n_rounds, [&cache] { cache->reset(); });
        for (std::size_t i = 0; i < cases.size(); ++i) {
            const double ns = 1e9 * median(cases[i].seconds) / n_tokens, share = ratio(cases[i], cases[0]);
            std::printf("%-16s %-8s %10.1f %7.1f%% %8.3f\n", inputs[i].name, step == 1 ? "single" : "prompt",
                        ns, 100 * spread(cases[i].seconds), share);
            json["rows"].push_back({{"rows", inputs[i].name},
                                    {"append", step == 1 ? "single" : "prompt"},
                                    {"ns_per_token", ns},
                                    {"spread", spread(cases[i].seconds)},
                                    {"of_f32", share}});
        }
    }
    return write_json(json_path, json) ? 0 : 1;
}
