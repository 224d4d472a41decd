#include "gearkv/cpu.hpp"

#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "../arch/detect.hpp"
#include "../arch/tables.hpp"

namespace gearkv {
namespace {

constexpr const char* known_levels = "scalar, avx2, avxvnni, avx512, neon, dotprod or automatic";
constexpr const char* environment_name = "GEARKV_LEVEL";

// Slowest first.
constexpr Level all_levels[n_levels] = {Level::scalar, Level::avx2, Level::avxvnni,
                                        Level::avx512, Level::neon, Level::dotprod};

// The table of one level of this build, available or not.
const Kernels* compiled_kernels(Level level) {
    switch (level) {
        case Level::scalar:
            return kernels_scalar();
        case Level::avx2:
            return kernels_avx2();
        case Level::avxvnni:
            return kernels_avxvnni();
        case Level::avx512:
            return kernels_avx512();
        case Level::neon:
            return kernels_neon();
        case Level::dotprod:
            return kernels_dotprod();
        default:
            return nullptr;
    }
}

Level best_level() {
    for (std::size_t i = n_levels; i-- > 1;) {
        if (level_available(all_levels[i])) return all_levels[i];
    }
    return Level::scalar;
}

}  // namespace

const Kernels* kernels_scalar() {
    static constexpr Kernels table = {Level::scalar, codec_scalar, attention_scalar};
    return &table;
}

const Kernels* kernels_avx2() {
#if defined(GEARKV_HAVE_AVX2)
    static constexpr Kernels table = {Level::avx2, codec_avx2, attention_avx2};
    return &table;
#else
    return nullptr;
#endif
}

// Its codec is that of avx2.
const Kernels* kernels_avxvnni() {
#if defined(GEARKV_HAVE_AVXVNNI)
    static constexpr Kernels table = {Level::avxvnni, codec_avx2, attention_avxvnni};
    return &table;
#else
    return nullptr;
#endif
}

const Kernels* kernels_avx512() {
#if defined(GEARKV_HAVE_AVX512)
    static constexpr Kernels table = {Level::avx512, codec_avx512, attention_avx512};
    return &table;
#else
    return nullptr;
#endif
}

const Kernels* kernels_neon() {
#if defined(GEARKV_HAVE_NEON)
    static constexpr Kernels table = {Level::neon, codec_neon, attention_neon};
    return &table;
#else
    return nullptr;
#endif
}

const Kernels* kernels_dotprod() {
#if defined(GEARKV_HAVE_DOTPROD)
    static constexpr Kernels table = {Level::dotprod, codec_dotprod, attention_dotprod};
    return &table;
#else
    return nullptr;
#endif
}

const Kernels* find_kernels(Level level) noexcept {
    Level resolved = Level::scalar;
    if (!resolve_level(level, &resolved).ok()) return nullptr;
    return compiled_kernels(resolved);
}

const char* level_name(Level level) noexcept {
    switch (level) {
        case Level::automatic:
            return "automatic";
        case Level::scalar:
            return "scalar";
        case Level::avx2:
            return "avx2";
        case Level::avxvnni:
            return "avxvnni";
        case Level::avx512:
            return "avx512";
        case Level::neon:
            return "neon";
        case Level::dotprod:
            return "dotprod";
    }
    return "?";
}

Status parse_level(const char* name, Level* out) noexcept {
    if (name == nullptr || out == nullptr) {
        return Status::error(Code::invalid_argument, "%s is null", name == nullptr ? "name" : "out");
    }
    if (std::strcmp(name, level_name(Level::automatic)) == 0) {
        *out = Level::automatic;
        return {};
    }
    for (Level level : all_levels) {
        if (std::strcmp(name, level_name(level)) == 0) {
            *out = level;
            return {};
        }
    }
    return Status::error(Code::unknown_level, "unknown level '%.32s', expected %s", name, known_levels);
}

bool level_available(Level level) noexcept {
    return compiled_kernels(level) != nullptr && cpu_can_run(level);
}

std::size_t available_levels(Level levels[n_levels]) noexcept {
    std::size_t n = 0;
    for (Level level : all_levels) {
        if (level_available(level)) levels[n++] = level;
    }
    return n;
}

Status resolve_level(Level wanted, Level* out) noexcept {
    if (out == nullptr) return Status::error(Code::invalid_argument, "out is null");
    bool forced = false;
    if (wanted == Level::automatic) {
#if defined(GEARKV_NO_ENVIRONMENT)
        const char* name = nullptr;
#else
        const char* name = std::getenv(environment_name);
#endif
        if (name != nullptr && name[0] != '\0') {
            if (Status status = parse_level(name, &wanted); !status.ok()) {
                return Status::error(status.code(), "%s: %s", environment_name, status.message());
            }
            forced = true;
        }
        if (wanted == Level::automatic) wanted = best_level();
    }
    if (level_available(wanted)) {
        *out = wanted;
        return {};
    }
    const char* name = level_name(wanted);
    const char* source = forced ? "GEARKV_LEVEL: " : "";
    if (name[0] == '?') {
        return Status::error(Code::unknown_level, "level number %u, expected one of %s",
                             static_cast<unsigned>(wanted), known_levels);
    }
    char there[128] = "";
    std::size_t n = 0;
    for (Level level : all_levels) {
        if (!level_available(level)) continue;
        const char* comma = n == 0 ? "" : ", ";
        n += static_cast<std::size_t>(
            std::snprintf(there + n, sizeof(there) - n, "%s%s", comma, level_name(level)));
    }
    return Status::error(Code::unavailable_level, "%slevel %s cannot run here, expected one of %s", source,
                         name, there);
}

}  // namespace gearkv
