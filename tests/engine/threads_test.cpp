// The workers of an engine enter every operator together, as its graph has it: one computes (append and
// attend with a CrewExecutor), the others lend a hand, and nobody begins the next operator before all have
// left this one.
#include <algorithm>
#include <atomic>
#include <map>
#include <memory>
#include <random>
#include <thread>
#include <vector>

#include "engine.hpp"

using namespace engine_test;

namespace {

// Workers 1 to n - 1; the test itself is worker 0.
class Workers {
  public:
    explicit Workers(unsigned n) : crew_(n) {
        for (unsigned i = 1; i < n; ++i)
            threads_.emplace_back([this, i] { work(i); });
    }
    ~Workers() {
        node_.store(end);
        for (std::thread& thread : threads_)
            thread.join();
    }

    void run(const Engine::Operator& op) {
        const std::uint64_t ticket = node_.load() + 1;
        node_.store(ticket);
        op(crew_);
        crew_.release(ticket);
        while (n_left_.load() < ticket * threads_.size())
            std::this_thread::yield();
    }

    unsigned n_turned_away() const { return n_turned_away_.load(); }

  private:
    static constexpr std::uint64_t end = ~std::uint64_t{0};

    void work(unsigned i) {
        std::mt19937 random(i);
        for (std::uint64_t ticket = 1;; ++ticket) {
            std::uint64_t node = node_.load();
            for (; node < ticket; node = node_.load())
                std::this_thread::yield();
            if (node == end) return;
            for (unsigned n = random() % 3 == 0 ? random() % 200 : 0; n > 0; --n)
                std::this_thread::yield();  // late, now and then
            if (!crew_.help(ticket)) n_turned_away_.fetch_add(1);
            n_left_.fetch_add(1);
        }
    }

    CrewExecutor crew_;
    std::atomic<std::uint64_t> node_{0}, n_left_{0};
    std::atomic<unsigned> n_turned_away_{0};
    std::vector<std::thread> threads_;
};

// Prompts, several sequences at once, drafts taken back, a shift.
std::vector<float> life(const Setup& setup, const std::vector<unsigned>& n_threads) {
    std::map<unsigned, std::unique_ptr<Workers>> crews;
    Engine engine(setup);
    std::size_t n_operators = 0;
    engine.run_operator = [&](const Engine::Operator& op) {
        // The number of threads changes between prompt and generation, and from context to context.
        const unsigned n = n_threads[n_operators++ / n_layers % n_threads.size()];
        auto& crew = crews[n];
        if (crew == nullptr) crew = std::make_unique<Workers>(n);
        crew->run(op);
    };
    const auto cut = [&](std::int32_t id, std::size_t n) {
        REQUIRE(engine.sequences.remove(id, static_cast<std::int32_t>(n), -1));
        engine.model[id].resize(n);
    };
    REQUIRE(engine.step({{0, 1}, {2}}, 90).ok());
    for (int i = 0; i < 4; ++i) {
        REQUIRE(engine.step({{0}, {1}, {2}}, 1 + i % 3).ok());
        REQUIRE(engine.step({{1}}, 5).ok());
        cut(1, engine.model[1].size() - 3);
    }
    REQUIRE(engine.sequences.remove(2, 20, 60));
    engine.sequences.move(2, 60, -1, [](std::int32_t pos) { return pos - 40; });
    auto& cells = engine.model[2];
    cells.erase(cells.begin() + 20, cells.begin() + 60);
    for (std::size_t i = 20; i < cells.size(); ++i)
        cells[i].pos -= 40;
    REQUIRE(engine.step({{2}, {0}}, 40).ok());
    for (const auto& [n, crew] : crews)
        CHECK(crew->n_turned_away() == 0);
    return engine.outputs;
}

}  // namespace

TEST_CASE("the workers of an engine give the bits of one thread", "[engine][thread]") {
    for (const char* spec : {"f16", "gear-4"}) {
        INFO(spec);
        const std::vector<float> one = life(setup_of(spec), {1});
        CHECK(one.size() > 1000);
        CHECK(life(setup_of(spec), {3}) == one);
        CHECK(life(setup_of(spec), {2, 1}) == one);
    }
}
