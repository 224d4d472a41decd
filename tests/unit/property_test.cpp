// Random lives of caches: what holds for all of them. GEARKV_SEQUENCES says how many are lived, where the
// default is a few; failures name the seed, and GEARKV_SEED begins there.
#include <algorithm>
#include <set>

#include "cache/impl.hpp"
#include "caches.hpp"
#include "gearkv/state.hpp"
#include "support/temporary_file.hpp"

using namespace gearkv;
using namespace gearkv::testing;

namespace {

constexpr std::uint32_t n_heads = 1, key_dim = 16, value_dim = 8, n_query_heads = 2;
constexpr std::size_t n_source = 6000, most_tokens = 700;
constexpr std::uint32_t most_layers = 2;  // that get tokens; those behind them stay empty
// Where layers differ: as many channels of keys in all, twice as many of values.
constexpr LayerDims other_dims = {2 * n_heads, key_dim / 2, value_dim};

unsigned number_of(const char* name, unsigned otherwise) {
    const char* text = std::getenv(name);
    return text == nullptr ? otherwise : static_cast<unsigned>(std::strtoul(text, nullptr, 10));
}

const std::vector<float>& keys() {
    static const std::vector<float> rows = to_floats(gaussian(n_source, n_heads, key_dim, 1));
    return rows;
}
const std::vector<float>& values() {
    static const std::vector<float> rows = to_floats(gaussian(n_source, 2 * n_heads, value_dim, 2));
    return rows;
}
// Each loud in a few channels of its own, so that the widths of keys tell which queries there were.
const std::vector<float>& all_queries() {
    static const std::vector<float> rows = [] {
        std::vector<float> all = to_floats(gaussian(260, n_query_heads, key_dim, 3));
        for (std::size_t i = 0; i < all.size(); ++i) {
            const std::size_t row = i / (n_query_heads * key_dim);
            if ((i + row) % 8 == 0) all[i] *= 20.0f;
        }
        return all;
    }();
    return rows;
}

template <class T>
T any_of(std::mt19937* random, std::initializer_list<T> choices) {
    return choices.begin()[(*random)() % choices.size()];
}

struct Life {
    CacheConfig config;
    std::uint32_t windows[most_layers + 1] = {};
    LayerDims dims[most_layers + 1] = {{n_heads, key_dim, value_dim}, other_dims, {}};
    std::string spec;
    double frequencies[2][key_dim / 2];
    RopeConfig ropes[most_layers + 1];  // of the layers, that removals are told
    bool is_told = false;
};

void choose_config(std::mt19937* random, Life* life) {
    life->spec =
        any_of<const char*>(random, {"gear-3", "gear-2:recent=10", "kivi-2:nb=64", "paper:gear-2:nb=64",
                                     "q8:recent=20,nb=64", "f16:nb=64", "k=gear-4;v=f16:sinks=0", "auto:4",
                                     "gear-kcvt-4:nb=64,recent=70", "gear-4:nb=128"});
    std::uint32_t n_layers = 1 + (*random)() % 2;
    if (n_layers == most_layers && (*random)() % 3 == 0) ++n_layers;
    life->config = make_config(life->spec, n_heads, key_dim, value_dim, most_tokens, n_layers);
    CacheConfig& config = life->config;
    // A loaded cache takes an empty layer for one without tokens, where the saved one may still wait.
    if (config.spec.auto_bits > 0.0f) config.n_layers = std::min(n_layers, most_layers);
    config.close_prompts = (*random)() % 2 == 0;
    const std::uint32_t n_unit = config.spec.buffer_tokens;
    config.spread_tokens = any_of(random, {0u, 1u, 5u, 16u, 64u});
    config.rollback_tokens = any_of(random, {0u, 3u, 8u, 16u, 33u, n_unit - 1, n_unit, 2 * n_unit + 9});
    config.block_tokens = any_of(random, {0u, 0u, n_unit, 2 * n_unit});
    config.seed = (*random)();
    if ((*random)() % 2 == 0) {
        for (std::uint32_t& window : life->windows)
            window = any_of(random, {0u, 1u, 8u, 40u, 100u, 200u, 300u});
        config.windows = life->windows;
    }
    const bool is_mixed = n_layers > 1 && (*random)() % 3 == 0;
    if (is_mixed) {
        config.n_kv_heads = config.key_dim = config.value_dim = 0;
        config.dims = life->dims;
    }
    const std::uint32_t n_pairs = (is_mixed ? other_dims.key_dim : key_dim) / 2;
    if ((*random)() % 2 == 0) {
        for (std::uint32_t i = 0; i < key_dim / 2; ++i) {
            life->frequencies[0][i] = std::pow(100.0, -2.0 * i / key_dim);
            life->frequencies[1][i] = life->frequencies[0][i] / 4.0;
        }
        config.rope = {life->frequencies[0], n_pairs, (*random)() % 2 == 0};
        life->ropes[0] = any_of(random, {config.rope, RopeConfig{}});
        life->ropes[1] = {life->frequencies[1], n_pairs - static_cast<std::uint32_t>((*random)() % 3),
                          !config.rope.interleaved};
        life->is_told = (*random)() % 2 == 0;
        if (life->is_told && (*random)() % 2 == 0) config.rope = {};
    }
    if ((*random)() % 12 == 0) config.soft_bytes = 60000;
    // Of the specs that go with them.
    CacheBytes bytes;
    config.latent = (*random)() % 4 == 0;
    if (!bytes_required(config, 1, 0, &bytes).ok()) config.latent = false;
}

// What is done to a cache, so that it can be done to another one.
struct Step {
    enum Kind { append, attend, compress, remove, forget, restore } kind;
    std::size_t first = 0;  // of the source; token; queries
    std::size_t n = 0;
    std::size_t n_after = 0;  // tokens then
    const RopeConfig* ropes = nullptr;
    std::uint32_t n_layers = most_layers;  // that are attended, the next was refused
};

using Outputs = std::vector<float>;

std::uint32_t n_filled(const Cache& cache) {
    return std::min(cache.config().n_layers, most_layers);
}

Status append_to(Cache* cache, std::size_t first, std::size_t n, std::uint32_t n_layers = most_layers) {
    Status status;
    for (std::uint32_t layer = 0; status.ok() && layer < std::min(n_filled(*cache), n_layers); ++layer) {
        const LayerDims dims = cache->config().dims_of(layer);
        const std::size_t key_row = n_heads * key_dim, value_row = 2 * n_heads * value_dim;
        const Rows k = {keys().data() + first * key_row, key_row, dims.key_dim};
        const Rows v = {values().data() + first * value_row, value_row, dims.value_dim};
        status = cache->append(layer, k, v, static_cast<std::uint32_t>(n), serial_executor());
    }
    return status;
}

// As many layers as answer, of step->n_layers, which are then so many.
Status attend_layers(Cache* cache, Step* step, Outputs* out) {
    const std::size_t n_out = step->n * n_query_heads * value_dim;
    const std::uint32_t most = std::min(n_filled(*cache), step->n_layers);
    out->assign(n_out * most, 0.0f);
    for (std::uint32_t layer = 0; layer < most; ++layer) {
        const float* rows = all_queries().data() + step->first * n_query_heads * key_dim;
        Queries queries = {rows,
                           n_query_heads * key_dim,
                           cache->config().dims_of(layer).key_dim,
                           static_cast<std::uint32_t>(step->n),
                           n_query_heads,
                           0.25f,
                           true};
        if (cache->config().latent) queries.latents = rows;
        const Status status =
            cache->attend(layer, queries, out->data() + layer * n_out, n_out, serial_executor());
        if (status.ok()) continue;
        step->n_layers = layer;
        out->resize(n_out * layer);
        return status;
    }
    return {};
}

// Saves a cache and goes on with what is loaded.
Status restore(std::unique_ptr<Cache>* cache) {
    static const TemporaryFile file;
    REQUIRE(save_state(**cache, file.path(), {}, serial_executor()).ok());
    return load_state(file.path(), (*cache)->config(), {}, serial_executor(), cache);
}

Status take(std::unique_ptr<Cache>* taker, Step* step, Outputs* out) {
    Cache* cache = taker->get();
    Status status;
    switch (step->kind) {
        case Step::append:
            return append_to(cache, step->first, step->n);
        case Step::attend:
            return attend_layers(cache, step, out);
        case Step::compress:
            for (std::uint32_t layer = 0; status.ok() && layer < cache->config().n_layers; ++layer)
                status = cache->compress(layer, serial_executor());
            return status;
        case Step::remove:
            if (step->ropes != nullptr) return cache->remove(step->first, step->n, step->ropes);
            return cache->remove(step->first, step->n);
        case Step::forget:
            return cache->forget_before(0, step->first);
        case Step::restore:
            return restore(taker);
    }
    return status;
}

// The steps without the tokens from n_left on, as if these had never come, of a cache that had n_base tokens
// before the first. False when that cannot be told, because the tokens were cut or moved since.
bool shorten(std::vector<Step>* steps, std::size_t n_base, std::size_t n_left) {
    while (!steps->empty() && steps->back().n_after > n_left) {
        Step& last = steps->back();
        if (last.kind == Step::remove || last.kind == Step::restore) return false;
        if (last.kind == Step::append && last.n_after - last.n < n_left) {
            last.n -= last.n_after - n_left;
            last.n_after = n_left;
            return true;
        }
        steps->pop_back();
    }
    return !steps->empty() || n_left == n_base;
}

// A cache, another one that never saw what it dropped, what was done to that, and how it was before.
struct Subject {
    std::unique_ptr<Cache> cache, shadow, base;
    std::vector<Step> steps;
    // Rollbacks to n_fixed tokens or more are promised, and none from beyond most_tokens.
    std::size_t n_fixed = 0, most = 0;
    // Most there ever were, from which windows are whole for a rollback; moved and masked ones are not
    // counted.
    std::size_t highest = 0;

