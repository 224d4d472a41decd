// One command of the tool. Each has a file of its own.
#pragma once

#include <CLI/CLI.hpp>
#include <memory>

namespace gearkv::tool {

class Command {
  public:
    virtual ~Command() = default;
    // Called once, when the command line named this command. Throws Failure, UsageError, Interrupted or
    // npy::Error.
    virtual void run() = 0;

    bool chosen() const { return app_->parsed(); }

  protected:
    explicit Command(CLI::App* app) : app_(app) {}
    CLI::App* app_;
};

// Each adds its command and options to the app.
std::unique_ptr<Command> add_generate(CLI::App& app);
std::unique_ptr<Command> add_chat(CLI::App& app);
std::unique_ptr<Command> add_bench(CLI::App& app);
std::unique_ptr<Command> add_perplexity(CLI::App& app);
std::unique_ptr<Command> add_recall(CLI::App& app);
std::unique_ptr<Command> add_passkey(CLI::App& app);
std::unique_ptr<Command> add_inspect(CLI::App& app);
std::unique_ptr<Command> add_codec(CLI::App& app);
std::unique_ptr<Command> add_plan(CLI::App& app);
std::unique_ptr<Command> add_state(CLI::App& app);
std::unique_ptr<Command> add_tokenize(CLI::App& app);

// Text of --version: version, levels, executors.
std::string version_text();

}  // namespace gearkv::tool
