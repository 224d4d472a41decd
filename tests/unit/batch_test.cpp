// Many sequences attended in one call: the bits of one call each, whoever is in the batch.
#include <functional>

#include "caches.hpp"
#include "gearkv/executor.hpp"

using namespace gearkv;
using namespace gearkv::testing;

namespace {

constexpr std::size_t n_heads = source_heads, dim = source_dim;

std::unique_ptr<Executor> make_executor(unsigned n_threads) {
    std::unique_ptr<Executor> executor;
    REQUIRE(create_executor(n_threads, &executor).ok());
    return executor;
}

std::unique_ptr<Workspace> make_workspace(const Allocator& allocator = default_allocator()) {
    std::unique_ptr<Workspace> workspace;
    REQUIRE(Workspace::create(allocator, &workspace).ok());
    return workspace;
}

// A cache of a batch, one like it outside, and what the next query is.
struct Pair {
    std::unique_ptr<Cache> batched, alone;
    std::size_t next = 0;
    Tensor q;
    std::vector<float> data, found;

    void append(std::size_t n) {
        if (next + n > source_tokens) next = 0;
        REQUIRE(testing::append(batched.get(), source().keys, source().values, next, n).ok());
        REQUIRE(testing::append(alone.get(), source().keys, source().values, next, n).ok());
        next += n;
    }
    AttendRequest request(std::mt19937* random) {
        const std::size_t n_queries = (*random)() % 4 == 0 ? 5 : 1, n_shared = 1 + (*random)() % 3;
        q = gaussian(std::min<std::size_t>(n_queries, batched->n_tokens(0)), n_shared * n_heads, dim,
                     static_cast<unsigned>((*random)()));
        data = to_floats(q);
        found.assign(data.size(), -1.0f);
        return {batched.get(), queries_of(data, q, true), found.data(), found.size()};
    }
    void check() {
        const Tensor expected = attend(alone.get(), q, dim, true);
        CHECK(expected.data == to_tensor(found.data(), q.n_tokens, q.n_heads, dim).data);
    }
};

}  // namespace

TEST_CASE("a batch attends as its caches do alone, and compresses beside as they do", "[batch][thread]") {
    const auto workspace = make_workspace();
    std::mt19937 random(1);
    const char* const specs[] = {"gear-2", "kivi-2:nb=64", "paper:gear-4:nb=64", "gear-3"};
    std::vector<Pair> pairs(24);
    for (std::size_t i = 0; i < pairs.size(); ++i) {
        CacheConfig config = rope_config(specs[i % 4], false, 3000);
        pairs[i].alone = make_cache(config);
        config.workspace = workspace.get();
        pairs[i].batched = make_cache(config);
        pairs[i].next = 100 * i;
        pairs[i].append(1 + random() % (i < 2 ? 2500 : 300));
    }
    for (const unsigned n_threads : {1u, 3u}) {
        const auto executor = make_executor(n_threads);
        for (int step = 0; step < 30; ++step) {
            CAPTURE(n_threads, step);
            std::vector<AttendRequest> requests;
            std::vector<Pair*> asked;
            for (Pair& pair : pairs) {
                pair.append(step == 7 ? 40 : 1);
                const std::uint32_t any = random() % 40;
                const std::uint64_t n = pair.batched->n_tokens(0);
                for (Cache* cache : {pair.batched.get(), pair.alone.get()}) {
                    if (any == 0) REQUIRE(cache->compress(0, serial_executor()).ok());
                    if (any == 1 && n > 40) REQUIRE(cache->remove(10, 25).ok());
                    if (any == 2 && n > 40) REQUIRE(cache->truncate(n - 30).ok());
                }
                if (any == 3) {
                    std::unique_ptr<Cache> fork;
                    REQUIRE(pair.batched->fork(&fork).ok());
                    pair.batched = std::move(fork);
                }
                if (any == 4) continue;
                requests.push_back(pair.request(&random));
                asked.push_back(&pair);
            }
            const Status status = Cache::attend_batch(0, requests.data(), requests.size(), *executor);
            INFO(status.message());
            REQUIRE(status.ok());
            for (Pair* pair : asked)
                pair->check();
        }
    }
    for (Pair& pair : pairs) {
        CHECK(pair.batched->stats().compressed_tokens == pair.alone->stats().compressed_tokens);
        CHECK(read_all(pair.batched.get()).first.data == read_all(pair.alone.get()).first.data);
        CHECK(read_all(pair.batched.get()).second.data == read_all(pair.alone.get()).second.data);
    }
}

