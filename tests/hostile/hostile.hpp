// Loading what a malicious or broken file may hold: a named error, in bounded time and memory.
#pragma once

#include <ctime>
#include <memory>
#include <string>
#include <vector>

#include "decoder/network/model.hpp"
#include "support/catch.hpp"
#include "support/count_memory.hpp"
#include "support/model_maker.hpp"

namespace gearkv::test {

// Of this process, so that a busy machine breaks no bound.
inline double cpu_seconds() {
    return static_cast<double>(std::clock()) / CLOCKS_PER_SEC;
}

struct Bounds {
    double seconds = 20.0;   // far more than is needed, far less than a quadratic search takes
    long bytes = 16L << 20;  // of heap beside the file itself
};

// A copy that ends exactly where the file does, so that a sanitizer sees every byte read too far.
inline Status load_status(const Bytes& file, const Bounds& bounds = {}) {
    const std::unique_ptr<std::uint8_t[]> exact(new std::uint8_t[file.size()]);
    std::copy(file.begin(), file.end(), exact.get());
    const long before = count_bytes();
    reset_peak();
    const double start = cpu_seconds();
    std::shared_ptr<const FileModel> model;
    const Status status = FileModel::load_bytes(exact.get(), file.size(), &model);
    const double seconds = cpu_seconds() - start;
    INFO(status.message());
    REQUIRE(status.ok() == (model != nullptr));
    REQUIRE((status.ok() || status.message()[0] != '\0'));
    REQUIRE(seconds < bounds.seconds);
    REQUIRE(peak_bytes() - before < bounds.bytes);
    return status;
}

inline std::string code_of(const Bytes& file, const Bounds& bounds = {}) {
    const Status status = load_status(file, bounds);
    UNSCOPED_INFO(status.message());
    return code_name(status.code());
}

inline std::string code_of(const GgufWriter& file, const Bounds& bounds = {}) {
    return code_of(file.write(), bounds);
}

inline bool mentions(const Status& status, const std::string& text) {
    return std::string(status.message()).find(text) != std::string::npos;
}

// A sound small model to break.
inline GgufWriter sound() {
    return ModelMaker({}).file;
}

// A sound file of every family, with all the tensors it may have.
inline std::vector<GgufWriter> every_family() {
    std::vector<GgufWriter> files;
    for (const char* family :
         {"llama", "qwen2", "qwen3", "gemma", "gemma2", "gemma3", "phi3", "smollm3", "granite", "olmo2"}) {
        ModelShape shape;
        shape.family = family;
        shape.n_ff = 48;
        shape.biases = shape.family == "qwen2";
        shape.branch_biases = shape.family == "granite";
        shape.fused_qkv = shape.rope_factor_sets = shape.family == "phi3";
        shape.rope_factors = shape.own_output = shape.family == "llama";
        if (shape.family == "gemma3") shape.window = 16;
        if (shape.family == "granite") shape.logit_scale = 8.0f;
        files.push_back(ModelMaker(shape).file);
    }
    return files;
}

}  // namespace gearkv::test
