// gearkv inspect: what a model file holds.
#include <algorithm>
#include <iostream>
#include <map>

#include "command.hpp"
#include "failure.hpp"
#include "report.hpp"
#include "sampling.hpp"

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
        : Command(parent.add_subcommand("inspect", "What a model file is and holds, and cache sizes")) {
        options_.kv = {"f16", "q8", "gear-4", "kivi-4", "gear-2", "kivi-2"};
        add_model_option(*app_, options_);
        add_kv_option(*app_, options_, true);
        app_->add_option("--ctx", options_.n_ctx, "Tokens of the cache sizes; 0: as the model was trained")
            ->check(in_range(0, most_tokens))
            ->capture_default_str();
        add_json_option(*app_, options_);
    }

    void run() override {
        const std::vector<NamedSpec> specs = read_specs(options_);
        ModelFile file;
        check(read_model_file(options_.model.c_str(), &file));
        const std::map<std::string, TypeTotal> totals = sum_up(file.tensors);
        std::shared_ptr<const Model> model;
        ModelOptions how;
        if (!options_.pre.empty()) how.pre = options_.pre.c_str();
        if (const Status status = Model::load(options_.model.c_str(), &model, how); !status.ok()) {
            if (!is_of_another_kind(status.code())) check(status);
            options_.json ? print_as_json(file, totals, status) : print_as_text(file, totals, status);
            return;
        }
        n_tokens_ = options_.n_ctx != 0 ? options_.n_ctx : model->params().n_ctx;
        options_.json ? print_as_json(*model, totals, specs) : print_as_text(*model, totals, specs);
    }

  private:
    // Sound files that are not run, as far as can be told: the rest of what they say is worth reading.
    static bool is_of_another_kind(Code code) {
        return code == Code::unsupported_model || code == Code::missing_key || code == Code::bad_metadata ||
               code == Code::missing_tensor || code == Code::shape_mismatch || code == Code::bad_tokenizer;
    }

    static std::map<std::string, TypeTotal> sum_up(const std::vector<TensorInfo>& tensors) {
        std::map<std::string, TypeTotal> totals;
        TypeTotal all;
        for (const TensorInfo& tensor : tensors) {
            for (TypeTotal* total : {&totals[tensor.type], &all}) {
                total->n_tensors += 1;
                total->n_elements += n_elements(tensor);
                total->n_bytes += tensor.n_bytes;
            }
        }
        totals["all"] = all;
        return totals;
    }

    // The cache of n_tokens_ that came as one prompt.
    CacheReport plan_cache(const ModelParams& params, const KvSpec& spec) const {
        CacheConfig config;
        config.n_layers = params.n_layers;
        config.n_kv_heads = params.n_kv_heads;
        config.key_dim = config.value_dim = params.head_dim;
        config.max_tokens = n_tokens_;
        config.spec = spec;
        if (!params.windows.empty()) config.windows = params.windows.data();
        CacheBytes bytes;
        check(bytes_required(config, n_tokens_, n_tokens_, &bytes));
        return report_cache(config, bytes, n_tokens_);
    }

    // What a user asks first.
    struct Summary {
        std::string name;                          // of general.name
        std::uint64_t n_windowed = 0, window = 0;  // layers with a window, and the shortest
        double fp16_per_token = 0, gear4_per_token = 0;
        std::string chat_template;
    };

    using Metadata = std::vector<std::pair<std::string, std::string>>;
    static std::string find(const Metadata& metadata, const std::string& key) {
        for (const auto& [name, value] : metadata) {
            if (name == key) return value;
        }
        return "";
    }

    static std::string template_name(std::string_view text) {
        std::unique_ptr<ChatTemplate> chat;
        if (text.empty()) return "none";
        return ChatTemplate::recognise(text, &chat).ok() ? chat->name() : "not known";
    }

    Summary summarise(const Model& model) const {
        const ModelParams& params = model.params();
        Summary summary;
        summary.name = find(model.metadata(), "general.name");
        for (const std::uint32_t window : params.windows) {
            if (window == 0) continue;
            summary.window =
                summary.n_windowed == 0 ? window : std::min<std::uint64_t>(summary.window, window);
            summary.n_windowed += 1;
        }
        const CacheReport fp16 = plan_cache(params, read_spec("f16").spec);
        summary.fp16_per_token =
            summary.n_windowed > 0 ? bytes_per_token(fp16)
                                   : static_cast<double>(fp16.fp16_bytes()) / static_cast<double>(n_tokens_);
        summary.gear4_per_token = bytes_per_token(plan_cache(params, read_spec("gear-4").spec));
        summary.chat_template = template_name(model.tokenizer().chat_template());
        return summary;
    }

    static std::string token_text(const Tokenizer& tokenizer, Token token) {
        if (token < 0) return "none";
        return std::to_string(token) + " " + in_one_line(tokenizer.text(token));
    }

    void print_summary(const Model& model, const std::map<std::string, TypeTotal>& totals) const {
        const ModelParams& params = model.params();
        const Tokenizer& tokenizer = model.tokenizer();
        const Summary summary = summarise(model);
        const TypeTotal& all = totals.at("all");
        const double bits = 8.0 * static_cast<double>(all.n_bytes) / static_cast<double>(all.n_elements);
        std::cout << "family      " << in_one_line(params.family);
        if (!summary.name.empty()) std::cout << ", " << for_terminal(summary.name);
        std::cout << "\nparameters  " << grouped(all.n_elements) << " in " << grouped(all.n_tensors)
                  << " tensors of " << grouped(all.n_bytes) << " bytes, " << fixed(bits, 2)
                  << " bits each\ntypes       ";
        const char* comma = "";
        for (const auto& [type, total] : by_bytes(totals)) {
            std::cout << comma << type << " "
                      << fixed(100.0 * static_cast<double>(total.n_bytes) / static_cast<double>(all.n_bytes),
                               1)
                      << " %";
            comma = ", ";
        }
        std::cout << "\nlayers      " << params.n_layers << " of " << params.n_heads << " query and "
                  << params.n_kv_heads << " KV heads of " << params.head_dim << ", width " << params.n_embd;
        if (summary.n_windowed > 0)
            std::cout << "; " << summary.n_windowed << " see the last " << grouped(summary.window)
                      << " tokens only";
        std::cout << "\ncontext     " << grouped(params.n_ctx) << " tokens as trained\ncache       "
                  << grouped(static_cast<std::uint64_t>(summary.fp16_per_token + 0.5))
                  << " bytes a token in fp16, "
                  << grouped(static_cast<std::uint64_t>(summary.gear4_per_token + 0.5)) << " with gear-4 ("
                  << fixed(summary.gear4_per_token / summary.fp16_per_token, 3) << "), with "
                  << grouped(n_tokens_) << " tokens\ntemplate    " << summary.chat_template
                  << "\nvocabulary  " << in_one_line(tokenizer.kind());
        if (*tokenizer.pre() != '\0') std::cout << ", split as " << in_one_line(tokenizer.pre());
        std::cout << ", " << grouped(params.n_vocab) << " tokens\nspecial     BOS "
                  << token_text(tokenizer, tokenizer.bos())
                  << (tokenizer.adds_bos() ? ", added" : ", not added") << "; EOS "
                  << token_text(tokenizer, tokenizer.eos()) << "; ends a text:";
        if (tokenizer.end_of_generation().empty()) std::cout << " none";
        comma = " ";
        for (const Token token : tokenizer.end_of_generation()) {
            std::cout << comma << token_text(tokenizer, token);
            comma = ", ";
        }
        comma = "\nsampling    ";
        for (const auto& [name, value] : suggested_sampling(model)) {
            std::cout << comma << name << " " << for_terminal(value);
            comma = ", ";
        }
        std::cout << '\n';
        if (*tokenizer.note() != '\0') std::cout << "note        " << for_terminal(tokenizer.note()) << '\n';
        std::cout << '\n';
    }

    // All but their sum, the largest first.
    static std::vector<std::pair<std::string, TypeTotal>> by_bytes(
        const std::map<std::string, TypeTotal>& totals) {
        std::vector<std::pair<std::string, TypeTotal>> types;
        for (const auto& total : totals) {
            if (total.first != "all") types.push_back(total);
        }
        std::sort(types.begin(), types.end(),
                  [](const auto& a, const auto& b) { return a.second.n_bytes > b.second.n_bytes; });
        return types;
    }

    Json summary_as_json(const Model& model) const {
        const ModelParams& params = model.params();
        const Tokenizer& tokenizer = model.tokenizer();
        const Summary summary = summarise(model);
        const auto token = [&](Token id) {
            return id < 0 ? Json() : Json{{"id", id}, {"text", std::string(tokenizer.text(id))}};
        };
        Json json = {{"family", params.family},
                     {"name", summary.name},
                     {"parameters", params.n_parameters},
                     {"layers", params.n_layers},
                     {"heads", params.n_heads},
                     {"kv_heads", params.n_kv_heads},
                     {"head_dim", params.head_dim},
                     {"width", params.n_embd},
                     {"trained_ctx", params.n_ctx},
                     {"windows", params.windows},
                     {"fp16_bytes_per_token", summary.fp16_per_token},
                     {"gear4_bytes_per_token", summary.gear4_per_token},
                     {"template", summary.chat_template}};
        json["sampling"] = Json::object();
        for (const auto& [name, value] : suggested_sampling(model))
            json["sampling"][name] = value;
        json["vocabulary"] = {{"kind", tokenizer.kind()},         {"pre", tokenizer.pre()},
                              {"tokens", params.n_vocab},         {"bos", token(tokenizer.bos())},
                              {"adds_bos", tokenizer.adds_bos()}, {"eos", token(tokenizer.eos())},
                              {"note", tokenizer.note()}};
        json["vocabulary"]["ends"] = Json::array();
        for (const Token end : tokenizer.end_of_generation())
            json["vocabulary"]["ends"].push_back(token(end));
        return json;
    }

    double bytes_per_token(const CacheReport& report) const {
        return static_cast<double>(report.stored_bytes()) / static_cast<double>(n_tokens_);
    }

    // What is in the file.
    static void add_contents(const Metadata& metadata, const std::vector<TensorInfo>& tensors,
                             const std::map<std::string, TypeTotal>& totals, Json* json) {
        (*json)["metadata"] = Json::object();
        for (const auto& [key, value] : metadata)
            (*json)["metadata"][key] = value;
        for (const TensorInfo& tensor : tensors) {
            (*json)["tensors"].push_back({{"name", tensor.name},
                                          {"type", tensor.type},
                                          {"shape", tensor.shape},
                                          {"bytes", tensor.n_bytes}});
        }
        for (const auto& [type, total] : totals) {
            (*json)["types"][type] = {
                {"tensors", total.n_tensors}, {"parameters", total.n_elements}, {"bytes", total.n_bytes}};
        }
    }

    void print_as_json(const ModelFile& file, const std::map<std::string, TypeTotal>& totals,
                       const Status& why) const {
        Json json = start_json("inspect");
        json["model"] = options_.model;
        json["runs"] = false;
        json["reason"] = {{"code", code_name(why.code())}, {"message", why.message()}};
        add_contents(file.metadata, file.tensors, totals, &json);
        print_json(json);
    }

    void print_as_json(const Model& model, const std::map<std::string, TypeTotal>& totals,
                       const std::vector<NamedSpec>& specs) const {
        Json json = start_json("inspect");
        json["model"] = options_.model;
        json["runs"] = true;
        json["summary"] = summary_as_json(model);
        add_contents(model.metadata(), model.tensors(), totals, &json);
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

    static void print_contents(const Metadata& metadata, const std::vector<TensorInfo>& tensors,
                               const std::map<std::string, TypeTotal>& totals) {
        for (const auto& [key, value] : metadata)
            std::cout << in_one_line(key) << " = " << for_terminal(value) << '\n';
        std::cout << '\n';
        if (tensors.empty()) return;
        Table table({"tensor", "type", "shape", "bytes"});
        for (const TensorInfo& tensor : tensors) {
            table.add({in_one_line(tensor.name), tensor.type, shape_text(tensor), grouped(tensor.n_bytes)});
        }
        table.print(std::cout);
        std::cout << '\n';
        Table types({"type", "tensors", "parameters", "bytes"});
        for (const auto& [type, total] : totals) {
            types.add({type, grouped(total.n_tensors), grouped(total.n_elements), grouped(total.n_bytes)});
        }
        types.print(std::cout);
        std::cout << '\n';
    }

    void print_as_text(const ModelFile& file, const std::map<std::string, TypeTotal>& totals,
                       const Status& why) const {
        std::cout << "not run     " << code_name(why.code()) << ": " << for_terminal(why.message()) << '\n';
        const std::string family = find(file.metadata, "general.architecture");
        std::cout << "family      " << (family.empty() ? "not said" : for_terminal(family)) << "\n\n";
        print_contents(file.metadata, file.tensors, totals);
        if (file.tensors.empty())
            std::cout << "The tensors have types that are not known here, and are not listed.\n";
    }

    void print_as_text(const Model& model, const std::map<std::string, TypeTotal>& totals,
                       const std::vector<NamedSpec>& specs) const {
        print_summary(model, totals);
        print_contents(model.metadata(), model.tensors(), totals);
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
