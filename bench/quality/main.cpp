// Rate-distortion of cache formats: bits per element with everything counted, against the error of attention.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <exception>
#include <fstream>
#include <iostream>
#include <nlohmann/json.hpp>

#include "measure.hpp"

using namespace gearkv::quality;

namespace {

struct Options {
    std::string dumps = GEARKV_DUMP_DIR;
    std::string conformance = GEARKV_CONFORMANCE_DIR;
    std::string json_path;
    std::vector<std::string> only;   // datasets
    std::vector<std::string> specs;  // in place of the default list
    std::vector<std::string> model_dumps;
    std::size_t chunk = 512, n_sinks = 4, n_recent = 64;
};

struct Row {
    std::string data, format;
    bool ours, published, structured, real;
    Score score;
};

std::vector<std::unique_ptr<Format>> make_formats(const Options& options) {
    auto formats = rival_formats();
    for (const char* spec :
         {"f16", "token-2:g=64", "token-4:g=64", "kcvt-2", "kcvt-4", "kivi-2", "kivi-2:g=32", "kivi-3",
          "kivi-4", "gearl-2", "paper:gear-2", "paper:gear-3", "paper:gear-4"}) {
        formats.push_back(spec_format(spec, 0, false));
    }
    for (const std::string& spec : options.specs)
        formats.push_back(spec_format(spec, options.chunk, true));
    return formats;
}

std::vector<Dataset> make_datasets(const Options& options) {
    std::vector<Dataset> all;
    if (options.model_dumps.empty()) {
        all = make_families();
        for (const char* name : {"gauss", "outch"})
            all.push_back(load_conformance(options.conformance, name));
        for (const char* name : {"text", "recall"})
            all.push_back(load_dump(options.dumps, name));
        all.push_back(load_model_dump(options.dumps + "/smollm2"));
    }
    for (const std::string& prefix : options.model_dumps)
        all.push_back(load_model_dump(prefix));
    std::vector<Dataset> chosen;
    for (Dataset& data : all) {
        for (Layer& layer : data.layers)
            layer.n_sinks = options.n_sinks;
        if (options.only.empty() ||
            std::find(options.only.begin(), options.only.end(), data.name) != options.only.end())
            chosen.push_back(std::move(data));
    }
    return chosen;
}

// Error over that of the best published format, whose error is taken to halve with every bit between the two,
// of those that are less than .45 bits apart.
struct Beside {
    double ratio = 0;
    const Row* rival = nullptr;
};
Beside best_rival(const std::vector<Row>& rows, const Row& row, double Score::*error) {
    Beside found;
    for (const Row& other : rows) {
        const double more = other.score.bits_per_element - row.score.bits_per_element;
        if (other.ours || !other.published || other.data != row.data || std::abs(more) > 0.45) continue;
        const double ratio = row.score.*error / (other.score.*error * std::exp2(more));
        if (found.rival == nullptr || ratio > found.ratio) found = {ratio, &other};
    }
    return found;
}

void print_rows(const std::vector<Row>& rows, std::size_t n_recent) {
    std::string data;
    for (const Row& row : rows) {
        const bool causal = row.score.recent_error > 0;
        if (row.data != data) {
            data = row.data;
            std::printf("\n%-20s %-26s %6s %8s %8s %9s %10s %9s  %s\n", data.c_str(), "format", "bits",
                        "K error", "V error", "output", "weight KL",
                        causal ? ("last " + std::to_string(n_recent)).c_str() : "",
                        "output, and with the last exact, beside the best published at equal bits");
        }
        std::printf("%-20s %-26s %6.3f %8.4f %8.4f %9.5f %10.6f", "", row.format.c_str(),
                    row.score.bits_per_element, row.score.key_error, row.score.value_error,
                    row.score.output_error, row.score.weight_kl);
        causal ? std::printf(" %9.5f", row.score.recent_error) : std::printf(" %9s", "");
        if (row.ours) {
            for (double Score::*error : {&Score::output_error, &Score::recent_error}) {
                const Beside beside = best_rival(rows, row, error);
                if (beside.rival == nullptr || (error == &Score::recent_error && !causal)) continue;
                std::printf("  %.2f of %s", beside.ratio, beside.rival->format.c_str());
            }
        }
        std::printf("\n");
    }
}

void write_json(const std::string& path, const std::vector<Row>& rows) {
    nlohmann::json json = {{"schema_version", 1}, {"rows", nlohmann::json::array()}};
    for (const Row& row : rows) {
        json["rows"].push_back({{"data", row.data},
                                {"format", row.format},
                                {"ours", row.ours},
                                {"published", row.published},
                                {"structured", row.structured},
                                {"real", row.real},
                                {"bits_per_element", row.score.bits_per_element},
                                {"key_error", row.score.key_error},
                                {"value_error", row.score.value_error},
                                {"output_error", row.score.output_error},
                                {"weight_kl", row.score.weight_kl},
                                {"recent_error", row.score.recent_error}});
    }
    std::ofstream out(path);
    out << json.dump(1) << "\n";
    if (!out) throw std::runtime_error(path + ": cannot be written");
}

}  // namespace

int main(int argc, char* argv[]) {
    Options options;
    CLI::App app("Bits per element against the error of attention, for our formats and those CPU users have");
    app.add_option("--dumps", options.dumps, "Folder of text_{k,v,q}.npy and recall_{k,v,q}.npy");
    app.add_option("--conformance", options.conformance, "Folder of the conformance tensors");
    app.add_option(
        "--model-dump", options.model_dumps,
        "PREFIX of what bench/dump wrote with as many --queries as --tokens, in place of all data");
    app.add_option("--sinks", options.n_sinks, "First tokens that every format keeps as they came")
        ->capture_default_str();
    app.add_option("--recent", options.n_recent,
                   "Last tokens of every query that are exact in the second error")
        ->check(CLI::PositiveNumber)
        ->capture_default_str();
    app.add_option("--json", options.json_path, "Write the rows to this file; plot.py draws it");
    app.add_option("--data", options.only, "Only these data sets");
    app.add_option("--kv", options.specs, "SPECs to measure as ours");
    app.add_option("--chunk", options.chunk, "Tokens in one append of those; 0: all at once")
        ->capture_default_str();
    CLI11_PARSE(app, argc, argv);
    try {
        std::vector<Row> rows;
        const auto formats = make_formats(options);
        for (const Dataset& data : make_datasets(options)) {
            std::fprintf(stderr, "%s\n", data.name.c_str());
            const Exact exact(data, options.n_recent);
            for (const auto& format : formats) {
                rows.push_back({data.name, format->name(), format->ours(), format->published(),
                                data.structured, data.real, exact.measure(*format)});
            }
        }
        print_rows(rows, options.n_recent);
        if (!options.json_path.empty()) write_json(options.json_path, rows);
    } catch (const std::exception& error) {
        std::cerr << error.what() << "\n";
        return 1;
    }
    return 0;
}
