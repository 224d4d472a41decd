// A life of a cache made of any bytes: configuration, calls and numbers, extreme ones among them. Beside it
// lives a twin with the serial executor, which must have the same bits, and a plain model in double
// precision. GEARKV_LEVEL or the bytes choose the level.
#include <unistd.h>

#include "fuzz/drawn_life.hpp"
#include "fuzz/plain_model.hpp"
#include "gearkv/state.hpp"

using namespace gearkv;
using namespace gearkv::fuzz;

namespace {

// How far stored entries may be from what was appended, as a share of the largest there ever was. Above 1:
// the squares of what is lost may be no more than those of what there is.
double codec_share(const std::string& spec) {
    if (spec == "f32") return 0.0;
    if (spec == "f16") return 0x1p-11;
    return spec.rfind("q8", 0) == 0 ? 0.02 : 2.0;
}

unsigned long long bytes_of_blocks(const CacheStats& stats) {
    return stats.bytes.keys.bytes + stats.bytes.values.bytes;
}

class Life : DrawnLife {
  public:
    Life(const std::uint8_t* data, std::size_t n) : DrawnLife(data, n) { layers_.resize(config_.n_layers); }

    void live() {
        const Status status = Cache::create(config_, &cache_);
        if (status.code() == Code::bad_spec) return;  // heads too small for its bits
        EXPECT(status.ok(), "%s", status.message());
        EXPECT(Cache::create(config_, &twin_).ok(), "no twin");
        noise_ = cache_->level() == Level::scalar ? 0x1p-20 : 0x1p-12;
        const std::uint32_t n_steps = 6 + choices_.below(30);
        for (std::uint32_t i = 0; i < n_steps; ++i) {
            step();
            check_counts();
        }
        check_contents();
    }

  private:
    void step() {
        switch (choices_.below(16)) {
            case 0:
                return compress();
            case 1:
                return truncate();
            case 2:
                return remove();
            case 3:
                return fork();
            case 4:
                return save_and_load();
            case 5:
                return append_bad();
            case 6:
                return choices_.one_in(3) ? check_contents() : shrink();
            case 7:
                return choices_.one_in(6) ? reset() : forget();
            case 8:
                if (config_.workspace != nullptr) return attend_batch(any_layer());
                [[fallthrough]];
            case 9:
            case 10:
                return attend(any_layer());
            default:
                return append();
        }
    }

    // The same call on both.
    template <class Call>
    Code on_both(const char* name, const Call& call) {
        const Status one = call(cache_.get(), executor_), other = call(twin_.get(), serial_executor());
        EXPECT(one.code() == other.code(), "%s: %s, and alone: %s", name, one.message(), other.message());
        return one.code();
    }

    float entry(std::uint32_t pattern) {
        const float x = choices_.gaussian();
        switch (pattern) {
            case 0:
                return 45000.0f * std::tanh(x);  // that turned keys are halves too
            case 1:
                return 1e-7f * x;
            case 2:
                return 0.0f;
            case 3:
                return x > 2.0f ? 1000.0f * x : x;
            case 4:
                return spec_ == "f32" ? 1e18f * x : x;
            default:
                return x;
        }
    }

    // Rows of some type and order; what was to be appended becomes what they hold.
    testing::Laid lay_out(std::vector<float>* rows, std::uint32_t n_heads, std::uint32_t dim,
                          std::uint32_t pattern) {
        ElementType type = choices_.of(testing::all_types);
        if (spec_ == "f32" && pattern == 4 && type == ElementType::f16) type = ElementType::f32;
        *rows = testing::rounded(std::move(*rows), type);
        return {*rows, n_heads, dim, type, choices_.of(testing::all_orders)};
    }