TEST_CASE("a batch that is refused writes nothing", "[batch]") {
    CountingMemory work;
    auto workspace = make_workspace(work.allocator());
    const auto other_workspace = make_workspace();
    CacheConfig config = make_config("gear-3", n_heads, dim, dim, 1000, 2);
    const auto lone = make_cache(config);
    config.workspace = other_workspace.get();
    const auto stranger = make_cache(config);
    config.workspace = workspace.get();
    std::vector<std::unique_ptr<Cache>> caches;
    for (std::size_t i = 0; i < 3; ++i)
        caches.push_back(make_cache(config));
    for (Cache* cache : {lone.get(), stranger.get(), caches[0].get(), caches[1].get(), caches[2].get()})
        REQUIRE(append(cache, source().keys, source().values, 0, 300).ok());
    const Tensor q = gaussian(1, 2 * n_heads, dim, 3);
    const std::vector<float> data = to_floats(q);
    std::vector<float> out(3 * data.size(), -1.0f);
    std::vector<AttendRequest> good(3);
    for (std::size_t i = 0; i < 3; ++i)
        good[i] = {caches[i].get(), queries_of(data, q, true), out.data() + i * data.size(), data.size()};
    // Memory that runs out anywhere.
    int n_refused = 0;
    for (std::int64_t budget = 0;; ++budget) {
        work.budget = budget;
        Status status = Cache::attend_batch(0, good.data(), good.size(), serial_executor());
        if (status.ok()) break;
        CHECK(status.code() == Code::out_of_memory);
        CHECK(std::count(out.begin(), out.end(), -1.0f) == static_cast<std::ptrdiff_t>(out.size()));
        ++n_refused;
    }
    CHECK(n_refused > 0);
    for (std::size_t i = 1; i < 3; ++i)
        CHECK(std::equal(out.begin(), out.begin() + static_cast<std::ptrdiff_t>(data.size()),
                         out.begin() + static_cast<std::ptrdiff_t>(i * data.size())));
    CHECK(out[0] != -1.0f);
    std::fill(out.begin(), out.end(), -1.0f);
    const auto run = [&](const std::function<void(std::vector<AttendRequest>*)>& change,
                         std::uint32_t layer = 0) {
        std::vector<AttendRequest> requests = good;
        change(&requests);
        const Status status = Cache::attend_batch(layer, requests.data(), requests.size(), serial_executor());
        CHECK(std::count(out.begin(), out.end(), -1.0f) == static_cast<std::ptrdiff_t>(out.size()));
        return status;
    };
    using Requests = std::vector<AttendRequest>;
    Status status = run([&](Requests* r) { (*r)[2].cache = (*r)[0].cache; });
    CHECK(status.code() == Code::invalid_argument);
    CHECK(std::string(status.message()) == "request 2 is of a cache that is in the batch before");
    status = run([&](Requests* r) { (*r)[1].cache = lone.get(); });
    CHECK(status.code() == Code::invalid_argument);
    CHECK(std::string(status.message()) ==
          "request 1 has no workspace, expected one for all caches of a batch");
    CHECK(run([&](Requests* r) { (*r)[1].cache = stranger.get(); }).code() == Code::invalid_argument);
    CHECK(run([&](Requests* r) { (*r)[2].cache = nullptr; }).code() == Code::invalid_argument);
    const auto check_named = [&](const std::function<void(AttendRequest*)>& change, Code code) {
        for (std::size_t i = 0; i < 3; ++i) {
            const Status found = run([&](Requests* r) { change(&(*r)[i]); });
            CHECK(found.code() == code);
            INFO(found.message());
            CHECK(std::string(found.message()).rfind("request " + std::to_string(i), 0) == 0);
        }
    };
    check_named([](AttendRequest* r) { r->out = nullptr; }, Code::invalid_argument);
    check_named([](AttendRequest* r) { r->n_floats -= 1; }, Code::wrong_size);
    check_named([](AttendRequest* r) { r->queries.n_heads = 3; }, Code::wrong_size);
    check_named([](AttendRequest* r) { r->queries.scale = NAN; }, Code::invalid_argument);
    CHECK(run([](Requests*) {}, 1).code() == Code::wrong_size);  // no tokens
    CHECK(run([](Requests*) {}, 2).code() == Code::invalid_argument);
    // A batch of nothing is attended at once.
    CHECK(run([](Requests* r) { r->clear(); }).ok());
    CHECK(Cache::attend_batch(0, nullptr, 0, serial_executor()).ok());
    CHECK(Cache::attend_batch(0, nullptr, 1, serial_executor()).code() == Code::invalid_argument);
    // One request needs no workspace.
    good.resize(1);
    good[0].cache = lone.get();
    CHECK(Cache::attend_batch(0, good.data(), 1, serial_executor()).ok());
}
