// --memory: how much there is, and what fits it.
#include <algorithm>
#include <cctype>
#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <sstream>

#ifdef __GLIBC__
#include <malloc.h>
#endif

#include "failure.hpp"
#include "options.hpp"
#include "report.hpp"

namespace gearkv::tool {
namespace {

// A number at the start of a file; -1 when there is none.
double number_in(const char* path) {
    std::ifstream file(path);
    double value = -1.0;
    return file >> value ? value : -1.0;
}

double available_by_kernel() {
    std::ifstream file("/proc/meminfo");
    for (std::string line; std::getline(file, line);) {
        std::istringstream words(line);
        std::string name;
        double kib = 0;
        if (words >> name >> kib && name == "MemAvailable:") return kib * 1024.0;
    }
    return -1.0;
}

// What a container may still take; -1 without a limit.
double available_in_group() {
    const double most = number_in("/sys/fs/cgroup/memory.max");
    const double used = number_in("/sys/fs/cgroup/memory.current");
    return most < 0 || used < 0 ? -1.0 : std::max(most - used, 0.0);
}

double available_bytes() {
    const double machine = available_by_kernel(), group = available_in_group();
    if (machine < 0) throw Failure("--memory: the system does not tell how much memory is available");
    return group < 0 ? machine : std::min(machine, group);
}

// Resident in this process, but for what it maps of the model.
std::uint64_t own_bytes(const std::string& model) {
    std::error_code error;
    const std::string weights = std::filesystem::canonical(model, error).string();
    std::ifstream file("/proc/self/smaps");
    std::uint64_t n_kib = 0;
    bool counts = true;
    for (std::string line; std::getline(file, line);) {
        std::istringstream words(line);
        std::string first;
        words >> first;
        if (first.find('-') != std::string::npos) {
            const std::size_t path = line.find('/');
            counts = path == std::string::npos || line.substr(path) != weights;
        } else if (std::uint64_t n = 0; counts && first == "Rss:" && words >> n) {
            n_kib += n;
        }
    }
    return n_kib * 1024;
}

// What is released goes back to the system at once, rather than when it suits malloc.
void keep_no_freed_memory() {
#ifdef __GLIBC__
    mallopt(M_MMAP_THRESHOLD, 128 * 1024);
    mallopt(M_TRIM_THRESHOLD, 128 * 1024);
    malloc_trim(0);
#endif
}

}  // namespace

std::uint64_t peak_resident_bytes() {
    std::ifstream file("/proc/self/status");
    for (std::string line; std::getline(file, line);) {
        std::istringstream words(line);
        std::string name;
        std::uint64_t n_kib = 0;
        if (words >> name >> n_kib && name == "VmHWM:") return n_kib * 1024;
    }
    return 0;
}

std::uint64_t read_memory_size(const char* option, const std::string& text) {
    char* end = nullptr;
    const double number = std::strtod(text.c_str(), &end);
    std::string unit(end);
    std::transform(unit.begin(), unit.end(), unit.begin(), [](unsigned char c) { return std::toupper(c); });
    const bool sound = end != text.c_str() && std::isfinite(number) && number > 0;
    const std::string names = "KMGT";
    std::size_t power = 0;
    if (!unit.empty()) {
        power = names.find(unit[0]) + 1;  // 0 for none of them
        const std::string rest = unit.substr(1);
        if (rest != "" && rest != "B" && rest != "IB") power = 0;
        if (unit == "B") power = 5;
    }
    double size = number * (unit.empty() || power == 5 ? 1.0 : std::pow(1024.0, static_cast<double>(power)));
    const bool is_share = unit == "%" && number <= 100;
    if (sound && is_share) size = available_bytes() * number / 100.0;
    // A part of a byte would stand for no limit.
    if (!sound || (!unit.empty() && power == 0 && !is_share) || size < 1.0 || size >= 0x1p63) {
        throw UsageError(std::string(option) + " " + text +
                         ": expected a size as in 800M or 2G, or a part of what is available as in 80%");
    }
    return static_cast<std::uint64_t>(size);
}

void add_memory_option(CLI::App& app, Options& options) {
    app.add_option("--memory", options.memory,
                   "Keep weights, cache and working memory below SIZE, as in 800M, 2G or 80% of what is "
                   "available: chooses SPEC and context unless they are given")
        ->type_name("SIZE");
}

FitRequest fit_request(Options& options, const Machine& machine) {
    // Once, since what is available changes.
    if (!options.memory.empty()) options.memory_bytes = read_memory_size("--memory", options.memory);
    FitRequest request;
    request.n_ctx = options.n_ctx;
    request.session = session_config(options, {}, machine);
    if (!options.memory.empty()) {
        request.max_bytes = options.memory_bytes;
        request.other_bytes = own_bytes(options.model);
    }
    return request;
}

std::optional<Fit> fit_to_memory(const Model& model, bool keeps_kv, const Machine& machine,
                                 Options& options) {
    if (options.memory.empty()) return {};
    keep_no_freed_memory();
    FitRequest request = fit_request(options, machine);
    if (keeps_kv) request.spec = options.kv.at(0);
    Fit fit;
    check(fit_session(model, request, *machine.executor, &fit));
    if (!fit.fits) throw Failure("--memory " + options.memory + ": " + fit.reason);
    options.kv = {fit.choice.spec};
    options.n_ctx = fit.choice.n_ctx;
    options.chunk = fit.choice.chunk;
    options.max_cache_bytes = request.max_bytes - request.other_bytes - fit.choice.bytes.weights;
    note(fit.reason);
    keep_no_freed_memory();
    return fit;
}

}  // namespace gearkv::tool
