// Options that several commands share, and what they stand for.
#pragma once

#include <CLI/CLI.hpp>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "gearkv/decoder.hpp"

namespace gearkv::tool {

struct Options {
    std::string model;
    std::vector<std::string> kv;
    std::uint32_t n_ctx = 0;
    std::uint32_t chunk = 0;
    unsigned n_threads = 0;
    std::string level = "automatic";
    std::uint64_t seed = 0;
    bool json = false;
    bool progress = false;
};

// Each adds the options it names to a command; defaults are what `options` holds at that moment.
void add_model_option(CLI::App& app, Options& options);
void add_kv_option(CLI::App& app, Options& options, bool several);
void add_context_options(CLI::App& app, Options& options);
void add_machine_options(CLI::App& app, Options& options);
void add_json_option(CLI::App& app, Options& options);
void add_progress_option(CLI::App& app, Options& options);

// A SPEC as it was given, its canonical form and its meaning.
struct NamedSpec {
    std::string text;
    std::string canonical;
    KvSpec spec;
};
NamedSpec read_spec(const std::string& text);
std::vector<NamedSpec> read_specs(const Options& options);

// What runs the work. The level is never automatic.
struct Machine {
    Level level = Level::automatic;
    std::unique_ptr<Executor> executor;
};
Machine open_machine(const Options& options);

std::shared_ptr<const Model> load_model(const Options& options);
SessionConfig session_config(const Options& options, const KvSpec& spec, const Machine& machine);
std::unique_ptr<Session> open_session(const std::shared_ptr<const Model>& model, const Options& options,
                                      const KvSpec& spec, Machine& machine);

// The whole of a file. Throws Failure.
std::string read_text(const std::string& path);

}  // namespace gearkv::tool