    void append() {
        const std::uint32_t n = 1 + choices_.below(choices_.one_in(3) ? 200 : 6);
        const std::uint32_t pattern = choices_.below(14);
        for (std::uint32_t layer = 0; layer < config_.n_layers; ++layer) {
            const LayerDims& dims = dims_[layer];
            if (!dims.has_keys()) {
                append_to_none(layer);
                continue;
            }
            const std::size_t n_key = key_row(layer), n_value = value_row(layer);
            std::vector<float> keys(n * n_key), values(n * n_value);
            for (float& x : keys)
                x = entry(pattern);
            for (float& x : values)
                x = entry(pattern);
            const testing::Laid laid_keys = lay_out(&keys, dims.n_kv_heads, dims.key_dim, pattern),
                                laid_values = lay_out(&values, dims.n_kv_heads, dims.value_dim, pattern);
            const Code code = on_both("append", [&](Cache* cache, Executor& executor) {
                if (cache == cache_.get())
                    return cache->append(layer, laid_keys.rows, laid_values.rows, n, executor);
                return cache->append(layer, {keys.data(), n_key, dims.key_dim},
                                     {values.data(), n_value, dims.value_dim}, n, executor);
            });
            PlainLayer& plain = layers_[layer];
            const bool fits = plain.tokens.size() + n <= config_.max_tokens;
            EXPECT(code == (fits ? Code::ok : Code::capacity_exceeded), "append gave %s", code_name(code));
            for (std::uint32_t t = 0; fits && t < n; ++t) {
                const auto row = [&](const std::vector<float>& x, std::size_t width) {
                    const auto from = x.begin() + static_cast<std::ptrdiff_t>(t * width);
                    return std::vector<double>(from, from + static_cast<std::ptrdiff_t>(width));
                };
                plain.tokens.push_back({row(keys, n_key), row(values, n_value)});
                for (const std::vector<double>* x : {&plain.tokens.back().key, &plain.tokens.back().value}) {
                    for (const double y : *x)
                        plain.squares += y * y;
                }
            }
        }
        most_tokens_ = std::max(most_tokens_, n_tokens());
        if (config_.soft_bytes > 0) renew_twin();
        // What comes as a prompt is attended before it is compressed and a window leaves it.
        attend(any_layer());
    }

    // Of a layer without keys.
    void append_to_none(std::uint32_t layer) {
        const float x = 1.0f;
        float out = 0.0f;
        const Code code = on_both("append", [&](Cache* cache, Executor& executor) {
            return cache->append(layer, {&x, 0, 0}, {&x, 0, 0}, 1, executor);
        });
        Queries queries;
        queries.data = &x;
        queries.n_queries = queries.n_heads = 1;
        const Code asked = on_both("attend", [&](Cache* cache, Executor& executor) {
            return cache->attend(layer, queries, &out, 1, executor);
        });
        EXPECT(code == Code::no_keys && asked == Code::no_keys, "a layer without keys gave %s and %s",
               code_name(code), code_name(asked));
    }

    void append_bad() {
        const LayerDims& dims = dims_[kept_];
        std::vector<float> keys(key_row(kept_), 1.0f), values(value_row(kept_), 1.0f);
        const std::pair<float, Code> bad[] = {{NAN, Code::non_finite},
                                              {INFINITY, Code::non_finite},
                                              {-INFINITY, Code::non_finite},
                                              {3e38f, Code::not_representable}};
        const auto& [x, expected] = choices_.of(bad);
        std::vector<float>& one = choices_.one_in(2) ? keys : values;
        one[choices_.below(static_cast<std::uint32_t>(one.size()))] = x;
        if (n_tokens() == config_.max_tokens) return;
        const Code code = on_both("append", [&](Cache* cache, Executor& executor) {
            return cache->append(kept_, {keys.data(), keys.size(), dims.key_dim},
                                 {values.data(), values.size(), dims.value_dim}, 1, executor);
        });
        EXPECT(code == expected, "%g gave %s", static_cast<double>(x), code_name(code));
    }

    void compress() {
        for (std::uint32_t layer = 0; layer < config_.n_layers; ++layer)
            (void)on_both("compress",
                          [&](Cache* cache, Executor& executor) { return cache->compress(layer, executor); });
        if (config_.soft_bytes > 0) renew_twin();
    }

    // Whether a layer's window would show what it has left, once n tokens are there and n_forgotten of them
    // are not.
    bool lacks(std::uint32_t layer, std::uint64_t n, std::uint64_t gap, std::uint64_t n_forgotten) const {
        if (config_.windows == nullptr || config_.windows[layer] == 0) return false;
        const std::uint64_t first = n - std::min<std::uint64_t>(n, config_.windows[layer]);
        return n_forgotten > 0 && first < gap + n_forgotten && n > gap;
    }

    // What a truncation or removal to n tokens must give, when it takes the tokens [first, end) of all.
    Code expected_of_cut(std::uint64_t n, std::uint64_t first, std::uint64_t end) const {
        bool lacking = false;
        for (std::uint32_t layer = 0; layer < config_.n_layers; ++layer) {
            const std::uint64_t gap = n_sinks(layer), held = n_forgotten(layer), gap_end = gap + held;
            const std::uint64_t gone = std::clamp(end, gap, gap_end) - std::clamp(first, gap, gap_end);
            const std::uint64_t n_gone = std::min(end, gap) - std::min(first, gap);
            lacking |= lacks(layer, n, gap - n_gone, held - gone);
        }
        EXPECT(!lacking || n + config_.rollback_tokens < most_tokens_,
               "%llu of %llu tokens were let go before their time", static_cast<unsigned long long>(n),
               static_cast<unsigned long long>(most_tokens_));
        return lacking ? Code::forgotten : Code::ok;
    }

