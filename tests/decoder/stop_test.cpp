// Stop strings across the borders of pieces.
#include <algorithm>
#include <ctime>
#include <random>
#include <string>
#include <vector>

#include "gearkv/decoder.hpp"
#include "gearkv/stop.hpp"
#include "support/catch.hpp"
#include "support/count_memory.hpp"

using namespace gearkv;

namespace {

std::unique_ptr<StopMatcher> make_matcher(const std::vector<std::string>& stops) {
    std::unique_ptr<StopMatcher> matcher;
    const Status status = StopMatcher::create(stops, &matcher);
    INFO(status.message());
    REQUIRE(status.ok());
    return matcher;
}

struct Found {
    std::string text;
    int stop = -1;
    bool operator==(const Found&) const = default;
};

// Looks for every stop string at every end.
Found search(const std::string& text, const std::vector<std::string>& stops) {
    for (std::size_t end = 1; end <= text.size(); end++) {
        int best = -1;
        for (std::size_t i = 0; i < stops.size(); i++) {
            const std::string& stop = stops[i];
            if (stop.size() > end || text.compare(end - stop.size(), stop.size(), stop) != 0) continue;
            if (best < 0 || stop.size() > stops[static_cast<std::size_t>(best)].size())
                best = static_cast<int>(i);
        }
        if (best >= 0) return {text.substr(0, end - stops[static_cast<std::size_t>(best)].size()), best};
    }
    return {text, -1};
}

// The longest end of a text that some stop string begins with.
std::size_t longest_beginning(const std::string& text, const std::vector<std::string>& stops) {
    for (std::size_t n = text.size(); n > 0; n--) {
        for (const std::string& stop : stops) {
            if (stop.size() > n && stop.compare(0, n, text, text.size() - n, n) == 0) return n;
        }
    }
    return 0;
}

std::string random_text(std::mt19937& random, std::size_t n, int n_letters) {
    std::string text(n, 'a');
    for (char& c : text)
        c = static_cast<char>("ab\0\xc3\xa9"[random() % static_cast<unsigned>(n_letters)]);
    return text;
}

}  // namespace

TEST_CASE(
    "with any pieces a stop matcher finds what a plain search of the whole finds, and holds no more back") {
    std::mt19937 random(5);
    int n_stopped = 0;
    for (int round = 0; round < 4000; round++) {
        const int n_letters = 2 + static_cast<int>(random() % 4);
        std::vector<std::string> stops(random() % 5);
        for (std::string& stop : stops)
            stop = random_text(random, 1 + random() % 7, n_letters);
        const std::string text = random_text(random, random() % 60, n_letters);
        const Found expected = search(text, stops);
        const auto matcher = make_matcher(stops);
        Found found;
        for (std::size_t at = 0, n; at < text.size(); at += n) {
            n = std::min<std::size_t>(text.size() - at, random() % 6);
            REQUIRE(matcher->feed(std::string_view(text).substr(at, n), &found.text).ok());
            if (matcher->stopped_by() >= 0) continue;
            const std::string seen = text.substr(0, at + n);
            REQUIRE(found.text + std::string(matcher->held()) == seen);
            REQUIRE(matcher->held().size() == longest_beginning(seen, stops));
        }
        if (matcher->stopped_by() >= 0) CHECK(matcher->held().empty());
        REQUIRE(matcher->finish(&found.text).ok());
        found.stop = matcher->stopped_by();
        CAPTURE(round, text, stops);
        REQUIRE(found == expected);
        n_stopped += found.stop >= 0;
    }
    CHECK(n_stopped > 1000);
    CHECK(n_stopped < 3500);
}

TEST_CASE("the longest of the stop strings that end together counts, and the lowest of equal ones") {
    std::string text;
    auto matcher = make_matcher({"b", "ab", "ab", "zab"});
    REQUIRE(matcher->feed("xxabyy", &text).ok());
    CHECK(matcher->stopped_by() == 1);
    CHECK(text == "xx");
    REQUIRE(matcher->feed("more", &text).ok());
    CHECK(text == "xx");
    matcher->reset();
    CHECK(matcher->stopped_by() == -1);
    REQUIRE(matcher->feed("qb", &text).ok());
    CHECK(matcher->stopped_by() == 0);
    CHECK(text == "xxq");
}

TEST_CASE("what is held back is whole characters when the stop strings are") {
    const auto matcher = make_matcher({"\xc3\xa9\xc3\xa9!"});
    std::string text;
    for (const char* piece : {"caf", "\xc3\xa9", "\xc3\xa9", "\xc3\xa9"}) {
        REQUIRE(matcher->feed(piece, &text).ok());
    }
    CHECK(text == "caf\xc3\xa9");
    CHECK(matcher->held() == "\xc3\xa9\xc3\xa9");
    REQUIRE(matcher->feed("!", &text).ok());
    CHECK(text == "caf\xc3\xa9");
    CHECK(matcher->stopped_by() == 0);
}

TEST_CASE("impossible stop strings are refused") {
    std::unique_ptr<StopMatcher> matcher;
    CHECK(StopMatcher::create({"a", ""}, &matcher).code() == Code::invalid_argument);
    CHECK(StopMatcher::create({std::string((1u << 20) + 1, 'a')}, &matcher).code() == Code::invalid_argument);
    CHECK(StopMatcher::create({}, nullptr).code() == Code::invalid_argument);
    CHECK(matcher == nullptr);
    CHECK(make_matcher({"a"})->feed("b", nullptr).code() == Code::invalid_argument);
    CHECK(make_matcher({"a"})->finish(nullptr).code() == Code::invalid_argument);
}

TEST_CASE("without memory a stop matcher takes nothing, and goes on when there is some again") {
    for (long n = 0;; n++) {
        REQUIRE(n < 100);
        std::unique_ptr<StopMatcher> matcher;
        Status created, fed;
        std::string text;
        const std::vector<std::string> stops = {"aab", "abc"};
        const std::string bytes(500, 'a');
        {
            const test::RefuseAfter refuse(n);
            created = StopMatcher::create(stops, &matcher);
            if (created.ok()) fed = matcher->feed(bytes, &text);
        }
        CHECK((created.ok() || created.code() == Code::out_of_memory));
        if (!created.ok()) continue;
        if (fed.ok()) break;
        CHECK(fed.code() == Code::out_of_memory);
        CHECK(text.empty());
        REQUIRE(matcher->feed(bytes + "b", &text).ok());
        CHECK(text == std::string(498, 'a'));
    }
}

TEST_CASE("hostile stop strings take linear time") {
    // Each byte steps back through all beginnings in a careless search.
    const auto steps = [](std::size_t n) {
        const auto matcher = make_matcher({std::string(n, 'a') + "b", std::string(n / 2, 'a') + "c"});
        std::string text, piece(1, 'a');
        const std::clock_t start = std::clock();  // of this process alone
        for (std::size_t i = 0; i < 2 * n; i++) {
            REQUIRE(matcher->feed(i % n == n - 1 ? "d" : piece, &text).ok());
        }
        REQUIRE(matcher->finish(&text).ok());
        CHECK(text.size() == 2 * n);
        return static_cast<double>(std::clock() - start);
    };
    steps(1000);
    const double one = std::min({steps(20000), steps(20000), steps(20000), steps(20000), steps(20000)});
    const double ten = std::min({steps(200000), steps(200000), steps(200000)});
    CHECK(ten < 40 * one);  // a hundred times if it were quadratic
}
