// gearkv plan: bytes a cache will need, before there is a model.
#include <iostream>

#include "command.hpp"
#include "failure.hpp"
#include "report.hpp"

namespace gearkv::tool {
namespace {

class Plan final : public Command {
  public:
    explicit Plan(CLI::App& parent)
        : Command(parent.add_subcommand("plan", "Bytes a cache will need, by part")) {
        options_.kv = {"f16", "q8", "gear-4", "kivi-4", "gear-2", "kivi-2"};
        app_->add_option("--layers", config_.n_layers, "Layers")->required();
        app_->add_option("--kv-heads", config_.n_kv_heads, "KV heads of a layer")->required();
        app_->add_option("--head-dim", config_.key_dim, "Channels of a head")->required();
        app_->add_option("--ctx", config_.max_tokens, "Tokens held in every layer")->required();
        app_->add_option("--prompt", n_prompt_,
                         "Of these, tokens that come in one append; the rest come one by one")
            ->capture_default_str();
        add_kv_option(*app_, options_, true);
        add_json_option(*app_, options_);
    }

    void run() override {
        config_.value_dim = config_.key_dim;
        const std::vector<NamedSpec> specs = read_specs(options_);
        std::vector<CacheReport> reports;
        for (const NamedSpec& spec : specs) {
            config_.spec = spec.spec;
            CacheBytes bytes;
            check_usage(bytes_required(config_, config_.max_tokens, n_prompt_, &bytes));
            reports.push_back(report_cache(config_, bytes, config_.max_tokens));
        }
        options_.json ? print_as_json(specs, reports) : print_as_text(specs, reports);
    }

  private:
    void print_as_json(const std::vector<NamedSpec>& specs, const std::vector<CacheReport>& reports) const {
        Json json = start_json("plan");
        json["layers"] = config_.n_layers;
        json["kv_heads"] = config_.n_kv_heads;
        json["head_dim"] = config_.key_dim;
        json["ctx"] = config_.max_tokens;
        json["prompt"] = n_prompt_;
        for (std::size_t i = 0; i < specs.size(); ++i) {
            Json result = {{"kv", specs[i].canonical}};
            result.update(to_json(reports[i]));
            json["results"].push_back(result);
        }
        print_json(json);
    }

    void print_as_text(const std::vector<NamedSpec>& specs, const std::vector<CacheReport>& reports) const {
        if (specs.size() == 1) {
            print_bytes(std::cout, reports[0]);
            std::cout << "bits per element, buffer included: " << fixed(reports[0].bits_per_element(), 2)
                      << '\n';
            return;
        }
        Table table({"kv", "keys", "values", "buffer", "stored", "fp16", "stored/fp16", "bits/element"});
        for (std::size_t i = 0; i < specs.size(); ++i) {
            const CacheReport& report = reports[i];
            table.add({specs[i].text, grouped(report.bytes.keys.bytes), grouped(report.bytes.values.bytes),
                       grouped(report.bytes.buffer), grouped(report.stored_bytes()),
                       grouped(report.fp16_bytes()), fixed(report.ratio(), 3),
                       fixed(report.bits_per_element(), 2)});
        }
        table.print(std::cout);
    }

    Options options_;
    CacheConfig config_;
    std::uint64_t n_prompt_ = 0;
};

}  // namespace

std::unique_ptr<Command> add_plan(CLI::App& app) {
    return std::make_unique<Plan>(app);
}

}  // namespace gearkv::tool
