#include <initializer_list>
#include <string>
#include <string_view>

#include "command.hpp"
#include "gearkv/cpu.hpp"
#include "gearkv/executor.hpp"

namespace gearkv::tool {
namespace {

std::string available_text() {
    Level levels[n_levels];
    const std::size_t n = available_levels(levels);
    std::string text;
    for (std::size_t i = 0; i < n; ++i)
        text += std::string(" ") + level_name(levels[i]);
    return text;
}

std::string chosen_text() {
    Level level;
    const Status status = resolve_level(Level::automatic, &level);
    return status.ok() ? level_name(level) : std::string("none, ") + status.message();
}

// Built in when they can be made.
std::string executors_text() {
    std::string text;
    std::unique_ptr<Executor> executor;
    if (create_tbb_executor(1, &executor).ok()) text += " tbb";
    if (create_threads_executor(1, &executor).ok()) text += " threads";
    return text + " serial";
}

}  // namespace

std::string version_text() {
    return std::string("gearkv ") + GEARKV_VERSION + "\nlevels compiled:  " + GEARKV_COMPILED_LEVELS +
           "\nlevels available:" + available_text() + "\nlevel chosen:     " + chosen_text() +
           "\nexecutors:       " + executors_text();
}

}  // namespace gearkv::tool
