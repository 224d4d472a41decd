// What a scalar build makes of rows that are the same on every machine: prints a sum of the bytes of its
// blocks and of the bits of its attention for each SPEC, so that builds for other machines can be put side by
// side. With `save FOLDER` the states are kept there, with `load FOLDER` the caches come from them; so is a
// block of keys by itself. What a build leaves out is said to be.
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "gearkv/cache.hpp"
#include "gearkv/codec.hpp"
#include "gearkv/state.hpp"

namespace {

constexpr std::uint32_t n_tokens = 400, n_kv_heads = 2, n_heads = 4, dim = 64;

std::uint64_t sum_of(const void* data, std::size_t n) {  // FNV-1a
    const auto* bytes = static_cast<const unsigned char*>(data);
    std::uint64_t sum = 14695981039346656037u;
    for (std::size_t i = 0; i < n; ++i)
        sum = (sum ^ bytes[i]) * 1099511628211u;
    return sum;
}

// Numbers without a library of mathematics.
std::vector<float> numbers(std::size_t n, std::uint32_t seed) {
    std::vector<float> x(n);
    for (float& one : x) {
        std::int32_t sum = -510;
        for (int i = 0; i < 4; ++i) {
            seed = seed * 1664525u + 1013904223u;
            sum += static_cast<std::int32_t>(seed >> 24);
        }
        one = static_cast<float>(sum) / 128.0f;
    }
    return x;
}

bool take(void* context, const void* bytes, std::size_t n) {
    const auto* from = static_cast<const unsigned char*>(bytes);
    auto* to = static_cast<std::vector<unsigned char>*>(context);
    to->insert(to->end(), from, from + n);
    return true;
}

bool left_out(const gearkv::Status& status) {
    return status.code() == gearkv::Code::unavailable_spec;
}

// One block of the keys: made and kept, or what was kept. False when its rows cannot be had, or could be had
// of what its header says is left out.
bool live_block(const char* spec, const gearkv::TensorSpec* keys, const std::vector<float>& rows,
                const std::string& path) {
    constexpr std::uint32_t n = 128;
    alignas(64) static unsigned char block[n * n_kv_heads * dim * 4];
    std::vector<float> out(n * n_kv_heads * dim, 0.5f);
    std::size_t n_bytes = 0;
    gearkv::Status status;
    if (keys != nullptr) {
        const gearkv::BlockShape shape = {gearkv::TensorKind::key, n, n_kv_heads, dim};
        gearkv::BlockOptions options;
        options.spec = *keys;
        options.rank = keys->rank_prompt;
        options.level = gearkv::Level::scalar;
        gearkv::BlockBytes bytes;
        status = gearkv::block_bytes(shape, options, &bytes);
        n_bytes = static_cast<std::size_t>(bytes.bytes);
        if (status.ok()) {
            status = gearkv::compress_block(block, n_bytes, {rows.data(), n_kv_heads * dim, dim}, shape,
                                            options, gearkv::serial_executor());
        }
        std::FILE* file = status.ok() ? std::fopen(path.c_str(), "wb") : nullptr;
        if (file != nullptr && std::fwrite(block, 1, n_bytes, file) != n_bytes) n_bytes = 0;
        if (file == nullptr || std::fclose(file) != 0) n_bytes = 0;
    } else if (std::FILE* file = std::fopen(path.c_str(), "rb")) {
        n_bytes = std::fread(block, 1, sizeof(block), file);
        std::fclose(file);
    }
    if (status.ok()) status = gearkv::decompress_block(out.data(), out.size(), block, n_bytes);
    if (left_out(status)) {
        gearkv::BlockShape shape;
        gearkv::TensorSpec found;
        gearkv::BlockBytes bytes;
        std::printf("%s, a block: %s: %s\n", spec, gearkv::code_name(status.code()), status.message());
        const bool untouched = out == std::vector<float>(out.size(), 0.5f);
        return untouched && left_out(gearkv::inspect_block(block, n_bytes, &shape, &found, &bytes));
    }
    std::printf("%s, a block: %zu bytes %016llx, rows %016llx %s\n", spec, n_bytes,
                static_cast<unsigned long long>(sum_of(block, n_bytes)),
                static_cast<unsigned long long>(sum_of(out.data(), out.size() * sizeof(float))),
                status.message());
    return status.ok();
}

}  // namespace

int main(int argc, char** argv) {
    const std::string use = argc == 3 ? argv[1] : "", folder = argc == 3 ? argv[2] : "";
    const std::vector<float> k = numbers(n_tokens * n_kv_heads * dim, 1), v = numbers(k.size(), 2),
                             q = numbers(n_heads * dim, 3);
    gearkv::Executor& executor = gearkv::serial_executor();
    for (const char* spec : {"gear-4", "gear-2", "gear-1", "paper:gear-4:nb=64", "gear-kcvt-3:nb=64",
                             "kivi-2:nb=64", "q8", "f16"}) {
        gearkv::CacheConfig config;
        config.n_layers = 1;
        config.n_kv_heads = n_kv_heads;
        config.key_dim = config.value_dim = dim;
        config.max_tokens = n_tokens;
        config.level = gearkv::Level::scalar;
        std::unique_ptr<gearkv::Cache> cache;
        gearkv::Status status = gearkv::parse_spec(spec, &config.spec);
        const std::string path = folder + "/" + spec;
        if (use == "load" || (use == "save" && status.ok())) {
            const gearkv::TensorSpec* made = use == "save" ? &config.spec.key : nullptr;
            if (!live_block(spec, made, k, path + ".block")) return 1;
        }
        if (use == "load") {
            gearkv::StateInfo info;
            const gearkv::Status found = gearkv::inspect_state(path.c_str(), &info);
            if (left_out(status) != left_out(found)) status = found;
            if (status.ok()) status = gearkv::load_state(path.c_str(), config, {}, executor, &cache);
        } else if (status.ok()) {
            status = gearkv::Cache::create(config, &cache);
        }
        if (left_out(status)) {
            std::printf("%s: %s: %s\n", spec, gearkv::code_name(status.code()), status.message());
            continue;
        }
        const gearkv::Rows keys = {k.data(), n_kv_heads * dim, dim},
                           values = {v.data(), n_kv_heads * dim, dim};
        const gearkv::Queries queries = {q.data(), n_heads * dim, dim, 1, n_heads, 0.125f, true};
        std::vector<float> out(n_heads * dim);
        std::vector<unsigned char> state;
        if (use != "load") {
            if (status.ok()) status = cache->append(0, keys, values, n_tokens, executor);
            if (status.ok()) status = cache->attend(0, queries, out.data(), out.size(), executor);
            if (status.ok()) status = cache->compress(0, executor);
        }
        if (status.ok()) status = cache->attend(0, queries, out.data(), out.size(), executor);
        if (status.ok()) status = gearkv::save_state(*cache, gearkv::ByteSink{take, &state}, {}, executor);
        if (status.ok() && use == "save") status = gearkv::save_state(*cache, path.c_str(), {}, executor);
        if (!status.ok()) {
            std::printf("%s: %s\n", spec, status.message());
            return 1;
        }
        std::printf("%s: %zu bytes %016llx, attention %016llx\n", spec, state.size(),
                    static_cast<unsigned long long>(sum_of(state.data(), state.size())),
                    static_cast<unsigned long long>(sum_of(out.data(), out.size() * sizeof(float))));
    }
}