    std::size_t n() const { return cache->n_tokens(0); }
    // All that there is has come to stay.
    void begin() {
        REQUIRE(cache->fork(&base).ok());
        REQUIRE(cache->fork(&shadow).ok());
        steps.clear();
        n_fixed = most = n();
    }
};

struct Counts {
    std::size_t n_lossless = 0, n_lossy = 0, n_promised = 0, n_compared = 0, n_refused = 0, n_reopened = 0;
    std::size_t n_failed = 0;
};

class TruncationLife {
  public:
    TruncationLife(unsigned seed, Counts* counts) : random_(seed), counts_(counts) {
        choose_config(&random_, &life_);
        subjects_.emplace_back();
        subjects_[0].cache = make_cache(life_.config);
        subjects_[0].begin();
    }

    void live(int n_steps) {
        for (int i = 0; i < n_steps; ++i) {
            at_ = random_() % subjects_.size();
            step();
        }
    }
    std::string what() const {
        const CacheConfig& c = life_.config;
        return life_.spec + " layers " + std::to_string(c.n_layers) + " spread " +
               std::to_string(c.spread_tokens) + " rollback " + std::to_string(c.rollback_tokens) +
               " block " + std::to_string(c.block_tokens) + " windows " + std::to_string(life_.windows[0]) +
               "," + std::to_string(life_.windows[1]) + " rope " + std::to_string(c.rope.n_pairs) +
               (life_.is_told ? " told" : "") + " soft " + std::to_string(c.soft_bytes) +
               (c.close_prompts ? " closes prompts" : "") + (c.dims != nullptr ? " of two shapes" : "");
    }