    void truncate() {
        const std::uint64_t n = n_tokens();
        const std::uint64_t cut = std::min<std::uint64_t>(choices_.below(choices_.one_in(3) ? 400 : 20), n);
        if (cut == 0) return;
        const Code expected = expected_of_cut(n - cut, n - cut, n);
        bool lossless[2] = {};
        std::size_t i = 0;
        const Code code = on_both(
            "truncate", [&](Cache* cache, Executor&) { return cache->truncate(n - cut, &lossless[i++]); });
        EXPECT(code == expected && lossless[0] == lossless[1], "truncate gave %s", code_name(code));
        if (code != Code::ok) return;
        for (std::uint32_t i = 0; i < config_.n_layers; ++i) {
            if (dims_[i].has_keys()) layers_[i].take_back(n - cut, cut);
        }
    }

    void remove() {
        const std::uint64_t n = n_tokens();
        if (n == 0) return;
        const std::uint64_t first = choices_.below(static_cast<std::uint32_t>(n));
        const std::uint64_t cut =
            1 + choices_.below(static_cast<std::uint32_t>(std::min<std::uint64_t>(n - first, 60)));
        for (std::uint32_t i = 0; i < config_.n_layers; ++i) {
            if (dims_[i].has_keys() && layers_[i].tokens.size() != n) return;
        }
        const Code expected = expected_of_cut(n - cut, first, first + cut);
        const Code code = on_both("remove", [&](Cache* cache, Executor&) {
            return is_told_ ? cache->remove(first, cut, ropes_.data()) : cache->remove(first, cut);
        });
        EXPECT(code == expected, "remove gave %s", code_name(code));
        if (code != Code::ok) return;
        for (std::size_t i = 0; i < layers_.size(); ++i) {
            if (!dims_[i].has_keys()) continue;
            PlainLayer& layer = layers_[i];
            const RopeConfig& rope = ropes_[i];
            layer.take_back(first, cut);
            for (std::size_t t = first; t < layer.tokens.size(); ++t)
                turn_key(dims_[i], rope, -static_cast<double>(cut), &layer.tokens[t].key);
            layer.turned |= rope.n_pairs > 0;
        }
    }

    void forget() {
        if (config_.windows != nullptr || !choices_.one_in(3)) return;
        const std::uint32_t layer = choices_.below(config_.n_layers);
        const std::uint64_t token = choices_.below(300);
        (void)on_both("forget_before",
                      [&](Cache* cache, Executor&) { return cache->forget_before(layer, token); });
    }

    void shrink() {
        Choices aside = choices_.aside();
        const CacheStats before = cache_->stats();
        const std::uint64_t held = before.bytes.bytes;
        const std::uint64_t target = aside.one_in(2) ? 0 : aside.below(static_cast<std::uint32_t>(held + 1));
        std::uint64_t freed = 0;
        const Code code = on_both("shrink", [&](Cache* cache, Executor& executor) {
            return cache->shrink(target, cache == cache_.get() ? &freed : nullptr, executor);
        });
        EXPECT(code == Code::ok, "shrink gave %s", code_name(code));
        const CacheStats after = cache_->stats();
        EXPECT(bytes_of_blocks(after) <= bytes_of_blocks(before) && after.n_shrunk >= before.n_shrunk,
               "blocks take %llu bytes, took %llu", bytes_of_blocks(after), bytes_of_blocks(before));
        if (target > 0) renew_twin();
    }

    // What a target leaves depends on the scratch of the threads.
    void renew_twin() { EXPECT(cache_->fork(&twin_).ok(), "no twin"); }

    void reset() {
        cache_->reset();
        twin_->reset();
        layers_.assign(config_.n_layers, {});
        most_tokens_ = 0;
    }

    // The one that goes on is the fork or the first; the other one changes before it ends.
    void fork() {
        std::unique_ptr<Cache> other;
        EXPECT(cache_->fork(&other).ok(), "no fork");
        if (choices_.one_in(2)) std::swap(other, cache_);
        if (n_tokens() > 0 && choices_.one_in(2)) (void)other->truncate(n_tokens() / 2).ok();
        (void)other->compress(kept_, executor_).ok();
        if (choices_.one_in(3)) other->reset();
    }

