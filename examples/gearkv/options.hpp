// Options that several commands share, and what they stand for.
#pragma once

#include <CLI/CLI.hpp>
#include <cstdint>
#include <memory>
#include <optional>
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
    bool float_products = false;
    float mass = 1.0f, most_share = 1.0f, negligible = 0.0f;
    bool json = false;
    bool progress = false;
    std::string memory;  // SIZE of --memory; empty: no limit
    std::uint64_t memory_bytes = 0;
    std::string pre;  // how the vocabulary splits texts; empty: as the file says
    std::uint64_t max_cache_bytes = 0;
    std::string soft_cache;  // SIZE of --soft-cache; empty: none
};

// Integers from `least` to `most`; all else is refused with these two.
CLI::Validator in_range(std::uint64_t least, std::uint64_t most);
inline constexpr std::uint64_t most_tokens = (std::uint64_t{1} << 31) - 1;  // of a cache

// Each adds the options it names to a command; defaults are what `options` holds at that moment.
CLI::Option* add_model_option(CLI::App& app, Options& options);  // and --pre
void add_kv_option(CLI::App& app, Options& options, bool several);
void add_context_options(CLI::App& app, Options& options);
void add_machine_options(CLI::App& app, Options& options);
// Those of a session: context, machine, and how weights are multiplied.
void add_session_options(CLI::App& app, Options& options);
void add_products_option(CLI::App& app, Options& options);
void add_json_option(CLI::App& app, Options& options);
// -o, --output: text, csv, json or md.
void add_output_option(CLI::App& app, std::string& format);
void add_progress_option(CLI::App& app, Options& options);

// A SPEC as it was given, its canonical form and its meaning.
struct NamedSpec {
    std::string text;
    std::string canonical;
    KvSpec spec;
};
NamedSpec read_spec(const std::string& text);
std::vector<NamedSpec> read_specs(const Options& options);
// The SPEC of a saved cache.
std::string saved_spec(const std::string& path);
// Whether SPECs and --memory can be read, before there is a model to wait for. Throws UsageError.
void check_sizes(const Options& options);

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

void add_memory_option(CLI::App& app, Options& options);
// Bytes of "800M", "2G", "80%". Throws UsageError, and Failure when the system does not say what there is.
std::uint64_t read_memory_size(const char* option, const std::string& text);
// The most this process had in memory, mapped files included; 0 when the system does not say.
std::uint64_t peak_resident_bytes();
// What --memory, --ctx and --chunk ask for, with what the process holds by now; to be called with the model
// loaded.
FitRequest fit_request(Options& options, const Machine& machine);
// With --memory: puts the SPEC (unless it `keeps_kv`, then for that one), the context and the chunk that fit
// into the options, for open_session, and says so on stderr. Throws Failure when nothing fits, saying what
// would.
std::optional<Fit> fit_to_memory(const Model& model, bool keeps_kv, const Machine& machine, Options& options);

// The whole of a file. Throws Failure.
std::string read_text(const std::string& path);

}  // namespace gearkv::tool