  private:
    Subject& subject() { return subjects_[at_]; }

    void step() {
        Subject& s = subject();
        const std::uint32_t any = random_() % 32;
        if (any < 9) {
            grow(any_of<std::size_t>(&random_, {1, 1, 2, 7, 30, 63}));
        } else if (any < 11) {
            grow(any_of<std::size_t>(&random_, {64, 128, 150, 200, 300}));
            // What closes a prompt.
            const std::size_t n = life_.config.spec.buffer_tokens + random_() % 100;
            if (random_() % 3 > 0 && n <= s.n()) both({Step::attend, 0, n, s.n()});
        } else if (any < 14) {  // one by one
            for (std::size_t n = random_() % 70; n > 0; --n) {
                grow(1);
                if (random_() % 4 == 0) both({Step::attend, random_() % 60, 1, s.n()});
            }
        } else if (any < 18) {
            both({Step::attend, random_() % 60, 1 + (life_.config.rollback_tokens > 0 ? random_() % 2 : 0),
                  s.n()});
        } else if (any < 25) {
            draft();
        } else if (any < 26) {
            random_() % 2 == 0 ? cut(random_() % (s.n() + 1)) : fail();
        } else if (any == 26) {
            both({Step::compress, 0, 0, s.n()});
            s.n_fixed = s.n();
        } else if (any == 27) {
            remove();
        } else if (any == 28) {
            const std::size_t token = s.n() - std::min<std::size_t>(s.n(), random_() % 300);
            both({Step::forget, token, 0, s.n()});
            s.n_fixed = s.n();
            s.highest = SIZE_MAX;
        } else if (any == 29) {
            fork();
        } else if (any == 30) {
            restore();
        } else {
            // To a number of bytes, of which both do not hold the same. A layer that is owned for it may take
            // less than the shared one did.
            const CacheBytes before = s.cache->stats().bytes;
            REQUIRE(s.cache->shrink(before.bytes - random_() % 500).ok());
            const CacheBytes bytes = s.cache->stats().bytes;
            if (bytes.keys.bytes + bytes.values.bytes < before.keys.bytes + before.values.bytes) s.begin();
        }
    }

