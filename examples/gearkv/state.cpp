// gearkv state: what a saved session holds, and whether it is whole.
#include <iostream>

#include "command.hpp"
#include "failure.hpp"
#include "gearkv/state.hpp"
#include "report.hpp"

namespace gearkv::tool {
namespace {

std::string fingerprint_text(const ModelFingerprint& model) {
    static constexpr char digits[] = "0123456789abcdef";
    std::string text;
    for (const std::uint8_t byte : model.bytes) {
        text += digits[byte >> 4];
        text += digits[byte & 15];
    }
    return text;
}

class State final : public Command {
  public:
    explicit State(CLI::App& parent)
        : Command(parent.add_subcommand("state", "What a saved cache holds, and whether it is whole")) {
        app_->require_subcommand(1);
        CLI::App* info = app_->add_subcommand("info", "Show what the file says of itself");
        verify_ = app_->add_subcommand("verify", "Check every byte of the file");
        for (CLI::App* command : {info, verify_}) {
            command->add_option("FILE", path_, "A file that --save or save_state wrote")->required();
            if (command == verify_) {
                command->add_option("--threads", options_.n_threads, "Threads; 0: one per processor")
                    ->check(in_range(0, 1024))
                    ->capture_default_str();
            }
            add_json_option(*command, options_);
        }
    }

    void run() override {
        StateInfo info;
        if (verify_->parsed()) {
            std::unique_ptr<Executor> executor;
            check(create_executor(options_.n_threads, &executor));
            check(verify_state(path_.c_str(), *executor, &info));
        } else {
            check(inspect_state(path_.c_str(), &info));
        }
        char spec[max_spec_chars];
        check(format_spec(info.config.spec, spec, sizeof(spec)));
        options_.json ? print_as_json(info, spec) : print_as_text(info, spec);
    }

  private:
    void print_as_json(const StateInfo& info, const char* spec) const {
        Json json = start_json(verify_->parsed() ? "state verify" : "state info");
        json["file"] = path_;
        json["version"] = info.version;
        json["bytes"] = info.n_bytes;
        json["kv"] = spec;
        json["layers"] = info.config.n_layers;
        if (info.dims == nullptr) {
            json["kv_heads"] = info.config.n_kv_heads;
            json["key_dim"] = info.config.key_dim;
            json["value_dim"] = info.config.value_dim;
        }
        for (std::uint32_t i = 0; info.dims != nullptr && i < info.config.n_layers; ++i) {
            const LayerDims& dims = info.dims[i];
            json["shapes"].push_back(
                {{"kv_heads", dims.n_kv_heads}, {"key_dim", dims.key_dim}, {"value_dim", dims.value_dim}});
        }
        json["tokens"] = info.n_tokens;
        json["blocks"] = info.n_blocks;
        json["block_bytes"] = info.block_bytes;
        json["extra_bytes"] = info.n_extra;
        json["model"] = fingerprint_text(info.model);
        if (verify_->parsed()) json["whole"] = true;
        print_json(json);
    }

    void print_as_text(const StateInfo& info, const char* spec) const {
        const CacheConfig& config = info.config;
        std::cout << "version  " << info.version << "\nbytes    " << grouped(info.n_bytes) << "\nkv       "
                  << spec << "\nshape    " << config.n_layers << " layers";
        print_shapes(config);
        std::cout << "\ntokens   " << grouped(info.n_tokens) << "\nblocks   " << grouped(info.n_blocks)
                  << " of " << grouped(info.block_bytes) << " bytes\nextra    " << grouped(info.n_extra)
                  << " bytes\nmodel    " << fingerprint_text(info.model) << '\n';
        if (verify_->parsed()) std::cout << "every byte is as it was written\n";
    }

    // Of all layers, or of each run of layers that are alike.
    static void print_shapes(const CacheConfig& config) {
        for (std::uint32_t first = 0, end; first < config.n_layers; first = end) {
            const LayerDims dims = config.dims_of(first);
            end = first + 1;
            while (end < config.n_layers && config.dims_of(end) == dims)
                ++end;
            if (config.dims != nullptr) {
                std::cout << "\n         " << first;
                if (end - first > 1) std::cout << '-' << end - 1;
            }
            std::cout << (config.dims == nullptr ? ", " : ": ");
            if (dims.has_keys()) {
                std::cout << dims.n_kv_heads << " KV heads of " << dims.key_dim << " and " << dims.value_dim
                          << " channels";
            } else {
                std::cout << "no keys";
            }
        }
    }

    Options options_;
    std::string path_;
    CLI::App* verify_ = nullptr;
};

}  // namespace

std::unique_ptr<Command> add_state(CLI::App& app) {
    return std::make_unique<State>(app);
}

}  // namespace gearkv::tool
