#include "report.hpp"

#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <iostream>

#include "failure.hpp"

namespace gearkv::tool {

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
    std::cout << json.dump(2, ' ', false, Json::error_handler_t::replace) << '\n';
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

namespace {

// Bytes of the well-formed UTF-8 character at the start of text, and its code point; 0 for anything else.
std::size_t decode_character(std::string_view text, std::uint32_t* code_point) {
    const auto byte = [&](std::size_t i) { return static_cast<unsigned char>(text[i]); };
    const unsigned char lead = byte(0);
    *code_point = lead;
    if (lead < 0x80) return 1;
    const std::size_t n = lead >= 0xf0 ? 4 : lead >= 0xe0 ? 3 : 2;
    if (lead < 0xc2 || lead > 0xf4 || text.size() < n) return 0;
    std::uint32_t value = lead & (0x7fu >> n);
    for (std::size_t i = 1; i < n; ++i) {
        if ((byte(i) & 0xc0) != 0x80) return 0;
        value = value << 6 | (byte(i) & 0x3fu);
    }
    *code_point = value;
    const bool is_long = n > 2 && value < (n == 3 ? 0x800u : 0x10000u);
    return is_long || value > 0x10ffff || (value >= 0xd800 && value < 0xe000) ? 0 : n;
}

bool steers(std::uint32_t c) {
    if (c == '\n' || c == '\t') return false;
    return c < 0x20 || (c >= 0x7f && c < 0xa0) || c == 0x61c || c == 0x200e || c == 0x200f ||
           (c >= 0x2028 && c <= 0x202e) || (c >= 0x2066 && c <= 0x2069);
}

}  // namespace

std::string for_terminal(std::string_view text) {
    std::string shown;
    while (!text.empty()) {
        std::uint32_t code_point = 0;
        const std::size_t n = decode_character(text, &code_point);
        const bool as_is = n > 0 && !steers(code_point);
        const std::string_view bytes = text.substr(0, std::max<std::size_t>(n, 1));
        text.remove_prefix(bytes.size());
        if (as_is) shown += bytes;
        for (const char byte : as_is ? std::string_view() : bytes) {
            char escaped[8];
            std::snprintf(escaped, sizeof(escaped), "\\x%02X", static_cast<unsigned char>(byte));
            shown += escaped;
        }
    }
    return shown;
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