    // What was kept and what never saw the dropped tokens answer the same.
    void both(Step step) {
        Subject& s = subject();
        if (step.kind == Step::attend && s.n() < step.n) return;
        Outputs found, expected;
        const Status status = take(&s.cache, &step, &found);
        INFO(status.message());
        if (status.code() == Code::forgotten) {  // it has given back more
            ++counts_->n_refused;
            if (step.kind != Step::attend || step.n_layers == 0) return;
        } else {
            REQUIRE(status.ok());
        }
        step.n_after = s.n();
        s.steps.push_back(step);
        if (step.kind == Step::restore) return;  // a loaded cache goes on as the one that was saved
        const Status other = take(&s.shadow, &step, &expected);
        INFO(other.message());
        REQUIRE(other.ok());
        REQUIRE(s.shadow->n_tokens(0) == s.n());
        // Above soft_bytes blocks shrink by all memory that is held, of which both do not hold the same.
        if (life_.config.soft_bytes > 0 && s.cache->stats().n_shrunk + s.shadow->stats().n_shrunk > 0)
            return s.begin();
        REQUIRE(found == expected);
        counts_->n_compared += !found.empty();
    }

    void grow(std::size_t n) {
        Subject& s = subject();
        if (s.n() + n > most_tokens || next_ + n > n_source) {
            if (next_ + n > n_source) next_ = 0;
            s.cache = make_cache(life_.config);
            s.highest = 0;
            return s.begin();
        }
        both({Step::append, next_, n, 0});
        next_ += n;
        s.most = std::max(s.most, s.n());
        s.highest = std::max(s.highest, s.n());
        if (n >= life_.config.spec.buffer_tokens) s.n_fixed = s.n();
    }

    void draft() {
        Subject& s = subject();
        const std::size_t n_before = s.n();
        const std::size_t n = 1 + random_() % std::clamp<std::uint32_t>(life_.config.rollback_tokens, 6, 150);
        if (random_() % 2 == 0 && n < life_.config.spec.buffer_tokens) {
            grow(n);
        } else {
            for (std::size_t i = 0; i < n; ++i) {
                grow(1);
                if (random_() % 5 == 0) both({Step::attend, random_() % 60, 1, s.n()});
            }
        }
        if (random_() % 3 == 0) both({Step::attend, random_() % 60, 1, s.n()});
        if (s.n() < n_before) return;  // it began anew
        cut(n_before + random_() % (s.n() - n_before + 1));
    }

