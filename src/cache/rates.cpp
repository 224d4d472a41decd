// Every head's keys and values are compressed at a few rates, one tensor at a time, and attended by the
// sampled queries. Their errors, as shares of the output of the layer, fall nearly as a power of the rate
// between; planes go one by one to where the next saves most. bench/README.md tells what of this was
// measured.
#include "cache/rates.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <new>

#include "cache/query_rows.hpp"
#include "cache/rate_measure.hpp"

namespace gearkv {
namespace {

// Few tokens and queries say little of one head, so its curve is drawn half way to the geometric mean of the
// heads it shares with; and all the way where heads differ no more than one does between two prompts.
constexpr double most_own_share = 0.5;
constexpr double prompt_variance = 0.25;  // of the logarithm of a head's error
constexpr double key_lead = 0.625;        // of an even share: keys have more bits, as in the presets
constexpr std::uint64_t value_units = value_plane_words / key_plane_words;  // planes of keys in one of values

struct Granules {
    std::uint64_t key, value;  // of one head
};
Granules granules(const LayerDims& dims) {
    return {ceil_div(dims.key_dim, key_granule), ceil_div(dims.value_dim, value_granule)};
}

// The average rate of n_planes of all heads, rounded so that they all fit.
float rate_of(TensorKind kind, const LayerDims& dims, std::uint64_t n_planes) {
    const bool keys = kind == TensorKind::key;
    const Granules all = granules(dims);
    const double n = static_cast<double>((keys ? all.key : all.value) * dims.n_kv_heads);
    float rate = static_cast<float>(std::max(static_cast<double>(n_planes) / n, double{least_rate}));
    while (section_planes(kind, dims.n_kv_heads, dim_of(dims, kind), rate) < n_planes)
        rate = std::nextafter(rate, 8.0f);
    return rate;
}

// Key planes that a section of keys and one of values of a layer may take together, all heads.
std::int64_t section_units(const CacheConfig& config, const LayerDims& dims) {
    const std::uint64_t n_tokens = config.spec.buffer_tokens, n_heads = dims.n_kv_heads;
    std::uint64_t rest = 0;  // bytes beside the codes
    for (const TensorKind kind : {TensorKind::key, TensorKind::value}) {
        const BlockHeader header = lay_out(kind, dims, config.spec.buffer_tokens, 1.0f, false);
        rest += header.n_bytes - bytes_by_part(header).codes;
    }
    const double elements = static_cast<double>(n_tokens * n_heads) * (dims.key_dim + dims.value_dim);
    const double codes =
        static_cast<double>(config.spec.auto_bits) * elements / 8 - static_cast<double>(rest);
    const double sections = static_cast<double>(n_tokens / section_tokens);
    return static_cast<std::int64_t>(
        std::floor(codes / sections / (key_plane_words * sizeof(std::uint32_t))));
}

// ---- choosing ----

// What heads that bits may move between have in common.
class Common {
  public:
    void add(const Squares& squares) {
        ++n_;
        for (const TensorKind kind : {TensorKind::key, TensorKind::value}) {
            const int i = static_cast<int>(kind);
            double level = 0.0;
            for (std::uint32_t rate = 0; rate < most_rate(kind); ++rate) {
                sum_[i][rate] += squares.log_error[i][rate];
                level += squares.log_error[i][rate] / most_rate(kind);
            }
            level_[i] += level;
            level_squares_[i] += level * level;
        }
    }
    double mean(int kind, std::uint32_t rate) const { return sum_[kind][rate] / n_; }
    // What a head's own curve counts beside the mean.
    double own_share(TensorKind kind) const {
        const int i = static_cast<int>(kind);
        const double mean = level_[i] / n_, variance = level_squares_[i] / n_ - mean * mean;
        return variance <= prompt_variance ? 0.0 : most_own_share * (1.0 - prompt_variance / variance);
    }
    bool is_alike() const { return own_share(TensorKind::key) == 0.0 && own_share(TensorKind::value) == 0.0; }
    // By how much keys are heavier than their errors, in logarithms, when the rates of an even share are
    // right for heads that are as all are. Presets have these by what models lose, of which the error of one
    // layer's output knows less. A bit costs as much as there are channels.
    double key_weight(const LayerDims& dims, const LayerRates& even) const {
        return log_saved(TensorKind::value, even.spec(TensorKind::value).rate) -
               log_saved(TensorKind::key, even.spec(TensorKind::key).rate) +
               std::log(static_cast<double>(dims.key_dim) / dims.value_dim);
    }