    void save_and_load() {
        char target[64];
        std::snprintf(target, sizeof(target), "/dev/shm/gearkv-fuzz-%ld", static_cast<long>(getpid()));
        const Status saved = save_state(*cache_, target, {}, executor_);
        EXPECT(saved.ok(), "%s", saved.message());
        LoadOptions options;
        options.loading = choices_.one_in(2) ? StateLoading::map : StateLoading::copy;
        if (options.loading == StateLoading::map && choices_.one_in(2))
            options.checking = StateChecking::on_first_use;
        for (std::unique_ptr<Cache>* cache : {&cache_, &twin_}) {
            const Status loaded = load_state(target, config_, options, executor_, cache);
            EXPECT(loaded.ok(), "%s", loaded.message());
        }
        unlink(target);
    }

    void check_counts() const {
        for (std::uint32_t layer = 0; layer < config_.n_layers; ++layer) {
            EXPECT(cache_->n_tokens(layer) == layers_[layer].tokens.size(),
                   "%llu tokens in layer %u, not %zu",
                   static_cast<unsigned long long>(cache_->n_tokens(layer)), layer,
                   layers_[layer].tokens.size());
        }
    }

    LayerStats stats_of(std::uint32_t layer) const {
        LayerStats stats;
        EXPECT(cache_->layer_stats(layer, &stats).ok(), "no stats");
        return stats;
    }
    std::uint64_t n_forgotten(std::uint32_t layer) const { return stats_of(layer).n_forgotten; }
    std::uint64_t n_sinks(std::uint32_t layer) const { return stats_of(layer).n_sinks; }

    // All tokens of a layer that are there; those forgotten are zeros.
    void read(std::uint32_t layer, std::vector<float>* keys, std::vector<float>* values) {
        const std::uint64_t n = layers_[layer].tokens.size();
        const std::uint64_t gap = n_sinks(layer), gap_end = gap + n_forgotten(layer);
        const std::size_t n_key = key_row(layer), n_value = value_row(layer);
        keys->assign(n * n_key, 0.0f);
        values->assign(n * n_value, 0.0f);
        const auto part = [&](std::uint64_t first, std::uint64_t end) {
            if (first >= end) return;
            float *k = keys->data() + first * n_key, *v = values->data() + first * n_value;
            const Status status =
                cache_->read(layer, first, end - first, k, (end - first) * n_key, v, (end - first) * n_value);
            EXPECT(status.ok(), "%s", status.message());
        };
        part(0, gap);
        part(gap_end, n);
    }

    void check_contents() {
        for (std::uint32_t layer = 0; layer < config_.n_layers; ++layer) {
            const PlainLayer& plain = layers_[layer];
            std::vector<float> keys, values;
            read(layer, &keys, &values);
            double most = 0.0;
            for (const PlainToken& token : plain.tokens) {
                for (const std::vector<double>* row : {&token.key, &token.value}) {
                    for (const double x : *row)
                        most = std::max(most, std::fabs(x));
                }
            }
            most_ever_ = std::max(most_ever_, most);
            const std::uint64_t gap = n_sinks(layer), gap_end = gap + n_forgotten(layer);
            double share = codec_share(spec_);
            if (plain.turned && share <= 1.0) share += 0.01;
            // Halves are rounded at every turn, and so are the scales of codes.
            const double least = spec_ == "f32" && !plain.turned ? 0.0 : spec_ == "f16" ? 2e-6 : 1e-5;
            const double margin = share * most_ever_ + least;
            double lost = 0.0;
            const auto compare = [&](double expected, float found, std::size_t t, std::size_t c) {
                const double off = std::fabs(expected - static_cast<double>(found));
                EXPECT(share > 1.0 || off <= margin, "%s: token %zu, entry %zu is %g, was %g, margin %g",
                       spec_.c_str(), t, c, static_cast<double>(found), expected, margin);
                lost += off * off;
            };
            for (std::size_t t = 0; t < plain.tokens.size(); ++t) {
                if (t >= gap && t < gap_end) continue;
                for (std::size_t c = 0; c < key_row(layer); ++c)
                    compare(plain.tokens[t].key[c], keys[t * key_row(layer) + c], t, c);
                for (std::size_t c = 0; c < value_row(layer); ++c)
                    compare(plain.tokens[t].value[c], values[t * value_row(layer) + c], t, c);
            }
            // Spikes among small entries cost a trellis several times their squares; those that are gone
            // still had a part in the scales of others.
            EXPECT(lost <= 100.0 * plain.squares + 1e-9, "%s: %g of %g is lost", spec_.c_str(), lost,
                   plain.squares);
        }
    }

