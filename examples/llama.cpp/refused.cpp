// What gearkv does not hold is refused when a context is made, with the reason in the engine's log and never
// an abort, and computes without a SPEC as it did. Of the engine's library it knows a device from inside, to
// call its CPU a GPU (build.sh DIR refused).
//   refused MODEL FOLDER: MODEL is a plain one, FOLDER has the files of shapes
#include "ggml-backend-impl.h"
#include "program.h"

namespace {

std::string logged;

void keep_log() {
    llama_log_set([](ggml_log_level, const char* text, void*) { logged += text; }, nullptr);
}

bool computes(llama_context* context) {
    std::vector<llama_token> tokens = {5, 6, 7, 8};
    const llama_batch batch = llama_batch_get_one(tokens.data(), static_cast<int>(tokens.size()));
    const llama_model* const model = llama_get_model(context);
    return (llama_model_has_encoder(model) ? llama_encode(context, batch) : llama_decode(context, batch)) ==
           0;
}

// Without a SPEC the context is there and computes; with one there is none and the log says `reason`, or, if
// `works`, there is one and the log has the reason as a warning.
void expect(const char* what, llama_model* model, const llama_context_params& params, const char* reason,
            bool works = false) {
    keep_log();
    llama_context* const plain = make_context(model, params, nullptr);
    if (!computes(plain)) fail(std::string(what) + ": does not compute without a SPEC");
    llama_free(plain);
    if (logged.find("gearkv") != std::string::npos) fail(std::string(what) + ": gearkv without a SPEC");
    logged.clear();
    llama_context* const gear = try_context(model, params, "gear-4");
    const auto at = logged.find(reason);
    if (at == std::string::npos) fail(std::string(what) + ": no word of \"" + reason + "\" in\n" + logged);
    if (works != (gear != nullptr)) fail(std::string(what) + (works ? ": no context" : ": a context"));
    if (gear != nullptr && !computes(gear)) fail(std::string(what) + ": does not compute with a SPEC");
    if (gear != nullptr) llama_free(gear);
    const auto begin = logged.rfind('\n', at) + 1;
    std::printf("  %-34s %s\n", what, logged.substr(begin, logged.find('\n', at) - begin).c_str());
    logged.clear();
}

// The CPU, but that it says it is a GPU.
ggml_backend_dev_t make_gpu() {
    static ggml_backend_device gpu = *ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU);
    gpu.iface.get_name = [](ggml_backend_dev_t) { return "GPU0"; };
    gpu.iface.get_type = [](ggml_backend_dev_t) { return GGML_BACKEND_DEVICE_TYPE_GPU; };
    return &gpu;
}

}  // namespace

int main(int argc, char** argv) {
    if (argc != 3) return std::fprintf(stderr, "refused MODEL FOLDER\n"), 2;
    const std::string folder = argv[2];
    llama_context_params params = llama_context_default_params();
    params.n_ctx = 256;
    params.n_threads = params.n_threads_batch = 1;
    const auto open = [](const std::string& path) { return open_model(path.c_str()); };

    llama_model* model = open(folder + "/latent.gguf");
    expect("latent keys and values", model, params, "(MLA) are not supported");
    llama_model_free(model);
    model = open(folder + "/both.gguf");
    expect("a decoder with biases", model, params, "biases of scores");
    llama_model_free(model);
    model = open(folder + "/encoder.gguf");
    expect("an encoder has no cache", model, params, "no KV cache that a SPEC could be for", true);
    llama_model_free(model);

    model = open(argv[1]);
    llama_context_params quantised = params;
    quantised.type_k = quantised.type_v = GGML_TYPE_Q8_0;
    quantised.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_ENABLED;
    expect("quantised types of the engine", model, quantised, "takes the place of quantised cache types");
    llama_model_free(model);

    llama_model_params on_gpu = llama_model_default_params();
    ggml_backend_dev_t devices[] = {make_gpu(), nullptr};
    on_gpu.devices = devices;
    on_gpu.n_gpu_layers = 2;
    model = llama_model_load_from_file(argv[1], on_gpu);
    if (model == nullptr) fail("no model on the GPU");
    expect("layers on a GPU", model, params, "is on a GPU");
    params.offload_kqv = false;
    expect("the same, its cache on the CPU", model, params, "holds the keys and values", true);
    llama_model_free(model);
    return 0;
}
