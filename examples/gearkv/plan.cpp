// gearkv plan: bytes a cache will need before there is a model, or all that a model will.
#include <iostream>

#include "command.hpp"
#include "failure.hpp"
#include "report.hpp"

namespace gearkv::tool {
namespace {

class Plan final : public Command {
  public:
    explicit Plan(CLI::App& parent)
        : Command(parent.add_subcommand("plan",
                                        "Bytes a cache will need, by part; for a model file all it will")) {
        options_.kv = {"f16", "q8", "gear-4", "kivi-4", "gear-2", "kivi-2"};
        options_.chunk = SessionConfig().chunk;
        add_model_option(*app_, options_)->required(false);
        for (CLI::Option* option :
             {app_->add_option("--layers", config_.n_layers, "Layers")->check(in_range(1, 4096)),
              app_->add_option("--kv-heads", config_.n_kv_heads, "KV heads of a layer")
                  ->check(in_range(1, 4096)),
              app_->add_option("--head-dim", config_.key_dim, "Channels of a head")->check(in_range(8, 1024)),
              app_->add_option("--prompt", n_prompt_,
                               "Of the context, tokens that come in one append; the rest come one by one")
                  ->check(in_range(0, most_tokens))})
            option->group("Without a model");
        app_->add_option("--ctx", options_.n_ctx,
                         "Tokens held in every layer; with a model a few, up to the trained")
            ->check(in_range(1, most_tokens));
        add_kv_option(*app_, options_, true);
        add_memory_option(*app_, options_);
        app_->add_option("--chunk", options_.chunk, "Prompt tokens of the model fed at once")
            ->check(CLI::PositiveNumber)
            ->capture_default_str();
        add_machine_options(*app_, options_);
        add_products_option(*app_, options_);
        add_json_option(*app_, options_);
    }

    void run() override {
        const bool has_shape = app_->count("--layers") + app_->count("--kv-heads") +
                                   app_->count("--head-dim") + app_->count("--prompt") >
                               0;
        if (!options_.model.empty()) {
            if (has_shape)
                throw UsageError(
                    "MODEL has layers and heads of its own: leave --layers, --kv-heads, "
                    "--head-dim and --prompt out");
            plan_model();
            return;
        }
        if (app_->count("--layers") * app_->count("--kv-heads") * app_->count("--head-dim") *
                app_->count("--ctx") ==
            0)
            throw UsageError("MODEL is required, or --layers, --kv-heads, --head-dim and --ctx");
        if (!options_.memory.empty()) throw UsageError("--memory needs MODEL");
        config_.max_tokens = options_.n_ctx;
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
    struct Row {
        NamedSpec spec;
        std::uint32_t n_ctx;
        SessionBytes bytes;
    };

    // The trained context, and its parts down to 4,096.
    std::vector<std::uint32_t> contexts(const Model& model) const {
        if (options_.n_ctx > 0) return {options_.n_ctx};
        std::vector<std::uint32_t> found;
        for (std::uint32_t n = 4096; n < model.params().n_ctx; n *= 2) {
            found.push_back(n);
            if (n > UINT32_MAX / 2) break;
        }
        found.push_back(model.params().n_ctx);
        return found;
    }

    void plan_model() {
        const bool kv_given = app_->count("--kv") > 0;
        if (!kv_given) options_.kv = {"f16", "gear-4", "gear-3", "gear-2", "gear-1"};
        const std::vector<NamedSpec> specs = read_specs(options_);
        const Machine machine = open_machine(options_);
        const std::shared_ptr<const Model> model = load_model(options_);
        FitRequest request = fit_request(options_, machine);
        std::vector<Row> rows;
        for (const NamedSpec& spec : specs) {
            for (const std::uint32_t n_ctx : contexts(*model)) {
                SessionConfig config = request.session;
                config.spec = spec.spec;
                config.n_ctx = n_ctx;
                SessionBytes bytes;
                check(session_bytes(*model, config, *machine.executor, &bytes));
                rows.push_back({spec, n_ctx, bytes});
            }
        }
        std::optional<Fit> fit;
        if (!options_.memory.empty()) {
            if (kv_given && specs.size() == 1) request.spec = specs[0].text;
            fit.emplace();
            check(fit_session(*model, request, *machine.executor, &*fit));
        }
        options_.json ? print_model_as_json(*model, rows, fit, request, machine)
                      : print_model_as_text(*model, rows, fit, request, machine);
        if (fit && !fit->fits) throw Failure("--memory " + options_.memory + ": " + fit->reason);
    }

    static bool fits(const Row& row, const FitRequest& request) {
        return row.bytes.total() + request.other_bytes <= request.max_bytes;
    }

    void print_model_as_text(const Model& model, const std::vector<Row>& rows, const std::optional<Fit>& fit,
                             const FitRequest& request, const Machine& machine) const {
        std::cout << in_one_line(options_.model) << ": " << in_one_line(model.params().family) << ", "
                  << grouped(model.params().n_parameters) << " parameters, trained on "
                  << grouped(model.params().n_ctx) << " tokens\nprompts in chunks of " << options_.chunk
                  << ", " << machine.executor->n_threads() << " threads";
        if (fit)
            std::cout << "; " << grouped(request.other_bytes)
                      << " bytes taken by the program and its vocabulary";
        std::cout << "\n\n";
        std::vector<std::string> header = {"kv", "tokens", "weights", "cache", "scratch", "total"};
        if (fit) header.push_back("fits " + options_.memory);
        Table table(header);
        for (const Row& row : rows) {
            std::vector<std::string> cells = {row.spec.text,
                                              grouped(row.n_ctx),
                                              grouped(row.bytes.weights),
                                              grouped(row.bytes.cache),
                                              grouped(row.bytes.scratch),
                                              grouped(row.bytes.total())};
            if (fit) cells.push_back(fits(row, request) ? "yes" : "no");
            table.add(cells);
        }
        table.print(std::cout);
        if (fit && fit->fits) std::cout << '\n' << fit->reason << '\n';
    }

    void print_model_as_json(const Model& model, const std::vector<Row>& rows, const std::optional<Fit>& fit,
                             const FitRequest& request, const Machine& machine) const {
        Json json = start_json("plan", &machine);
        json["model"] = options_.model;
        json["family"] = model.params().family;
        json["parameters"] = model.params().n_parameters;
        json["trained_ctx"] = model.params().n_ctx;
        json["chunk"] = options_.chunk;
        for (const Row& row : rows) {
            Json result = {{"kv", row.spec.canonical}, {"ctx", row.n_ctx}};
            result.update(to_json(row.bytes));
            if (fit) result["fits"] = fits(row, request);
            json["results"].push_back(result);
        }
        if (fit) json["fit"] = to_json(*fit, request.max_bytes);
        if (fit) json["other_bytes"] = request.other_bytes;
        print_json(json);
    }

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
