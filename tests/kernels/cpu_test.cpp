// Levels: naming, listing, choosing and forcing.
#include <algorithm>
#include <cstddef>
#include <cstdlib>
#include <iterator>
#include <optional>
#include <string>

#include "gearkv/cpu.hpp"
#include "kernels/kernels.hpp"
#include "support/catch.hpp"

namespace gearkv::test {
namespace {

constexpr Level all_levels[] = {Level::scalar, Level::avx2, Level::avxvnni,
                                Level::avx512, Level::neon, Level::dotprod};

// GEARKV_LEVEL for the length of a test.
class ForcedLevel {
  public:
    explicit ForcedLevel(const char* value) {
        if (const char* before = std::getenv(name)) before_ = before;
        set(value);
    }
    ~ForcedLevel() { set(before_ ? before_->c_str() : nullptr); }
    ForcedLevel(const ForcedLevel&) = delete;
    ForcedLevel& operator=(const ForcedLevel&) = delete;

  private:
    static constexpr const char* name = "GEARKV_LEVEL";
    static void set(const char* value) {
        if (value != nullptr) {
            ::setenv(name, value, 1);
        } else {
            ::unsetenv(name);
        }
    }
    std::optional<std::string> before_;
};

TEST_CASE("every level has a name that parses back to it") {
    for (Level level : all_levels) {
        Level parsed = Level::automatic;
        CHECK(parse_level(level_name(level), &parsed).ok());
        CHECK(parsed == level);
    }
    Level parsed = Level::scalar;
    CHECK(parse_level("automatic", &parsed).ok());
    CHECK(parsed == Level::automatic);
    CHECK(std::string(level_name(static_cast<Level>(77))) == "?");
}

TEST_CASE("an unknown level name is refused by name and changes nothing") {
    for (const char* name : {"", "avx", "AVX2", "avx2 ", "sse2", "avx5122", "?", "autom"}) {
        Level level = Level::dotprod;
        const Status status = parse_level(name, &level);
        CAPTURE(name, status.message());
        CHECK(status.code() == Code::unknown_level);
        CHECK(std::string(status.message()).find(std::string("'") + name + "'") != std::string::npos);
        CHECK(std::string(status.message()).find("scalar") != std::string::npos);
        CHECK(level == Level::dotprod);
    }
    Level level;
    CHECK(parse_level(nullptr, &level).code() == Code::invalid_argument);
    CHECK(parse_level("scalar", nullptr).code() == Code::invalid_argument);
}

TEST_CASE("a long unknown name is cut, not overrun") {
    Level level = Level::scalar;
    const Status status = parse_level(std::string(5000, 'x').c_str(), &level);
    CHECK(status.code() == Code::unknown_level);
    CHECK(std::string(status.message()).find("expected") != std::string::npos);
}

TEST_CASE("the list of levels starts with scalar and holds what is available, slowest first") {
    Level levels[n_levels];
    const std::size_t n = available_levels(levels);
    REQUIRE(n >= 1);
    CHECK(levels[0] == Level::scalar);
    for (std::size_t i = 0; i < n; ++i) {
        CHECK(level_available(levels[i]));
        if (i > 0) {
            const auto place = [](Level level) {
                return std::find(std::begin(all_levels), std::end(all_levels), level) - all_levels;
            };
            CHECK(place(levels[i]) > place(levels[i - 1]));
        }
    }
    std::size_t n_available = 0;
    for (Level level : all_levels)
        n_available += level_available(level) ? 1 : 0;
    CHECK(n == n_available);
    CHECK_FALSE(level_available(Level::automatic));
    CHECK_FALSE(level_available(static_cast<Level>(77)));
    // A processor is of one family.
    CHECK_FALSE((level_available(Level::avx2) && level_available(Level::neon)));
}

TEST_CASE("automatic is the last of the list unless the environment says otherwise") {
    Level levels[n_levels];
    const std::size_t n = available_levels(levels);
    for (const char* value : {static_cast<const char*>(nullptr), "", "automatic"}) {
        const ForcedLevel forced(value);
        Level level = Level::automatic;
        CHECK(resolve_level(Level::automatic, &level).ok());
        CHECK(level == levels[n - 1]);
        REQUIRE(find_kernels(Level::automatic) != nullptr);
        CHECK(find_kernels(Level::automatic)->level == levels[n - 1]);
    }
}

TEST_CASE("the environment forces automatic, and only that") {
    Level levels[n_levels];
    const std::size_t n = available_levels(levels);
    for (std::size_t i = 0; i < n; ++i) {
        const ForcedLevel forced(level_name(levels[i]));
        Level level = Level::automatic;
        CHECK(resolve_level(Level::automatic, &level).ok());
        CHECK(level == levels[i]);
        CHECK(find_kernels(Level::automatic)->level == levels[i]);
        CHECK(resolve_level(Level::scalar, &level).ok());
        CHECK(level == Level::scalar);
    }
}

TEST_CASE("a level that cannot run is an error, by argument and by environment") {
    for (Level wanted : all_levels) {
        if (level_available(wanted)) continue;
        Level level = Level::scalar;
        Status status = resolve_level(wanted, &level);
        CAPTURE(level_name(wanted), status.message());
        CHECK(status.code() == Code::unavailable_level);
        CHECK(std::string(status.message()).find(level_name(wanted)) != std::string::npos);
        CHECK(std::string(status.message()).find("expected one of scalar") != std::string::npos);
        CHECK(level == Level::scalar);
        CHECK(find_kernels(wanted) == nullptr);

        const ForcedLevel forced(level_name(wanted));
        status = resolve_level(Level::automatic, &level);
        CHECK(status.code() == Code::unavailable_level);
        CHECK(std::string(status.message()).find("GEARKV_LEVEL") != std::string::npos);
        CHECK(level == Level::scalar);
        CHECK(find_kernels(Level::automatic) == nullptr);
    }
}

TEST_CASE("an unknown name in the environment is an error that names it") {
    const ForcedLevel forced("sse9");
    Level level = Level::scalar;
    const Status status = resolve_level(Level::automatic, &level);
    CHECK(status.code() == Code::unknown_level);
    CHECK(std::string(status.message()).find("GEARKV_LEVEL") != std::string::npos);
    CHECK(std::string(status.message()).find("sse9") != std::string::npos);
    CHECK(level == Level::scalar);
    CHECK(find_kernels(Level::automatic) == nullptr);
    // A level that is asked for by name is none of the environment's business.
    CHECK(resolve_level(Level::scalar, &level).ok());
}

TEST_CASE("numbers outside the enum are unknown levels") {
    Level level = Level::scalar;
    CHECK(resolve_level(static_cast<Level>(77), &level).code() == Code::unknown_level);
    CHECK(level == Level::scalar);
    CHECK(find_kernels(static_cast<Level>(77)) == nullptr);
    CHECK(resolve_level(Level::scalar, nullptr).code() == Code::invalid_argument);
}

TEST_CASE("the table of an available level is its own, with every slot filled") {
    for (Level level : all_levels) {
        if (!level_available(level)) continue;
        const Kernels* kernels = find_kernels(level);
        REQUIRE(kernels != nullptr);
        CHECK(kernels->level == level);
        CHECK(kernels == find_kernels(level));
        static_assert(sizeof(CodecKernels) % sizeof(void (*)()) == 0);
        static_assert(offsetof(AttentionKernels, factor_step) % sizeof(void (*)()) == 0);
        const auto count_filled = [](const void* table, std::size_t n_bytes) {
            const auto* slots = static_cast<void (*const*)()>(table);
            std::size_t n = 0;
            for (std::size_t i = 0; i < n_bytes / sizeof(*slots); ++i)
                n += slots[i] != nullptr ? 1 : 0;
            return n;
        };
        CHECK(count_filled(&kernels->codec, sizeof(CodecKernels)) ==
              sizeof(CodecKernels) / sizeof(void (*)()));
        constexpr std::size_t attention_bytes = offsetof(AttentionKernels, factor_step);
        CHECK(count_filled(&kernels->attention, attention_bytes) == attention_bytes / sizeof(void (*)()));
        CHECK(kernels->attention.factor_step >= 0.0f);
        CHECK(kernels->attention.factor_step < 0x1p-15f);
    }
}

}  // namespace
}  // namespace gearkv::test
