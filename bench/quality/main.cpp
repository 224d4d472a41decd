// Rate-distortion of cache formats: bits per element with everything counted, against the error of attention.
#include <CLI/CLI.hpp>
#include <algorithm>
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
    std::size_t chunk = 0;
};

struct Row {
    std::string data, format;
    bool ours, structured, real;
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
    std::vector<Dataset> all = make_families();
    for (const char* name : {"gauss", "outch"})
        all.push_back(load_conformance(options.conformance, name));
    for (const char* name : {"text", "recall"})
        all.push_back(load_dump(options.dumps, name));
    if (options.only.empty()) return all;
    std::vector<Dataset> chosen;
    for (Dataset& data : all) {
        if (std::find(options.only.begin(), options.only.end(), data.name) != options.only.end())
            chosen.push_back(std::move(data));
    }
    return chosen;
}

// The best format that is not ours at this many bits or fewer. The little more lets KIVI take part, whose
// groups do not divide the tokens and leave four of them in fp16.
const Row* best_rival(const std::vector<Row>& rows, const Row& row) {
    const Row* best = nullptr;
    for (const Row& other : rows) {
        if (other.ours || other.data != row.data ||
            other.score.bits_per_element > row.score.bits_per_element + 0.06)
            continue;
        if (best == nullptr || other.score.output_error < best->score.output_error) best = &other;
    }
    return best;
}

void print_rows(const std::vector<Row>& rows) {
    std::string data;
    for (const Row& row : rows) {
        if (row.data != data) {
            data = row.data;
            std::printf("\n%-20s %-26s %6s %8s %8s %9s %10s  %s\n", data.c_str(), "format", "bits", "K error",
                        "V error", "output", "weight KL", "against the best rival at these bits");
        }
        std::printf("%-20s %-26s %6.3f %8.4f %8.4f %9.5f %10.6f", "", row.format.c_str(),
                    row.score.bits_per_element, row.score.key_error, row.score.value_error,
                    row.score.output_error, row.score.weight_kl);
        const Row* rival = row.ours ? best_rival(rows, row) : nullptr;
        if (rival != nullptr)
            std::printf("  %.2fx of %s", row.score.output_error / rival->score.output_error,
                        rival->format.c_str());
        std::printf("\n");
    }
}

void write_json(const std::string& path, const std::vector<Row>& rows) {
    nlohmann::json json = {{"schema_version", 1}, {"rows", nlohmann::json::array()}};
    for (const Row& row : rows) {
        json["rows"].push_back({{"data", row.data},
                                {"format", row.format},
                                {"ours", row.ours},
                                {"structured", row.structured},
                                {"real", row.real},
                                {"bits_per_element", row.score.bits_per_element},
                                {"key_error", row.score.key_error},
                                {"value_error", row.score.value_error},
                                {"output_error", row.score.output_error},
                                {"weight_kl", row.score.weight_kl}});
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
    app.add_option("--json", options.json_path, "Write the rows to this file; plot.py draws it");
    app.add_option("--data", options.only, "Only these data sets");
    app.add_option("--kv", options.specs, "SPECs to measure as ours");
    app.add_option("--chunk", options.chunk, "Tokens in one append of those; 0: all at once");
    CLI11_PARSE(app, argc, argv);
    try {
        std::vector<Row> rows;
        const auto formats = make_formats(options);
        for (const Dataset& data : make_datasets(options)) {
            std::fprintf(stderr, "%s\n", data.name.c_str());
            const Exact exact(data);
            for (const auto& format : formats) {
                rows.push_back({data.name, format->name(), format->ours(), data.structured, data.real,
                                exact.measure(*format)});
            }
        }
        print_rows(rows);
        if (!options.json_path.empty()) write_json(options.json_path, rows);
    } catch (const std::exception& error) {
        std::cerr << error.what() << "\n";
        return 1;
    }
    return 0;
}
