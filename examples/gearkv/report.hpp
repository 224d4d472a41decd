// Output: tables for people, JSON for programs, progress on stderr.
#pragma once

#include <chrono>
#include <cstdint>
#include <iosfwd>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "options.hpp"

namespace gearkv::tool {

using Json = nlohmann::ordered_json;

// Raised when a field changes its meaning or goes away.
inline constexpr int schema_version = 1;

// The fields every object starts with. With a machine, level and threads too.
Json start_json(const char* command, const Machine* machine = nullptr);
// On stdout; bytes that are not UTF-8 become U+FFFD, and what would steer a terminal \uHHHH.
void print_json(const Json& json);

double seconds_since(std::chrono::steady_clock::time_point start);
double per_second(std::size_t n, double seconds);  // 0 in no time

std::string fixed(double value, int n_digits);
std::string grouped(std::uint64_t value);  // 1,234,567

// All text that came from a file, a model or the command line goes through one of these on its way to a
// terminal, as gearkv/escape.hpp says. Takes whole characters.
std::string for_terminal(std::string_view text);  // of several lines
std::string in_one_line(std::string_view text);
// A line on stderr, behind what stdout has so far.
void note(std::string_view text);

// Columns as wide as they need; the first is flush left, the others flush right.
class Table {
  public:
    explicit Table(std::vector<std::string> header) : rows_{std::move(header)} {}
    void add(std::vector<std::string> row) { rows_.push_back(std::move(row)); }
    void print(std::ostream& out) const;
    void print_markdown(std::ostream& out) const;

  private:
    std::vector<std::vector<std::string>> rows_;
};
// Objects with the same fields as lines of values below a line of names; lists and objects in them are left
// out, texts quoted.
void print_csv(const Json& rows);

// Bytes of a cache that holds n_tokens in every layer, beside plain fp16.
struct CacheReport {
    CacheBytes bytes;
    std::uint64_t n_elements = 0;  // keys and values, all layers

    std::uint64_t fp16_bytes() const { return 2 * n_elements; }
    // Blocks and buffers, what bytes_required counts.
    std::uint64_t stored_bytes() const { return bytes.keys.bytes + bytes.values.bytes + bytes.buffer; }
    double bits_per_element() const {
        return 8.0 * static_cast<double>(stored_bytes()) / static_cast<double>(n_elements);
    }
    double ratio() const { return static_cast<double>(stored_bytes()) / static_cast<double>(fp16_bytes()); }
};
CacheReport report_cache(const CacheConfig& config, const CacheBytes& bytes, std::uint64_t n_tokens);
void print_bytes(std::ostream& out, const CacheReport& report);
Json to_json(const BlockBytes& bytes);
Json to_json(const CacheReport& report);
Json to_json(const SessionBytes& bytes);
// The choice and why, of a limit.
Json to_json(const Fit& fit, std::uint64_t max_bytes);

// A line on stderr while long work runs: when stderr is a terminal, or when asked for.
// Each step also looks for Ctrl-C and throws Interrupted.
class Progress {
  public:
    Progress(const Options& options, std::string label, std::uint64_t n_total);
    ~Progress();
    Progress(const Progress&) = delete;
    Progress& operator=(const Progress&) = delete;
    void step(std::uint64_t n = 1);
    // A line that stays: what is known before the end.
    void note(const std::string& line);

  private:
    void show();
    std::string label_;
    std::uint64_t n_total_;
    std::uint64_t n_done_ = 0;
    bool shown_ = false;
    bool terminal_;
    bool enabled_;
    std::chrono::steady_clock::time_point last_;
};

}  // namespace gearkv::tool
