// gearkv inspect: what a model file holds.
#include <iostream>
#include <map>

#include "command.hpp"
#include "failure.hpp"
#include "report.hpp"

namespace gearkv::tool {
namespace {

std::uint64_t n_elements(const TensorInfo& tensor) {
    std::uint64_t n = 1;
    for (const std::uint64_t extent : tensor.shape)
        n *= extent;
    return n;
}

std::string shape_text(const TensorInfo& tensor) {
    std::string text;
    for (const std::uint64_t extent : tensor.shape)
        text += (text.empty() ? "" : " x ") + std::to_string(extent);
    return text;
}

// Tensors of one type.
struct TypeTotal {
    std::uint64_t n_tensors = 0, n_elements = 0, n_bytes = 0;
};

class Inspect final : public Command {
  public:
    explicit Inspect(CLI::App& parent)
        : Command(parent.add_subcommand("inspect", "Metadata, tensors and cache sizes of a model file")) {
        options_.kv = {"f16", "q8", "gear-4", "kivi-4", "gear-2", "kivi-2"};
        add_model_option(*app_, options_);
        add_kv_option(*app_, options_, true);
        app_->add_option("--ctx", options_.n_ctx, "Tokens of the cache sizes; 0: as the model was trained")
            ->capture_default_str();
        add_json_option(*app_, options_);
    }

    void run() override {
        const std::vector<NamedSpec> specs = read_specs(options_);
        const std::shared_ptr<const Model> model = load_model(options_);
        n_tokens_ = options_.n_ctx != 0 ? options_.n_ctx : model->params().n_ctx;
        std::map<std::string, TypeTotal> totals;
        TypeTotal all;
        for (const TensorInfo& tensor : model->tensors()) {
            for (TypeTotal* total : {&totals[tensor.type], &all}) {
                total->n_tensors += 1;
                total->n_elements += n_elements(tensor);
                total->n_bytes += tensor.n_bytes;
            }
        }
        totals["all"] = all;
        options_.json ? print_as_json(*model, totals, specs) : print_as_text(*model, totals, specs);
    }

  private:
    // The cache of n_tokens_ that came as one prompt.
    CacheReport plan_cache(const ModelParams& params, const KvSpec& spec) const {
        CacheConfig config;
        config.n_layers = params.n_layers;
        config.n_kv_heads = params.n_kv_heads;
        config.key_dim = config.value_dim = params.head_dim;
        config.max_tokens = n_tokens_;
        config.spec = spec;
        CacheBytes bytes;
        check(bytes_required(config, n_tokens_, n_tokens_, &bytes));
        return report_cache(config, bytes, n_tokens_);
    }

    double bytes_per_token(const CacheReport& report) const {
        return static_cast<double>(report.stored_bytes()) / static_cast<double>(n_tokens_);
    }

    void print_as_json(const Model& model, const std::map<std::string, TypeTotal>& totals,
                       const std::vector<NamedSpec>& specs) const {
        Json json = start_json("inspect");
        json["model"] = options_.model;
        json["metadata"] = Json::object();
        for (const auto& [key, value] : model.metadata())
            json["metadata"][key] = value;
        for (const TensorInfo& tensor : model.tensors()) {
            json["tensors"].push_back({{"name", tensor.name},
                                       {"type", tensor.type},
                                       {"shape", tensor.shape},
                                       {"bytes", tensor.n_bytes}});
        }
        for (const auto& [type, total] : totals) {
            json["types"][type] = {
                {"tensors", total.n_tensors}, {"parameters", total.n_elements}, {"bytes", total.n_bytes}};
        }
        json["ctx"] = n_tokens_;
        for (const NamedSpec& spec : specs) {
            const CacheReport report = plan_cache(model.params(), spec.spec);
            json["cache"].push_back({{"kv", spec.canonical},
                                     {"bytes_per_token", bytes_per_token(report)},
                                     {"stored_bytes", report.stored_bytes()},
                                     {"ratio", report.ratio()}});
        }
        print_json(json);
    }

    void print_as_text(const Model& model, const std::map<std::string, TypeTotal>& totals,
                       const std::vector<NamedSpec>& specs) const {
        for (const auto& [key, value] : model.metadata())
            std::cout << key << " = " << value << '\n';
        std::cout << '\n';
        Table tensors({"tensor", "type", "shape", "bytes"});
        for (const TensorInfo& tensor : model.tensors()) {
            tensors.add({tensor.name, tensor.type, shape_text(tensor), grouped(tensor.n_bytes)});
        }
        tensors.print(std::cout);
        std::cout << '\n';
        Table types({"type", "tensors", "parameters", "bytes"});
        for (const auto& [type, total] : totals) {
            types.add({type, grouped(total.n_tensors), grouped(total.n_elements), grouped(total.n_bytes)});
        }
        types.print(std::cout);
        std::cout << '\n';
        const std::string ctx = grouped(n_tokens_);
        Table cache({"cache of " + ctx + " tokens, one prompt", "bytes/token", "bytes", "stored/fp16"});
        for (const NamedSpec& spec : specs) {
            const CacheReport report = plan_cache(model.params(), spec.spec);
            cache.add({spec.text, fixed(bytes_per_token(report), 1), grouped(report.stored_bytes()),
                       fixed(report.ratio(), 3)});
        }
        cache.print(std::cout);
    }

    Options options_;
    std::uint64_t n_tokens_ = 0;
};

}  // namespace

std::unique_ptr<Command> add_inspect(CLI::App& app) {
    return std::make_unique<Inspect>(app);
}

}  // namespace gearkv::tool