    // Whether the first query would see tokens that its layer's window gave back (what forget_before gives
    // back the caller wanted to be unseen).
    bool sees_forgotten(std::uint32_t layer, const Queries& queries) const {
        const std::uint64_t n = layers_[layer].tokens.size(),
                            end = queries.causal ? n - (queries.n_queries - 1) : n;
        std::uint64_t window = config_.windows == nullptr ? 0 : config_.windows[layer];
        if (queries.window > 0) window = window == 0 ? queries.window : std::min(window, queries.window);
        const std::uint64_t first = window == 0 || window >= end ? 0 : end - window, gap = n_sinks(layer);
        return config_.windows != nullptr && n_forgotten(layer) > 0 && first < gap + n_forgotten(layer) &&
               end > gap;
    }

    void attend(std::uint32_t layer) {
        const std::uint64_t n = layers_[layer].tokens.size();
        if (n == 0) return;
        const Asked asked(choices_, dims_[layer], config_.latent, n);
        const Queries& queries = asked.queries;
        const std::size_t room = asked.n_floats(dims_[layer]);
        std::vector<float> outs[2];
        Queries laid = asked.laid();
        laid.out_type = choices_.of(testing::all_types);
        std::vector<unsigned char> bytes(room * testing::bytes_of(laid.out_type), 0xff);
        outs[1].assign(room, NAN);
        const LayerStats before = stats_of(layer);
        const Code code = on_both("attend", [&](Cache* cache, Executor& executor) {
            return cache == cache_.get() ? cache->attend(layer, laid, bytes.data(), room, executor)
                                         : cache->attend(layer, queries, outs[1].data(), room, executor);
        });
        const bool lacks = sees_forgotten(layer, queries);
        EXPECT(code == (lacks ? Code::forgotten : Code::ok), "attend gave %s", code_name(code));
        if (lacks) return;
        outs[0] = testing::decoded(bytes, laid.out_type);
        const std::vector<float> expected = testing::rounded(outs[1], laid.out_type);
        EXPECT(std::memcmp(outs[0].data(), expected.data(), room * sizeof(float)) == 0,
               "%s: the twin has other bits", spec_.c_str());
        check_attention(layer, queries, outs[1].data());
        check_selections(layer, queries, before);
    }

    // What the cache says of what it read.
    void check_selections(std::uint32_t layer, const Queries& queries, const LayerStats& before) const {
        const LayerStats now = stats_of(layer);
        const bool selects = queries.mass < 1.0f || queries.most_share < 1.0f || queries.ranges != nullptr;
        const std::uint64_t n_kv_heads = dims_[layer].n_kv_heads,
                            n_rows = queries.n_heads / n_kv_heads * queries.n_queries;
        const std::uint64_t n = now.n_selections - before.n_selections;
        EXPECT(n == (selects ? n_kv_heads * ((n_rows + 7) / 8) : 0), "%llu selections",
               static_cast<unsigned long long>(n));
        EXPECT(
            now.share_read >= 0.0 && now.share_read <= 1.0 && now.mass_read >= 0.0 && now.mass_read <= 1.0001,
            "share %g, mass %g", now.share_read, now.mass_read);
    }

