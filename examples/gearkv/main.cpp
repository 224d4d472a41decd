// gearkv: try, measure and plan compressed KV caches from the command line.
//
// Results go to stdout, progress and errors to stderr. Exit codes: 0, 1 for a failure, 2 for a wrong command
// line, 130 after Ctrl-C, 143 when terminated, 141 when nobody reads the results any more.
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <iostream>
#include <new>
#include <stdexcept>
#include <string>
#include <vector>

#include "command.hpp"
#include "failure.hpp"
#include "report.hpp"

namespace gearkv::tool {
namespace {

// Single-character edits that turn one word into the other.
std::size_t edit_distance(const std::string& a, const std::string& b) {
    std::vector<std::size_t> row(b.size() + 1);
    for (std::size_t j = 0; j <= b.size(); ++j)
        row[j] = j;
    for (std::size_t i = 1; i <= a.size(); ++i) {
        std::size_t diagonal = row[0];
        row[0] = i;
        for (std::size_t j = 1; j <= b.size(); ++j) {
            const std::size_t replaced = diagonal + (a[i - 1] != b[j - 1]);
            diagonal = row[j];
            row[j] = std::min({replaced, row[j] + 1, row[j - 1] + 1});
        }
    }
    return row.back();
}

// Commands, and options of the command in use.
std::vector<std::string> known_words(const CLI::App& app) {
    std::vector<std::string> words;
    for (const CLI::App* command : app.get_subcommands({})) {
        words.push_back(command->get_name());
        if (!command->parsed()) continue;
        for (const CLI::App* part : command->get_subcommands({}))
            words.push_back(part->get_name());
        for (const CLI::Option* option : command->get_options()) {
            for (const std::string& name : option->get_lnames())
                words.push_back("--" + name);
        }
    }
    return words;
}

// "; --thread is unknown, did you mean --threads?" for the first word that is close to a known one, else
// nothing.
std::string suggestion(const CLI::App& app) {
    const std::vector<std::string> words = known_words(app);
    for (const std::string& argument : app.remaining(true)) {
        const std::string unknown = argument.substr(0, argument.find('='));
        const auto closer = [&](const std::string& a, const std::string& b) {
            return edit_distance(unknown, a) < edit_distance(unknown, b);
        };
        const auto best = std::min_element(words.begin(), words.end(), closer);
        // What is known itself stands in the wrong place.
        if (best != words.end() && unknown != *best && edit_distance(unknown, *best) <= 2)
            return "; " + unknown + " is unknown, did you mean " + *best + "?";
    }
    // "; state takes info, verify".
    for (const CLI::App* command : app.get_subcommands()) {
        if (!command->get_subcommands().empty()) continue;
        std::string parts;
        for (const CLI::App* part : command->get_subcommands({}))
            parts += (parts.empty() ? "; " + command->get_name() + " takes " : ", ") + part->get_name();
        if (!parts.empty()) return parts;
    }
    return "";
}

std::vector<std::unique_ptr<Command>> add_commands(CLI::App& app) {
    std::vector<std::unique_ptr<Command>> commands;
    for (const auto add : {add_chat, add_generate, add_bench, add_perplexity, add_recall, add_passkey,
                           add_inspect, add_codec, add_plan, add_state, add_tokenize}) {
        commands.push_back(add(app));
    }
    return commands;
}

int report_error(const std::string& message, int code) {
    if (message.empty()) {
        std::cout << std::flush;
    } else {
        note(message);
    }
    return code;
}

int run(int argc, char** argv) {
    CLI::App app("Compressed KV caches on CPUs: try, measure and plan", "gearkv");
    app.set_version_flag("--version", version_text, "Version, levels and executors of this build");
    app.require_subcommand(1);
    app.get_formatter()->column_width(34);
    const auto commands = add_commands(app);
    try {
        app.parse(argc, argv);
        for (const auto& command : commands) {
            if (command->chosen()) command->run();
        }
    } catch (const CLI::Success& request) {
        const int code = app.exit(request);
        return std::cout.flush() ? code : report_error("the output cannot be written", exit_failure);
    } catch (const CLI::ParseError& error) {
        return report_error(error.what() + suggestion(app) + "\nRun with --help for more information.",
                            exit_usage);
    } catch (const UsageError& error) {
        return report_error(error.what(), exit_usage);
    } catch (const Interrupted& interrupt) {
        return report_error(interrupt_text(interrupt), exit_signal + interrupt.signal);
    } catch (const std::bad_alloc&) {
        return report_error("out_of_memory: not enough memory for this", exit_failure);
    } catch (const std::length_error&) {
        return report_error("out_of_memory: more memory than there can be", exit_failure);
    } catch (const std::exception& error) {
        return report_error(error.what(), exit_failure);
    }
    if (std::cout.flush()) return exit_ok;
    return interrupted() ? exit_signal + SIGPIPE : report_error("the output cannot be written", exit_failure);
}

// OpenBLAS starts threads before main, which where address space is short wait for memory for ever, and keep
// the process from ending. It starts none when told so beforehand: by this program to itself.
void start_without_threads_of_blas(char** argv) {
    constexpr const char* name = "OPENBLAS_NUM_THREADS";
    rlimit limit;
    if (getrlimit(RLIMIT_AS, &limit) != 0 || limit.rlim_cur == RLIM_INFINITY) return;
    const char* given = std::getenv(name);
    if (given != nullptr && std::strcmp(given, "1") == 0) return;
    if (setenv(name, "1", 1) == 0) execv("/proc/self/exe", argv);
}

}  // namespace
}  // namespace gearkv::tool

int main(int argc, char** argv) {
    gearkv::tool::start_without_threads_of_blas(argv);
    // A stream that shares stdio's buffers fails for good when a signal interrupts a write.
    std::ios::sync_with_stdio(false);
    gearkv::tool::catch_interrupts();
    return gearkv::tool::run(argc, argv);
}