    void cut(std::size_t n_left) {
        Subject& s = subject();
        const std::size_t n = s.n();
        const std::uint64_t n_closed = s.cache->stats().compressed_tokens;
        bool lossless = false;
        const Status status = s.cache->truncate(n_left, &lossless);
        INFO("from " << n << " to " << n_left << " " << status.message());
        const CacheConfig& config = life_.config;
        const std::size_t n_rollback = config.rollback_tokens;
        const bool is_promised =
            n_left >= s.n_fixed &&
            n_left + std::min<std::size_t>(n_rollback, config.spec.buffer_tokens) >= s.most &&
            config.spec.auto_bits == 0.0f && config.soft_bytes == 0;
        if (status.code() == Code::forgotten) {
            REQUIRE(!is_promised);
            REQUIRE(n_left + n_rollback < s.highest);
            bool lacks = false;
            for (std::uint32_t i = 0; i < config.n_layers; ++i)
                lacks |= s.cache->first_token(i) > 0 && n_left < life_.windows[i] + s.cache->first_token(i);
            REQUIRE(lacks);
            ++counts_->n_refused;
            return;
        }
        REQUIRE(status.ok());
        REQUIRE(s.n() == n_left);
        if (is_promised) REQUIRE(lossless);
        counts_->n_promised += is_promised && n_left < n;
        counts_->n_reopened += lossless && s.cache->stats().compressed_tokens < n_closed;
        (lossless ? counts_->n_lossless : counts_->n_lossy) += 1;
        if (n_left == n) return;
        if (lossless) {
            REQUIRE(shorten(&s.steps, s.base->n_tokens(0), n_left));
            s.n_fixed = std::min(s.n_fixed, n_left);
            replay();
        } else {
            s.begin();
        }
    }

    // A step that ends after the first of two layers.
    void fail() {
        Subject& s = subject();
        const std::size_t n = s.n(), n_new = any_of<std::size_t>(&random_, {1, 1, 5, 30, 140});
        if (life_.config.n_layers < most_layers || n == 0 || n + n_new > most_tokens) return;
        next_ = next_ + n_new > n_source ? 0 : next_;
        REQUIRE(append_to(s.cache.get(), next_, n_new, 1).ok());
        std::uint64_t n_left = 0;
        bool lossless = false;
        const Status status = s.cache->truncate_to_shortest(&n_left, &lossless);
        const bool is_promised = n >= s.n_fixed &&
                                 std::max(s.most, n + n_new) <= n + reopen_tokens(life_.config) &&
                                 n_new < life_.config.spec.buffer_tokens &&
                                 life_.config.spec.auto_bits == 0.0f && life_.config.soft_bytes == 0;
        INFO("from " << n + n_new << " to " << n << " " << status.message());
        if (status.code() == Code::forgotten) {
            REQUIRE(!is_promised);
            ++counts_->n_refused;
            s.cache = make_cache(life_.config);
            return s.begin();
        }
        REQUIRE(status.ok());
        REQUIRE(n_left == n);
        for (std::uint32_t layer = 0; layer < life_.config.n_layers; ++layer)
            REQUIRE(s.cache->n_tokens(layer) == (layer < most_layers ? n : 0));
        if (is_promised) REQUIRE(lossless);
        ++counts_->n_failed;
        if (!lossless) return s.begin();
        both({Step::attend, random_() % 60, 1, n});
    }

    // Has the shadow live anew.
    void replay() {
        Subject& s = subject();
        REQUIRE(s.base->fork(&s.shadow).ok());
        Outputs out;
        for (Step step : s.steps) {
            if (step.kind == Step::restore) continue;
            const Status status = take(&s.shadow, &step, &out);
            INFO(status.message());
            REQUIRE(status.ok());
        }
        if (s.n() == 0) return;
        both({Step::attend, random_() % 60, 1, s.n()});
    }

    void remove() {
        Subject& s = subject();
        if (s.n() == 0) return;
        const std::size_t first = random_() % (random_() % 4 > 0 ? s.n() : std::min<std::size_t>(s.n(), 5));
        const std::size_t n = 1 + random_() % std::min<std::size_t>(s.n() - first, 100);
        both({Step::remove, first, n, 0, life_.is_told ? life_.ropes : nullptr});
        s.n_fixed = s.most = s.n();
        s.highest = SIZE_MAX;
    }

    void fork() {
        if (subjects_.size() == 3) {
            subjects_.erase(subjects_.begin() + static_cast<std::ptrdiff_t>(random_() % 3));
            return;
        }
        Subject& s = subject();
        Subject other{nullptr, nullptr, nullptr, s.steps, s.n_fixed, s.most, s.highest};
        REQUIRE(s.cache->fork(&other.cache).ok());
        REQUIRE(s.shadow->fork(&other.shadow).ok());
        REQUIRE(s.base->fork(&other.base).ok());
        subjects_.push_back(std::move(other));
    }

