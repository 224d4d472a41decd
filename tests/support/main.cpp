// The entry point of every test executable. The level comes from GEARKV_LEVEL; one that this machine cannot
// run ends the run with 77, which the build tool counts as skipped. GEARKV_TESTS chooses tests beside the
// arguments, for example "~[slow]" all but those with this tag. Tests tagged [once] do not depend on the
// level: of runs with a forced level they are part of that of the best one this machine has, the fastest.
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "gearkv/cpu.hpp"

#if __has_include(<catch2/catch_session.hpp>)
#include <catch2/catch_session.hpp>
#else
#define CATCH_CONFIG_RUNNER
#include <catch2/catch.hpp>
#endif

int main(int argc, char* argv[]) {
    gearkv::Level level;
    const gearkv::Status status = gearkv::resolve_level(gearkv::Level::automatic, &level);
    if (!status.ok()) {
        std::fprintf(stderr, "%s\n", status.message());
        return status.code() == gearkv::Code::unavailable_level ? 77 : 1;
    }
    std::printf("level %s\n", gearkv::level_name(level));
    std::vector<const char*> arguments(argv, argv + argc);
    const char* wanted = std::getenv("GEARKV_TESTS");
    std::string chosen = wanted != nullptr ? wanted : "";
    gearkv::Level levels[gearkv::n_levels];
    const gearkv::Level best = levels[gearkv::available_levels(levels) - 1];
    if (argc == 1 && std::getenv("GEARKV_LEVEL") != nullptr && level != best) chosen += "~[once]";
    if (!chosen.empty()) arguments.push_back(chosen.c_str());
    return Catch::Session().run(static_cast<int>(arguments.size()), arguments.data());
}