    // The cache, its twin, which is asked the same, and forks, which are asked something else.
    void attend_batch(std::uint32_t layer) {
        const std::uint64_t n = layers_[layer].tokens.size();
        const std::size_t n_requests = n == 0 ? 0 : 2 + choices_.below(3);
        std::vector<Asked> asked(n_requests);
        std::vector<std::unique_ptr<Cache>> forks(n_requests);
        std::vector<std::vector<float>> outs(n_requests);
        std::vector<AttendRequest> requests(n_requests);
        bool lacks = false;
        for (std::size_t i = 0; i < n_requests; ++i) {
            if (i > 1) EXPECT(cache_->fork(&forks[i]).ok(), "no fork");
            if (i != 1) asked[i] = Asked(choices_, dims_[layer], config_.latent, n);
            const Asked& one = asked[i == 1 ? 0 : i];
            lacks |= sees_forgotten(layer, one.queries);
            outs[i].assign(one.n_floats(dims_[layer]), NAN);
            Cache* cache = i == 0 ? cache_.get() : i == 1 ? twin_.get() : forks[i].get();
            requests[i] = {cache, i == 1 ? one.queries : one.laid(), outs[i].data(), outs[i].size()};
        }
        if (n_requests > 0 && choices_.one_in(8)) {
            requests[choices_.below(static_cast<std::uint32_t>(n_requests))].n_floats -= 1;
            const Code code = Cache::attend_batch(layer, requests.data(), n_requests, executor_).code();
            EXPECT(code == Code::wrong_size || (lacks && code == Code::forgotten), "attend_batch gave %s",
                   code_name(code));
            for (const std::vector<float>& out : outs)
                EXPECT(std::isnan(out[0]), "an output was touched");
            return;
        }
        const Code code = Cache::attend_batch(layer, requests.data(), n_requests, executor_).code();
        EXPECT(code == (lacks ? Code::forgotten : Code::ok), "attend_batch gave %s", code_name(code));
        if (lacks || n_requests == 0) return;
        EXPECT(std::memcmp(outs[0].data(), outs[1].data(), outs[0].size() * sizeof(float)) == 0,
               "%s: the twin has other bits in a batch", spec_.c_str());
        for (std::size_t i = 0; i < n_requests; ++i)
            check_attention(layer, asked[i == 1 ? 0 : i].queries, outs[i].data());
        for (std::size_t i = 2; i < n_requests; ++i) {
            std::vector<float> alone(outs[i].size(), NAN);
            const Status status = cache_->fork(&forks[i]);
            EXPECT(status.ok(), "%s", status.message());
            const Status again =
                forks[i]->attend(layer, requests[i].queries, alone.data(), alone.size(), executor_);
            EXPECT(again.ok(), "%s", again.message());
            EXPECT(std::memcmp(alone.data(), outs[i].data(), alone.size() * sizeof(float)) == 0,
                   "%s: other bits alone than in a batch", spec_.c_str());
        }
    }

    // What the cache gave beside attention, by the book, over what it holds.
    void check_attention(std::uint32_t layer, const Queries& queries, const float* found) {
        const std::uint64_t n = layers_[layer].tokens.size();
        std::vector<float> keys, values;
        read(layer, &keys, &values);
        Queries seen = queries;
        const std::uint64_t window = config_.windows == nullptr ? 0 : config_.windows[layer];
        if (window > 0) seen.window = seen.window == 0 ? window : std::min(seen.window, window);
        const std::uint64_t gap = n_sinks(layer), gap_end = gap + n_forgotten(layer);
        const PlainLayer& held = layers_[layer];
        const Largest hidden = largest_of(held.gone, held.largest(gap, gap_end - gap));
        // Other formats have no sections, and read everything whatever the mass.
        const bool is_trellis =
            (config_.latent && spec_ != "f32" && spec_ != "f16") || spec_.find("gear-1") == 0 ||
            spec_.find("gear-2") == 0 || spec_.find("gear-3") == 0 || spec_.find("gear-4") == 0 ||
            spec_.find("auto") == 0 || spec_.find("trellis") == 0 || spec_.find("k=gear-4") == 0;
        const bool is_partial = is_trellis && (queries.mass < 1.0f || queries.most_share < 1.0f);
        const PlainAttention plain = {dims_[layer], seen,    keys,   values, n,
                                      gap,          gap_end, noise_, hidden, is_partial};
        std::vector<double> expected;
        for (std::uint32_t query = 0; query < queries.n_queries; ++query) {
            for (std::uint32_t head = 0; head < queries.n_heads; ++head) {
                double margin;
                plain.attend(query, head, &expected, &margin);
                for (std::uint32_t c = 0; c < dims_[layer].value_dim; ++c, ++found) {
                    EXPECT(std::fabs(static_cast<double>(*found) - expected[c]) <= margin,
                           "%s at %s: query %u, head %u, channel %u of %llu tokens is %g, expected %g, "
                           "margin %g",
                           spec_.c_str(), level_name(cache_->level()), query, head, c,
                           static_cast<unsigned long long>(n), static_cast<double>(*found), expected[c],
                           margin);
                }
            }
        }
    }

    std::uint64_t n_tokens() const { return layers_[kept_].tokens.size(); }

    std::unique_ptr<Cache> cache_, twin_;
    std::vector<PlainLayer> layers_;
    double noise_ = 0.0, most_ever_ = 0.0;
    std::uint64_t most_tokens_ = 0;  // there ever were
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t n_bytes) {
    if (n_bytes > 4096) return 0;
    Life(data, n_bytes).live();
    return 0;
}
