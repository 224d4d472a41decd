#include "options.hpp"

#include <charconv>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "failure.hpp"

namespace gearkv::tool {

CLI::Validator in_range(std::uint64_t least, std::uint64_t most) {
    const std::string range = std::to_string(least) + " to " + std::to_string(most);
    return CLI::Validator(
        [=](std::string& text) {
            std::uint64_t value = 0;
            const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
            const bool good =
                error == std::errc() && end == text.data() + text.size() && value >= least && value <= most;
            return good ? std::string() : text + ", expected " + range;
        },
        "");
}

CLI::Option* add_model_option(CLI::App& app, Options& options) {
    app.add_option("--pre", options.pre,
                   "Split texts by this rule instead of the one the file names (tokenizer.ggml.pre)")
        ->type_name("NAME");
    return app.add_option("MODEL", options.model, "GGUF file of a model")->required();
}

void add_kv_option(CLI::App& app, Options& options, bool several) {
    const std::string help =
        "What the cache stores, f16, q8, kivi-4, gear-4:r=2,s=0.01, k=gear-4;v=kivi-4, ...";
    CLI::Option* option = app.add_option("--kv", options.kv, several ? help + "; several make a table" : help)
                              ->type_name("SPEC");
    option->expected(1, several ? CLI::detail::expected_max_vector_size : 1)->capture_default_str();
}

void add_context_options(CLI::App& app, Options& options) {
    app.add_option("--ctx", options.n_ctx, "Tokens of context; 0: as the model was trained")
        ->check(in_range(0, most_tokens))
        ->capture_default_str();
    app.add_option("--chunk", options.chunk, "Prompt tokens fed at once; a chunk attends itself uncompressed")
        ->check(in_range(1, 1 << 20))
        ->capture_default_str();
}

void add_machine_options(CLI::App& app, Options& options) {
    app.add_option("--threads", options.n_threads, "Threads; 0: one per processor")
        ->check(in_range(0, 1024))
        ->capture_default_str();
    app.add_option("--level", options.level,
                   "Instruction set level; automatic: GEARKV_LEVEL, else the best here")
        ->type_name("LEVEL")
        ->capture_default_str();
    app.add_option("--seed", options.seed, "Start of every random choice")
        ->check(in_range(0, UINT64_MAX))
        ->capture_default_str();
}

void add_products_option(CLI::App& app, Options& options) {
    app.add_flag("--float-products", options.float_products,
                 "Multiply quantised weights in floats: slower, without rounding vectors to 15 bits");
}

void add_reading_options(CLI::App& app, Options& options) {
    app.add_option(
           "--mass", options.mass,
           "Attend only sections of 128 tokens that together have this share of the weights, estimated; "
           "trellis presets")
        ->check(CLI::Range(0.01, 1.0))
        ->capture_default_str();
    app.add_option("--most-share", options.most_share, "At most this share of them")
        ->check(CLI::Range(0.001, 1.0))
        ->capture_default_str();
    app.add_option("--negligible", options.negligible,
                   "Do not read values of 16 tokens that weigh less than this share of the heaviest")
        ->check(CLI::Range(0.0, 0.5))
        ->capture_default_str();
}

void add_session_options(CLI::App& app, Options& options) {
    add_context_options(app, options);
    add_machine_options(app, options);
    add_products_option(app, options);
    add_reading_options(app, options);
    app.add_option(
           "--soft-cache", options.soft_cache,
           "Where the cache takes more than SIZE, as in 8M, encode its older blocks again in fewer bits")
        ->type_name("SIZE");
}

void add_json_option(CLI::App& app, Options& options) {
    app.add_flag("--json", options.json, "Print one JSON object instead of text");
}

void add_output_option(CLI::App& app, std::string& format) {
    app.add_option("-o,--output", format, "Form of the table")
        ->check(CLI::IsMember({"text", "csv", "json", "md"}))
        ->capture_default_str();
}

void add_progress_option(CLI::App& app, Options& options) {
    app.add_flag("--progress", options.progress, "Show progress on stderr even when it is not a terminal");
}

NamedSpec read_spec(const std::string& text) {
    NamedSpec named;
    named.text = text;
    check_usage(parse_spec(text.c_str(), &named.spec));
    char canonical[max_spec_chars];
    check(format_spec(named.spec, canonical, sizeof(canonical)));
    named.canonical = canonical;
    return named;
}

std::vector<NamedSpec> read_specs(const Options& options) {
    std::vector<NamedSpec> specs;
    for (const std::string& text : options.kv)
        specs.push_back(read_spec(text));
    return specs;
}

std::string saved_spec(const std::string& path) {
    StateInfo info;
    check(inspect_state(path.c_str(), &info));
    char text[max_spec_chars];
    check(format_spec(info.config.spec, text, sizeof(text)));
    return text;
}

void check_sizes(const Options& options) {
    (void)read_specs(options);
    if (!options.memory.empty()) (void)read_memory_size("--memory", options.memory);
    if (!options.soft_cache.empty()) (void)read_memory_size("--soft-cache", options.soft_cache);
}

Machine open_machine(const Options& options) {
    Machine machine;
    Level wanted = Level::automatic;
    if (options.level != level_name(Level::automatic))
        check_usage(parse_level(options.level.c_str(), &wanted));
    check(resolve_level(wanted, &machine.level));
    check(create_executor(options.n_threads, &machine.executor));
    return machine;
}

std::shared_ptr<const Model> load_model(const Options& options) {
    std::shared_ptr<const Model> model;
    ModelOptions how;
    if (!options.pre.empty()) how.pre = options.pre.c_str();
    check(Model::load(options.model.c_str(), &model, how));
    return model;
}

SessionConfig session_config(const Options& options, const KvSpec& spec, const Machine& machine) {
    SessionConfig config;
    config.spec = spec;
    config.n_ctx = options.n_ctx;
    config.chunk = options.chunk;
    config.seed = options.seed;
    config.level = machine.level;
    config.max_cache_bytes = options.max_cache_bytes;
    if (!options.soft_cache.empty())
        config.soft_cache_bytes = read_memory_size("--soft-cache", options.soft_cache);
    config.interrupt = interrupt_between_chunks();
    config.float_products = options.float_products;
    config.mass = options.mass;
    config.most_share = options.most_share;
    config.negligible = options.negligible;
    return config;
}

std::unique_ptr<Session> open_session(const std::shared_ptr<const Model>& model, const Options& options,
                                      const KvSpec& spec, Machine& machine) {
    std::unique_ptr<Session> session;
    check(Session::create(model, session_config(options, spec, machine), *machine.executor, &session));
    return session;
}

std::string read_text(const std::string& path) {
    std::error_code error;
    if (std::filesystem::is_directory(path, error)) throw Failure(path + ": a directory, expected a file");
    std::ifstream file(path, std::ios::binary);
    if (!file) throw Failure(path + ": cannot be opened");
    std::ostringstream text;
    text << file.rdbuf();
    if (file.bad()) throw Failure(path + ": cannot be read");
    return text.str();
}

}  // namespace gearkv::tool
