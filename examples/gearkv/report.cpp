#include "report.hpp"

#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <iostream>

#include "failure.hpp"

namespace gearkv::tool {
namespace {

std::string escaped(std::string_view text, EscapeStyle style) {
    std::string out;
    check(escape_text(text, style, &out));
    return out;
}

}  // namespace

Json start_json(const char* command, const Machine* machine) {
    Json json = {
        {"schema_version", schema_version}, {"gearkv_version", GEARKV_VERSION}, {"command", command}};
    if (machine != nullptr) {
        json["level"] = level_name(machine->level);
        json["threads"] = machine->executor->n_threads();
    }
    return json;
}

void print_json(const Json& json) {
    const std::string text = json.dump(2, ' ', false, Json::error_handler_t::replace);
    std::cout << escaped(text, EscapeStyle::json) << '\n';
}

double seconds_since(std::chrono::steady_clock::time_point start) {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

double per_second(std::size_t n, double seconds) {
    return seconds > 0 ? static_cast<double>(n) / seconds : 0.0;
}

std::string fixed(double value, int n_digits) {
    char text[64];
    std::snprintf(text, sizeof(text), "%.*f", n_digits, value);
    return text;
}

std::string grouped(std::uint64_t value) {
    std::string text = std::to_string(value);
    for (std::size_t at = text.size(); at > 3;)
        text.insert(at -= 3, 1, ',');
    return text;
}

std::string for_terminal(std::string_view text) {
    return escaped(text, EscapeStyle::lines);
}

std::string in_one_line(std::string_view text) {
    return escaped(text, EscapeStyle::one_line);
}

void note(std::string_view text) {
    std::cout << std::flush;
    std::cerr << "gearkv: " << for_terminal(text) << '\n';
}

void Table::print(std::ostream& out) const {
    std::vector<std::size_t> widths;
    for (const auto& row : rows_) {
        if (row.size() > widths.size()) widths.resize(row.size());
        for (std::size_t i = 0; i < row.size(); ++i)
            widths[i] = std::max(widths[i], row[i].size());
    }
    for (const auto& row : rows_) {
        std::string line;
        for (std::size_t i = 0; i < row.size(); ++i) {
            const std::string space(widths[i] - row[i].size(), ' ');
            line += (i == 0 ? "" : "  ") + (i == 0 ? row[i] + space : space + row[i]);
        }
        line.erase(line.find_last_not_of(' ') + 1);
        out << line << '\n';
    }
}

void Table::print_markdown(std::ostream& out) const {
    for (std::size_t i = 0; i < rows_.size(); ++i) {
        for (const std::string& cell : rows_[i])
            out << "| " << cell << ' ';
        out << "|\n";
        for (std::size_t column = 0; i == 0 && column < rows_[0].size(); ++column)
            out << (column == 0 ? "|---|" : "---:|");
        if (i == 0) out << '\n';
    }
}

void print_csv(const Json& rows) {
    const auto print_line = [](const Json& row, const auto& cell_of) {
        bool first = true;
        for (const auto& field : row.items()) {
            if (field.value().is_structured()) continue;
            std::cout << (first ? "" : ",") << cell_of(field);
            first = false;
        }
        std::cout << '\n';
    };
    if (!rows.empty()) print_line(rows[0], [](const auto& field) { return field.key(); });
    for (const Json& row : rows) {
        print_line(row, [](const auto& field) {
            if (!field.value().is_string()) return field.value().dump();
            std::string quoted = in_one_line(field.value().template get<std::string>());
            for (std::size_t at = 0; (at = quoted.find('"', at)) != std::string::npos; at += 2)
                quoted.insert(at, 1, '"');
            return '"' + quoted + '"';
        });
    }
}

CacheReport report_cache(const CacheConfig& config, const CacheBytes& bytes, std::uint64_t n_tokens) {
    const std::uint64_t per_token = std::uint64_t{config.n_kv_heads} * (config.key_dim + config.value_dim);
    std::uint64_t n_elements;
    if (__builtin_mul_overflow(n_tokens * config.n_layers, per_token, &n_elements) ||
        n_elements > UINT64_MAX / 2)
        throw Failure("wrong_size: more bytes in fp16 than 64 bits hold");
    return {bytes, n_elements};
}

void print_bytes(std::ostream& out, const CacheReport& report) {
    const BlockBytes& keys = report.bytes.keys;
    const BlockBytes& values = report.bytes.values;
    Table table({"bytes", "keys", "values", "all"});
    const auto add = [&](const char* name, std::uint64_t k, std::uint64_t v) {
        table.add({name, grouped(k), grouped(v), grouped(k + v)});
    };
    add("codes", keys.codes, values.codes);
    add("scales and minima", keys.scales, values.scales);
    add("low rank", keys.low_rank, values.low_rank);
    add("outliers", keys.outliers, values.outliers);
    add("headers, padding", keys.header + keys.padding, values.header + values.padding);
    table.add({"buffer of recent tokens", "", "", grouped(report.bytes.buffer)});
    table.add({"stored", "", "", grouped(report.stored_bytes())});
    table.add({"the same in fp16", "", "", grouped(report.fp16_bytes())});
    table.add({"stored / fp16", "", "", fixed(report.ratio(), 3)});
    if (report.bytes.scratch + report.bytes.tables > 0) {
        table.add({"beside it: scratch", "", "", grouped(report.bytes.scratch)});
        table.add({"beside it: tables", "", "", grouped(report.bytes.tables)});
    }
    table.print(out);
}

Json to_json(const BlockBytes& bytes) {
    return {{"bytes", bytes.bytes},    {"header", bytes.header},     {"codes", bytes.codes},
            {"scales", bytes.scales},  {"low_rank", bytes.low_rank}, {"outliers", bytes.outliers},
            {"padding", bytes.padding}};
}

Json to_json(const CacheReport& report) {
    return {{"stored_bytes", report.stored_bytes()},
            {"fp16_bytes", report.fp16_bytes()},
            {"ratio", report.ratio()},
            {"bits_per_element", report.bits_per_element()},
            {"keys", to_json(report.bytes.keys)},
            {"values", to_json(report.bytes.values)},
            {"buffer", report.bytes.buffer},
            {"scratch", report.bytes.scratch},
            {"tables", report.bytes.tables}};
}

Json to_json(const SessionBytes& bytes) {
    return {{"weights", bytes.weights},
            {"cache", bytes.cache},
            {"scratch", bytes.scratch},
            {"total", bytes.total()}};
}

Json to_json(const Fit& fit, std::uint64_t max_bytes) {
    Json json = {{"fits", fit.fits},
                 {"max_bytes", max_bytes},
                 {"kv", fit.choice.spec},
                 {"ctx", fit.choice.n_ctx},
                 {"chunk", fit.choice.chunk}};
    json.update(to_json(fit.choice.bytes));
    json["reason"] = fit.reason;
    return json;
}

Progress::Progress(const Options& options, std::string label, std::uint64_t n_total)
    : label_(std::move(label)), n_total_(n_total), terminal_(isatty(STDERR_FILENO) != 0) {
    enabled_ = terminal_ || options.progress;
    last_ = std::chrono::steady_clock::now();
}

Progress::~Progress() {
    if (shown_ && terminal_) std::cerr << "\r\x1b[K" << std::flush;
}

void Progress::step(std::uint64_t n) {
    check_interrupt();
    n_done_ += n;
    const auto now = std::chrono::steady_clock::now();
    if (!enabled_ || now - last_ < std::chrono::milliseconds(terminal_ ? 100 : 1000)) return;
    last_ = now;
    show();
}

void Progress::note(const std::string& line) {
    if (!enabled_) return;
    std::cerr << (terminal_ ? "\r\x1b[K" : "") << line << '\n' << std::flush;
}

void Progress::show() {
    shown_ = true;
    const std::string line = label_ + ": " + grouped(n_done_) + " of " + grouped(n_total_);
    if (terminal_) {
        std::cerr << '\r' << line << "\x1b[K" << std::flush;
    } else {
        std::cerr << line << '\n';
    }
}

}  // namespace gearkv::tool