  private:
    // By the next bit.
    double log_saved(TensorKind kind, float rate) const {
        const int i_kind = static_cast<int>(kind);
        const double at = std::max(static_cast<double>(rate) - 1.0, 0.0);
        const std::uint32_t i = std::min(static_cast<std::uint32_t>(at), most_rate(kind) - 2);
        const double slope = mean(i_kind, i + 1) - mean(i_kind, i);
        return mean(i_kind, i) + (at - i) * slope + std::log(std::max(-slope, 1e-3));
    }

    double n_ = 0.0;
    double sum_[2][n_rates] = {};
    double level_[2] = {}, level_squares_[2] = {};
};

// Squared error of one tensor of one head against its planes: what heads and layers lose adds up.
struct Curve {
    double log_error[n_rates];  // at 1, 2, ... bits
    std::uint32_t n_measured = 0;
    std::uint32_t n_granules = 0;
    std::uint32_t step = 0;  // planes that cost as much as one of values
    std::uint32_t most = 0;  // planes
    std::uint32_t planes = 0;
    double saved = 0.0;  // by the next step

    // Straight between the logarithms, and on beyond their ends.
    double error(std::uint32_t n_planes) const {
        const double at = static_cast<double>(n_planes) / n_granules - 1.0;
        const auto i = static_cast<std::uint32_t>(std::clamp(at, 0.0, static_cast<double>(n_measured - 2)));
        const double slope = log_error[i + 1] - log_error[i];
        return std::exp(log_error[i] + (at - i) * slope);
    }
    void find_saved() { saved = planes + step > most ? -1.0 : error(planes) - error(planes + step); }
};

// Planes cost the same in all layers: a head of more channels has more granules, and wants more of them.
Curve make_curve(const LayerDims& dims, TensorKind kind, const Squares& squares, const Common& common,
                 double weight) {
    const bool keys = kind == TensorKind::key;
    const int i_kind = static_cast<int>(kind);
    const Granules all = granules(dims);
    Curve curve;
    curve.n_measured = most_rate(kind);
    curve.n_granules = static_cast<std::uint32_t>(keys ? all.key : all.value);
    curve.step = keys ? value_units : 1;
    curve.most = curve.n_granules * curve.n_measured;
    curve.planes = static_cast<std::uint32_t>(double{least_rate} * curve.n_granules);
    const double own_share = common.own_share(kind);
    for (std::uint32_t i = 0; i < curve.n_measured; ++i) {
        curve.log_error[i] =
            weight + own_share * squares.log_error[i_kind][i] + (1.0 - own_share) * common.mean(i_kind, i);
    }
    curve.find_saved();
    return curve;
}

// One head's curve, and whose it is.
struct Share {
    Curve curve;
    std::uint32_t layer, head;
    TensorKind kind;
    bool operator<(const Share& other) const {
        if (curve.saved != other.curve.saved) return curve.saved < other.curve.saved;
        return layer != other.layer ? layer > other.layer : head > other.head;  // the same order everywhere
    }
};

// Gives the units to the shares, one step after the other, where they save most.
void spend(Share* shares, std::size_t n_shares, std::int64_t n_units) {
    for (std::size_t i = 0; i < n_shares; ++i)
        n_units -=
            shares[i].curve.planes * (shares[i].kind == TensorKind::key ? 1 : std::int64_t{value_units});
    std::make_heap(shares, shares + n_shares);
    for (; n_units >= std::int64_t{value_units}; n_units -= value_units) {
        std::pop_heap(shares, shares + n_shares);
        Share& best = shares[n_shares - 1];
        if (best.curve.saved < 0.0) return;  // all have what they can take
        best.curve.planes += best.curve.step;
        best.curve.find_saved();
        std::push_heap(shares, shares + n_shares);
    }
}

}  // namespace

Status initial_spec(const CacheConfig& config, std::uint32_t layer, KvSpec* out) noexcept {
    *out = config.spec;
    const LayerDims dims = config.dims_of(layer);
    if (config.spec.auto_bits == 0.0f || !dims.has_keys()) return {};
    const Granules all = granules(dims);
    const double units = static_cast<double>(section_units(config, dims)) / dims.n_kv_heads;
    const double key = static_cast<double>(all.key), value = static_cast<double>(value_units * all.value);
    double value_rate = (units - key_lead * key) / (key + value);
    value_rate = std::clamp(value_rate, double{least_rate}, static_cast<double>(max_value_width));
    const double key_rate = std::min((units - value_rate * value) / key, static_cast<double>(max_key_width));
    if (key_rate < double{least_rate}) {
        return Status::error(Code::bad_spec,
                             "auto:%g cannot be reached with %u heads of %u and %u channels of layer %u and "
                             "blocks of %u tokens; "
                             "expected more bits",
                             static_cast<double>(config.spec.auto_bits), dims.n_kv_heads, dims.key_dim,
                             dims.value_dim, layer, config.spec.buffer_tokens);
    }
    const auto floor_planes = [&](double rate, std::uint64_t n) {
        return static_cast<std::uint64_t>(rate * static_cast<double>(n * dims.n_kv_heads) + 1e-6);
    };
    out->key.rate = rate_of(TensorKind::key, dims, floor_planes(key_rate, all.key));
    out->value.rate = rate_of(TensorKind::value, dims, floor_planes(value_rate, all.value));
    return {};
}

KvSpec first_spec(const CacheConfig& config, std::uint32_t layer) noexcept {
    KvSpec spec;
    (void)initial_spec(config, layer, &spec).ok();
    if (const LayerRule* rule = config.spec.rule_of(layer, config.n_layers); rule != nullptr) {
        spec.key = rule->key;
        spec.value = rule->value;
    }
    return spec;
}

bool RateChooser::create(CacheContext* context) noexcept {
    if (context->config.spec.auto_bits == 0.0f) return true;
    const std::uint32_t n = context->config.n_layers;
    samples_ = static_cast<QuerySample*>(context->memory().take(n * sizeof(QuerySample), Use::table));
    if (samples_ == nullptr) return false;
    for (std::uint32_t i = 0; i < n; ++i)
        new (samples_ + i) QuerySample;
    return true;
}

bool RateChooser::copy(CacheContext* context, const RateChooser& other) noexcept {
    if (!create(context)) return false;
    is_done_ = other.is_done_;
    for (std::uint32_t i = 0; samples_ != nullptr && i < context->config.n_layers; ++i) {
        const QuerySample& sample = other.samples_[i];
        if (sample.rows != nullptr && !restore(context, i, sample, sample.rows)) return false;
    }
    return true;
}

bool RateChooser::restore(CacheContext* context, std::uint32_t layer, const QuerySample& sample,
                          const void* rows) noexcept {
    const std::uint32_t dim = context->config.dims_of(layer).key_dim;
    const std::uint64_t row_bytes = std::uint64_t{sample.n_heads} * dim * sizeof(float);
    auto* own =
        static_cast<float*>(context->memory().take(QuerySample::most_queries * row_bytes, Use::scratch));
    if (own == nullptr) return false;
    std::memcpy(own, rows, sample.n_queries * row_bytes);
    samples_[layer] = sample;
    samples_[layer].rows = own;
    return true;
}

void RateChooser::forget_queries(CacheContext* context) noexcept {
    for (std::uint32_t i = 0; i < context->config.n_layers; ++i)
        forget_queries(context, i);
}

void RateChooser::forget_queries(CacheContext* context, std::uint32_t layer) noexcept {
    QuerySample& sample = samples_[layer];
    const std::uint64_t n =
        std::uint64_t{QuerySample::most_queries} * sample.n_heads * context->config.dims_of(layer).key_dim;
    context->memory().give_back(sample.rows, n * sizeof(float), Use::scratch);
    sample = {};
}

bool RateChooser::truncate(CacheContext* context, std::uint32_t layer, std::uint64_t n_tokens) noexcept {
    if (samples_[layer].n_queries == 0 || samples_[layer].n_tokens <= n_tokens) return true;
    forget_queries(context, layer);
    return false;
}

void RateChooser::destroy(CacheContext* context) noexcept {
    if (samples_ == nullptr) return;
    forget_queries(context);
    context->memory().give_back(samples_, context->config.n_layers * sizeof(QuerySample), Use::table);
    samples_ = nullptr;
}

void RateChooser::reset(CacheContext* context) noexcept {
    if (samples_ == nullptr) return;
    forget_queries(context);
    is_done_ = false;
}

Status RateChooser::keep(CacheContext* context, std::uint32_t layer, const Queries& queries,
                         std::uint64_t n_tokens) noexcept {
    QuerySample& sample = samples_[layer];
    const std::uint32_t dim = context->config.dims_of(layer).key_dim;
    if (sample.n_heads != queries.n_heads) {
        const auto bytes = [&](std::uint32_t n_heads) {
            return std::uint64_t{QuerySample::most_queries} * n_heads * dim * sizeof(float);
        };
        auto* rows = static_cast<float*>(context->memory().take(bytes(queries.n_heads), Use::scratch));
        if (rows == nullptr) {
            return memory_error(*context, "to keep queries of layer %u until rates are chosen", layer);
        }
        context->memory().give_back(sample.rows, bytes(sample.n_heads), Use::scratch);
        sample = {};
        sample.rows = rows;
        sample.n_heads = queries.n_heads;
    }
    sample.scale = queries.scale;
    sample.n_tokens = n_tokens;
    // The last ones, or every other of them, so that those of a long call still have tokens to be measured on
    // before them.
    const std::uint32_t n = std::min(queries.n_queries, QuerySample::most_queries);
    const std::uint32_t step = std::clamp(queries.n_queries / (4 * n), 1u, 2u);
    for (std::uint32_t i = 0; i < n; ++i) {
        const std::size_t query = queries.n_queries - 1 - std::size_t{i} * step;
        const std::uint32_t slot = sample.next;
        for (std::size_t head = 0; head < queries.n_heads; ++head) {
            float* to = sample.rows + (slot * std::size_t{queries.n_heads} + head) * dim;
            const float* row = row_floats(context->kernels->codec, query_rows(queries), query, head, dim, to);
            if (row != to) std::copy_n(row, dim, to);
        }
        sample.visible[slot] = queries.causal ? n_tokens - (queries.n_queries - 1 - query) : n_tokens;
        sample.next = (slot + 1) % QuerySample::most_queries;
        sample.n_queries = std::max(sample.n_queries, slot + 1);
    }
    return {};
}

Status RateChooser::choose(CacheContext* context, LayerStream* const* layers, Executor& executor) noexcept {
    const CacheConfig& config = context->config;
    const auto is_measured = [&](std::uint32_t i) {
        return layers[i] != nullptr && can_measure(i, *layers[i]) &&
               tells_enough(window_of(config, i), *layers[i], samples_[i]);
    };
    std::uint64_t n_heads = 0;
    std::uint32_t most_heads = 0;  // of a layer
    MeasureBytes needed;
    for (std::uint32_t i = 0; i < config.n_layers; ++i) {
        if (!is_measured(i)) continue;
        const LayerDims dims = config.dims_of(i);
        n_heads += dims.n_kv_heads;
        most_heads = std::max(most_heads, dims.n_kv_heads);
        needed.include(bytes_to_measure(dims, window_of(config, i), *layers[i], samples_[i]));
    }
    const std::uint64_t measure_bytes = needed.sum(), n_shares = 2 * n_heads;
    const std::uint64_t starts_bytes = round_up((most_heads + std::uint64_t{1}) * sizeof(std::uint32_t), 64);
    const std::uint64_t n_bytes =
        measure_bytes + n_heads * sizeof(Squares) + n_shares * sizeof(Share) + starts_bytes;
    auto* base = static_cast<unsigned char*>(context->memory().take(n_bytes, Use::scratch));
    if (base == nullptr) {
        return memory_error(*context, "to choose the rates of %u layers: %llu bytes", config.n_layers,
                            static_cast<unsigned long long>(n_bytes));
    }
    const MeasureMemory memory = place_memory(needed, base);
    auto* squares = reinterpret_cast<Squares*>(base + measure_bytes);
    auto* shares = reinterpret_cast<Share*>(squares + n_heads);
    auto* starts = reinterpret_cast<std::uint32_t*>(shares + n_shares);
    std::size_t n = 0;
    for (std::uint32_t i = 0; i < config.n_layers; ++i) {
        if (!is_measured(i)) continue;
        const std::uint32_t n_own = config.dims_of(i).n_kv_heads;
        for (std::uint32_t head = 0; head < n_own; ++head)
            new (squares + n + head) Squares();
        measure_layer(*context, i, *layers[i], samples_[i], memory, squares + n, executor);
        n += n_own;
    }
    n = 0;
    for (std::uint32_t i = 0; i < config.n_layers; ++i) {
        // Layers share with those of the same window, which hold as many tokens: bytes move between no
        // others.
        const auto shares_with = [&](std::uint32_t j) {
            return is_measured(j) && window_of(config, j) == window_of(config, i);
        };
        bool is_first = is_measured(i);
        for (std::uint32_t j = 0; j < i; ++j)
            is_first = is_first && !shares_with(j);
        if (!is_first) continue;
        const auto for_layers = [&](const auto& work) {
            const Squares* of_layer = squares;
            for (std::uint32_t j = 0; j < config.n_layers; ++j) {
                if (!is_measured(j)) continue;
                if (shares_with(j)) work(j, of_layer);
                of_layer += config.dims_of(j).n_kv_heads;
            }
        };
        Common common;
        for_layers([&](std::uint32_t j, const Squares* of_layer) {
            for (std::uint32_t head = 0; head < config.dims_of(j).n_kv_heads; ++head)
                common.add(of_layer[head]);
        });
        if (common.is_alike()) continue;
        const std::size_t first = n;
        std::int64_t n_units = 0;  // what the layers have now are their even shares
        for_layers([&](std::uint32_t j, const Squares* of_layer) {
            const LayerDims dims = config.dims_of(j);
            const LayerRates& rates = layers[j]->rates();
            const double key_weight = common.key_weight(dims, rates);
            for (const TensorKind kind : {TensorKind::key, TensorKind::value}) {
                const bool keys = kind == TensorKind::key;
                for (std::uint32_t head = 0; head < dims.n_kv_heads; ++head) {
                    const Curve curve =
                        make_curve(dims, kind, of_layer[head], common, keys ? key_weight : 0.0);
                    new (shares + n++) Share{curve, j, head, kind};
                }
                n_units += (keys ? 1 : std::int64_t{value_units}) *
                           section_planes(kind, dims.n_kv_heads, dim_of(dims, kind), rates.spec(kind).rate);
            }
        });
        spend(shares + first, n - first, n_units);
    }
    for (std::uint32_t i = 0; i < config.n_layers; ++i) {
        const auto is_own = [&](const Share& share) { return share.layer == i; };
        if (std::none_of(shares, shares + n, is_own)) continue;
        const LayerDims dims = config.dims_of(i);
        for (const TensorKind kind : {TensorKind::key, TensorKind::value}) {
            std::fill_n(starts, dims.n_kv_heads + 1, 0u);
            for (std::size_t j = 0; j < n; ++j) {
                if (shares[j].layer == i && shares[j].kind == kind)
                    starts[shares[j].head + 1] = shares[j].curve.planes;
            }
            for (std::uint32_t head = 0; head < dims.n_kv_heads; ++head)
                starts[head + 1] += starts[head];
            layers[i]->mutable_rates()->set_planes(kind, starts,
                                                   rate_of(kind, dims, starts[dims.n_kv_heads]));
        }
    }
    context->memory().give_back(base, n_bytes, Use::scratch);
    forget_queries(context);
    is_done_ = true;
    return {};
}

}  // namespace gearkv