    void restore() {
        Subject& s = subject();
        both({Step::restore, 0, 0, 0});  // refused where the caller masks tokens within a window
        s.n_fixed = s.most = s.n();
    }

    std::mt19937 random_;
    Counts* counts_;
    Life life_;
    std::vector<Subject> subjects_;
    std::size_t at_ = 0, next_ = 0;
};

void live_truncations(unsigned n_sequences) {
    const unsigned first = number_of("GEARKV_SEED", 1);
    Counts counts;
    n_sequences = number_of("GEARKV_SEQUENCES", n_sequences);
    for (unsigned seed = first; seed < first + n_sequences; ++seed) {
        TruncationLife life(seed, &counts);
        INFO("GEARKV_SEED=" << seed << " " << life.what());
        life.live(60);
    }
    INFO(counts.n_lossless << " lossless, " << counts.n_lossy << " lossy, " << counts.n_promised
                           << " promised, " << counts.n_reopened << " reopened, " << counts.n_compared
                           << " compared, " << counts.n_refused << " refused");
    if (std::getenv("GEARKV_SEQUENCES") != nullptr)
        WARN(n_sequences << " lives: " << counts.n_lossless << " lossless, " << counts.n_lossy << " lossy, "
                         << counts.n_promised << " promised, " << counts.n_reopened << " reopened, "
                         << counts.n_compared << " compared, " << counts.n_refused << " refused");
    if (n_sequences < 20) return;
    CHECK(counts.n_lossless > n_sequences);
    CHECK(counts.n_lossy > n_sequences / 4);
    CHECK(counts.n_promised > n_sequences / 2);
    CHECK(counts.n_reopened > n_sequences / 10);
    CHECK(counts.n_compared > 10 * n_sequences);
    CHECK(counts.n_failed > n_sequences / 10);
}

// Blocks of a layer, each once, and the tokens they hide.
struct Blocks {
    std::uint64_t n = 0, n_hidden = 0;
};
Blocks count_blocks(const Cache& cache, std::uint32_t layer) {
    Blocks blocks;
    std::set<const void*> seen;
    const LayerTokens& tokens = CacheAccess::of(cache).layers[layer]->tokens();
    for (std::uint64_t i = 0; i < tokens.blocks().size(); ++i) {
        const ClosedBlock& block = tokens.blocks()[i];
        blocks.n_hidden -= block.n_tokens;
        if (!seen.insert(block.key).second) continue;
        ++blocks.n;
        blocks.n_hidden += static_cast<const BlockHeader*>(block.key)->n_tokens;
    }
    return blocks;
}

// Appends of up to n_chunk tokens amid all that can befall a cache: no more stays uncompressed than without
// that, and no more bytes are held than are required of the tokens that blocks hold.
void live_removals(unsigned seed, std::size_t n_chunk, std::size_t* n_removed) {
    std::mt19937 random(seed);
    Life life;
    choose_config(&random, &life);
    CacheConfig& config = life.config;
    config.windows = nullptr;
    config.soft_bytes = 0;
    const std::uint64_t n_sinks = config.spec.sink_tokens, n_unit = config.spec.buffer_tokens;
    const std::uint64_t n_open = std::min<std::uint64_t>(config.spread_tokens, n_unit);
    // One by one a unit begins when it is full; in chunks another may be nearly so.
    const std::uint64_t most_buffered =
        n_unit + config.spec.recent_tokens + n_open + (n_chunk == 1 ? 0 : n_unit + n_chunk);
    INFO("GEARKV_SEED=" << seed << " " << life.spec << " spread " << config.spread_tokens << " rollback "
                        << config.rollback_tokens << " rope " << config.rope.n_pairs);
    const auto remove = [&](Cache* cache, std::size_t at, std::size_t n) {
        return life.is_told ? cache->remove(at, n, life.ropes) : cache->remove(at, n);
    };
    CacheConfig alone = config;
    alone.n_layers = 1;
    alone.max_tokens = 1 << 20;
    std::vector<std::unique_ptr<Cache>> caches;
    caches.push_back(make_cache(config));
    const std::uint32_t rhythm = 1 + random() % 20;
    for (std::size_t i = 0, next = 0; i < 900; ++i) {
        std::unique_ptr<Cache>& cache = caches[random() % caches.size()];
        const auto n = [&] { return cache->n_tokens(0); };
        const std::size_t n_new = 1 + random() % n_chunk;
        if (i % rhythm == 0 && n() > n_sinks + 40) {
            const std::size_t n_kept = random() % 4 > 0 ? n_sinks : random() % (n_sinks + 1);
            const std::size_t first = n_kept + (random() % 3 > 0 ? 0 : random() % (n() - n_kept));
            REQUIRE(
                remove(cache.get(), first, 1 + random() % std::min<std::size_t>(n() - first, rhythm)).ok());
            ++*n_removed;
        }
        const std::uint32_t any = random() % 320;
        if (any < 20 && n() > 0) {
            REQUIRE(cache->truncate(n() - random() % std::min<std::size_t>(n(), 30)).ok());
        } else if (any < 28) {
            std::unique_ptr<Cache> fork;
            REQUIRE(cache->fork(&fork).ok());
            caches.push_back(std::move(fork));
            if (caches.size() > 3) caches.erase(caches.begin());
            continue;
        } else if (any < 29) {
            REQUIRE(restore(&cache).ok());
        } else if (any < 31) {
            REQUIRE(cache->forget_before(0, n() / 4).ok());
        } else if (any < 50 && n() > 0) {
            Outputs out;
            Step step = {Step::attend, random() % 60, 1};
            REQUIRE(attend_layers(cache.get(), &step, &out).ok());
        }
        if (n() + n_new > most_tokens) REQUIRE(remove(cache.get(), n_sinks, 60).ok());
        if (next + n_new > n_source) next = 0;
        REQUIRE(append_to(cache.get(), next, n_new).ok());
        next += n_new;
        INFO("after " << i << " steps, " << n() << " tokens");
        const CacheStats stats = cache->stats();
        CacheBytes most;  // of blocks and buffers, all layers
        for (std::uint32_t layer = 0; layer < config.n_layers; ++layer) {
            if (!config.dims_of(layer).has_keys()) continue;
            if (config.dims != nullptr) alone.dims = config.dims + layer;
            LayerStats found;
            REQUIRE(cache->layer_stats(layer, &found).ok());
            const std::uint64_t n_there = found.n_tokens - found.n_forgotten;
            REQUIRE(n_there - found.n_closed - found.n_sinks <= most_buffered);
            const Blocks blocks = count_blocks(*cache, layer);
            CacheBytes planned;
            // A cut can leave blocks where the recent tokens are, or sinks would be.
            const std::uint64_t n_planned =
                n_there + blocks.n_hidden + config.spec.recent_tokens + n_sinks - found.n_sinks;
            REQUIRE(bytes_required(alone, n_planned, 0, &planned).ok());
            most.keys += planned.keys;
            most.values += planned.values;
            most.buffer += planned.buffer;
        }
        if (n_chunk > 1) continue;
        // auto:BITS moves bytes between keys and values, and from layer to layer.
        REQUIRE(stats.bytes.keys.bytes + stats.bytes.values.bytes <= most.keys.bytes + most.values.bytes);
        REQUIRE(stats.bytes.buffer <= most.buffer);
    }
}

}  // namespace

TEST_CASE(
    "after a truncation that is told lossless, all outputs are those of a cache that never saw the tokens",
    "[property]") {
    live_truncations(150);
}

TEST_CASE("whatever is appended, removed, cut, forgotten and forked, no more stays uncompressed nor is held",
          "[property]") {
    const unsigned first = number_of("GEARKV_SEED", 1), n_sequences = number_of("GEARKV_SEQUENCES", 60);
    std::size_t n_removed = 0;
    for (unsigned seed = first; seed < first + n_sequences; ++seed)
        live_removals(seed, seed % 3 == 0 ? 50 : 1, &n_removed);
    CHECK(n_removed > 20 * n_sequences);
}
