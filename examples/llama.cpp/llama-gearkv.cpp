#include "llama-gearkv.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <new>
#include <stdexcept>
#include <string>
#include <vector>

#include "gearkv/executor.hpp"
#include "ggml-backend.h"
#include "ggml.h"
#include "llama-batch.h"
#include "llama-cparams.h"
#include "llama-gearkv-seqs.h"
#include "llama-impl.h"
#include "llama-io.h"
#include "llama-model.h"

using gearkv::Status;
using llama_gearkv_detail::Run;
using llama_gearkv_detail::Sequences;

namespace {

// Of the thread that makes a context, and of the thread that computes a graph.
thread_local const llama_cparams* context_params = nullptr;
thread_local bool made_one = false;
thread_local std::atomic<bool> step_failed{false};

// What get_k named last, for build_attn_mha.
struct Fetched {
    llama_gearkv* gear;
    int layer, il;
    const ggml_tensor* keys;
};
thread_local Fetched fetched{};

// The layers of one graph that attend, and how.
struct Operator {
    llama_gearkv* gear = nullptr;
    int layer = 0, il = 0;
    bool has_rows = false;  // else it attends what another layer has appended
    bool has_sinks = false;
    llama_gearkv_rules rules{};
    std::vector<float> slopes;
};

[[noreturn]] void refuse(const std::string& why) {
    throw std::runtime_error("gearkv: " + why);
}

[[noreturn]] void refuse_model(const std::string& why) {
    refuse(why + "; this model needs a cache of the engine's own");
}

std::string& chosen_spec() {
    static std::string spec;
    return spec;
}

// Null for none.
const char* spec_text() {
    if (!chosen_spec().empty()) return chosen_spec().c_str();
    const char* const text = std::getenv("GEARKV_SPEC");
    return text != nullptr && *text != 0 ? text : nullptr;
}

}  // namespace

bool llama_gearkv_cache_type(const char* value, int which) {
    static std::string chosen[2];
    for (int type = 0; type < GGML_TYPE_COUNT; ++type) {
        const char* const name = ggml_type_name(static_cast<ggml_type>(type));
        if (name != nullptr && std::strcmp(name, value) == 0) return false;
    }
    gearkv::KvSpec spec;
    if (!gearkv::parse_spec(value, &spec).ok()) return false;
    chosen[which] = value;
    if (chosen[1].empty() || chosen[0] == chosen[1])
        chosen_spec() = chosen[0];
    else
        chosen_spec() = "k=" + (chosen[0].empty() ? "f16" : chosen[0]) + ";v=" + chosen[1];
    return true;
}

struct llama_gearkv {
    Sequences sequences;
    std::string spec;
    std::uint32_t window = 0;
    std::uint32_t n_seq_max = 1;
    bool one_stream_each = false;
    std::map<int, std::unique_ptr<Operator>>
        operators;  // by layer of the model; their address is in the graphs
    struct Rows {
        ggml_tensor* cur[2];
        int il;
    };
    std::map<int, Rows> stored;  // by layer of the cache, of the graph that is being built

    std::uint64_t serial = 0;  // of the ubatch
    std::uint32_t n_tokens = 0;
    std::atomic<bool>* failed = nullptr;  // of the thread that computes it
    std::vector<gearkv::AttendRequest> requests;
    std::array<std::atomic<gearkv::CrewExecutor*>, 513> crews{};  // by number of threads

    ~llama_gearkv() {
        for (auto& crew : crews)
            delete crew.load();
    }
    // One for every number of threads the engine comes with; null where there is none, and one thread has to
    // do.
    gearkv::CrewExecutor* crew(unsigned n_threads) noexcept {
        if (n_threads >= crews.size()) return nullptr;
        auto& slot = crews[n_threads];
        gearkv::CrewExecutor* there = slot.load(std::memory_order_acquire);
        if (there != nullptr) return there;
        auto* const fresh = new (std::nothrow) gearkv::CrewExecutor(n_threads);
        if (fresh == nullptr || slot.compare_exchange_strong(there, fresh)) return fresh;
        delete fresh;
        return there;
    }
    void describe() const {
        if (std::getenv("GEARKV_STATS") == nullptr) return;
        sequences.describe([&](const std::string& line) {
            std::fprintf(stderr, "gearkv: %s, window %u: %s\n", spec.c_str(), window, line.c_str());
        });
    }
};

void llama_gearkv_delete::operator()(llama_gearkv* gear) const {
    gear->describe();
    delete gear;
}

llama_gearkv_scope::llama_gearkv_scope(const llama_cparams& cparams) : outer_(context_params) {
    context_params = &cparams;
    made_one = false;
}

llama_gearkv_scope::~llama_gearkv_scope() {
    context_params = outer_;
    if (spec_text() != nullptr && !made_one)
        LLAMA_LOG_WARN("gearkv: this context has no KV cache that a SPEC could be for\n");
}

namespace {

// Radians a position for every pair of channels, as ggml_rope_ext has them (linear scaling, factors, YaRN).
std::vector<double> rope_frequencies(const llama_model& model, const llama_hparams& hparams,
                                     std::uint32_t il) {
    const llama_cparams& cparams = *context_params;
    std::vector<double> out;
    if (hparams.rope_type == LLAMA_ROPE_TYPE_NONE || !hparams.has_rope(il)) return out;
    const int n_rot = static_cast<int>(hparams.n_rot(il));
    const double base = model.get_rope_freq_base(cparams, static_cast<int>(il));
    const double scale = model.get_rope_freq_scale(cparams, static_cast<int>(il));
    std::vector<float> factors;
    const ggml_tensor* const tensor = model.get_rope_factors(cparams, static_cast<int>(il));
    if (tensor != nullptr && tensor->data != nullptr && tensor->type == GGML_TYPE_F32 &&
        tensor->ne[0] >= n_rot / 2) {
        factors.resize(static_cast<std::size_t>(n_rot / 2));
        ggml_backend_tensor_get(tensor, factors.data(), 0, factors.size() * sizeof(float));
    }
    float ends[2];
    ggml_rope_yarn_corr_dims(n_rot, static_cast<int>(cparams.n_ctx_orig_yarn), static_cast<float>(base),
                             cparams.yarn_beta_fast, cparams.yarn_beta_slow, ends);
    for (int pair = 0; pair < n_rot / 2; ++pair) {
        double plain = std::pow(base, -2.0 * pair / n_rot);
        if (!factors.empty()) plain /= factors[static_cast<std::size_t>(pair)];
        const double ramp = (pair - ends[0]) / std::max(0.001f, ends[1] - ends[0]);
        const double kept = (1 - std::clamp(ramp, 0.0, 1.0)) * cparams.yarn_ext_factor;
        out.push_back(plain * (scale * (1 - kept) + kept));
    }
    return out;
}

void check_supported(const llama_model& model, const llama_hparams& hparams, const llama_gearkv_shape& shape,
                     const std::vector<std::uint32_t>& layers) {
    if (hparams.is_mla() || model.hparams.is_mla())
        refuse_model("latent keys and values (MLA) are not supported");
    if (model.arch == LLM_ARCH_GROK) refuse_model("Grok's scores are not supported");
    if (shape.shared) refuse("a cache that shows the cells of another context's is not supported");
    if (shape.swa_type != LLAMA_SWA_TYPE_NONE && shape.swa_type != LLAMA_SWA_TYPE_STANDARD)
        refuse_model("chunked and symmetric windows are not supported");
    if (ggml_is_quantized(static_cast<ggml_type>(shape.type_k)) ||
        ggml_is_quantized(static_cast<ggml_type>(shape.type_v)))
        refuse("a SPEC takes the place of quantised cache types, and is given for keys and values");
    for (const std::uint32_t il : layers) {
        if (shape.offload &&
            ggml_backend_dev_type(model.dev_layer(static_cast<int>(il))) != GGML_BACKEND_DEVICE_TYPE_CPU)
            refuse("layer " + std::to_string(il) + " is on a GPU (-ngl 0 keeps all on the CPU)");
    }
}

}  // namespace

llama_gearkv_ptr llama_gearkv_new(const llama_model& model, const llama_hparams& hparams,
                                  const llama_gearkv_shape& shape,
                                  const llama_memory_i::layer_filter_cb& filter) {
    const char* const spec = spec_text();
    if (spec == nullptr) return nullptr;
    std::vector<std::uint32_t> layers;  // of the model, in the order the engine gives them in the cache
    for (std::uint32_t il = 0; il < hparams.n_layer_all; ++il) {
        if (hparams.has_kv(il) && (!filter || filter(static_cast<std::int32_t>(il)))) layers.push_back(il);
    }
    made_one = true;
    const auto has_keys = [&](std::uint32_t il) { return hparams.n_head_kv(il) > 0; };
    if (std::none_of(layers.begin(), layers.end(), has_keys)) return nullptr;
    if (context_params == nullptr) refuse("a cache outside of a context is not supported");
    check_supported(model, hparams, shape, layers);

    llama_gearkv_detail::Setup setup;
    auto& config = setup.cache;
    config.close_prompts = true;
    // Cells of windows are used again, so that sequences grow beyond them.
    config.max_tokens = std::max({shape.n_cells, context_params->n_ctx, hparams.n_ctx_train});
    for (const std::uint32_t il : layers) {
        // Layers without attention (of Nemotron, say) have a place in the engine's cache too.
        setup.dims.push_back(has_keys(il)
                                 ? gearkv::LayerDims{hparams.n_head_kv(il), hparams.n_embd_head_k(il),
                                                     hparams.n_embd_head_v(il)}
                                 : gearkv::LayerDims());
        setup.frequencies.push_back(has_keys(il) ? rope_frequencies(model, hparams, il)
                                                 : std::vector<double>());
    }
    setup.interleaved = hparams.rope_type == LLAMA_ROPE_TYPE_NORM;
    setup.window = shape.swa_type == LLAMA_SWA_TYPE_NONE ? 0 : shape.n_swa;
    setup.give_back = setup.window > 0 && shape.n_cells < context_params->n_ctx_seq;  // not with --swa-full
    setup.distances_matter = hparams.f_max_alibi_bias > 0.0f;
    setup.one_stream_each = shape.n_streams > 1;
    Status status = gearkv::parse_spec(spec, &config.spec);
    llama_gearkv_ptr gear(new llama_gearkv);
    if (status.ok()) status = gear->sequences.create(setup);
    if (!status.ok()) throw std::runtime_error(std::string("gearkv: ") + spec + ": " + status.message());
    gear->spec = spec;
    gear->window = setup.window;
    gear->n_seq_max = shape.n_seq_max;
    gear->one_stream_each = setup.one_stream_each;
    LLAMA_LOG_INFO("gearkv: %s holds the keys and values of %td layers, window %u\n", spec,
                   std::count_if(layers.begin(), layers.end(), has_keys), setup.window);
    for (std::size_t i = 0; i < layers.size(); ++i) {
        const gearkv::LayerDims& dims = setup.dims[i];
        if (dims.has_keys() && (i == 0 || dims != setup.dims[i - 1]))
            LLAMA_LOG_INFO("gearkv: from layer %u on %u heads of %u and %u channels\n", layers[i],
                           dims.n_kv_heads, dims.key_dim, dims.value_dim);
    }
    return gear;
}

void llama_gearkv_clear(llama_gearkv& gear) {
    gear.describe();
    gear.sequences.clear();
}

bool llama_gearkv_seq_rm(llama_gearkv& gear, llama_seq_id seq, llama_pos p0, llama_pos p1) {
    return gear.sequences.remove(seq, p0, p1);
}

void llama_gearkv_seq_cp(llama_gearkv& gear, llama_seq_id src, llama_seq_id dst, llama_pos p0, llama_pos p1) {
    gear.sequences.copy(src, dst, p0, p1);
}

void llama_gearkv_seq_keep(llama_gearkv& gear, llama_seq_id seq) {
    gear.sequences.keep(seq);
}

void llama_gearkv_seq_add(llama_gearkv& gear, llama_seq_id seq, llama_pos p0, llama_pos p1, llama_pos shift) {
    if (shift != 0) gear.sequences.move(seq, p0, p1, [shift](llama_pos pos) { return pos + shift; });
}

void llama_gearkv_seq_div(llama_gearkv& gear, llama_seq_id seq, llama_pos p0, llama_pos p1, int d) {
    if (d != 1) gear.sequences.move(seq, p0, p1, [d](llama_pos pos) { return pos / d; });
}

llama_pos llama_gearkv_pos_min(const llama_gearkv& gear, llama_seq_id seq, llama_pos pos_min) {
    return gear.sequences.pos_min(seq, pos_min);
}

void llama_gearkv_write(llama_gearkv& gear, llama_io_write_i& io, llama_seq_id seq, std::uint32_t stream) {
    const llama_seq_id only = gear.one_stream_each ? static_cast<llama_seq_id>(stream) : seq;
    const Status status =
        gear.sequences.write(only, [&](const void* bytes, std::size_t n) { io.write(bytes, n); });
    if (!status.ok()) throw std::runtime_error(std::string("gearkv: ") + status.message());
}

bool llama_gearkv_read(llama_gearkv& gear, llama_io_read_i& io, llama_seq_id seq) {
    const Status status = gear.sequences.read(seq, static_cast<std::int32_t>(gear.n_seq_max),
                                              [&](void* bytes, std::size_t n) { io.read(bytes, n); });
    if (!status.ok()) LLAMA_LOG_ERROR("gearkv: %s: %s\n", gearkv::code_name(status.code()), status.message());
    return status.ok();
}

bool llama_gearkv_begin(llama_gearkv& gear, const llama_ubatch& ubatch) {
    ++gear.serial;
    gear.failed = &step_failed;
    gear.n_tokens = ubatch.n_tokens;
    const Status status = gear.sequences.begin({ubatch.n_tokens, ubatch.pos, ubatch.n_seq_id, ubatch.seq_id});
    if (!status.ok()) LLAMA_LOG_ERROR("gearkv: %s: %s\n", gearkv::code_name(status.code()), status.message());
    return status.ok();
}

bool llama_gearkv_failed() {
    return step_failed.exchange(false);
}

namespace {

const float* row(const ggml_tensor* tensor, std::uint32_t token) {
    return reinterpret_cast<const float*>(static_cast<const char*>(tensor->data) + token * tensor->nb[2]);
}

gearkv::Rows rows(const ggml_tensor* tensor, std::uint32_t token) {
    return {row(tensor, token), tensor->nb[2] / sizeof(float), tensor->nb[1] / sizeof(float)};
}

Status attend(llama_gearkv& gear, std::uint32_t layer, gearkv::Executor& executor) {
    const Status status =
        gearkv::Cache::attend_batch(layer, gear.requests.data(), gear.requests.size(), executor);
    gear.requests.clear();
    return status;
}

Status compute(const Operator& op, ggml_tensor* dst, gearkv::Executor& executor) {
    llama_gearkv& gear = *op.gear;
    const auto layer = static_cast<std::uint32_t>(op.layer);
    const ggml_tensor* const q = dst->src[0];
    const ggml_tensor* const sinks = op.has_sinks ? dst->src[op.has_rows ? 3 : 1] : nullptr;
    if (q->ne[2] != gear.n_tokens)
        return Status::error(gearkv::Code::wrong_size, "%lld tokens, but the batch has %u",
                             static_cast<long long>(q->ne[2]), gear.n_tokens);
    if (!op.rules.causal && (gear.window > 0 || !op.slopes.empty()))
        return Status::error(gearkv::Code::invalid_argument,
                             "attention that is not causal is not supported with windows or ALiBi");
    gear.requests.clear();
    for (const Run& run : gear.sequences.runs()) {
        // A sequence that comes again goes on behind what it has been asked.
        const auto asked = [&](const gearkv::AttendRequest& request) {
            return std::find(run.caches.begin(), run.caches.end(), request.cache) != run.caches.end();
        };
        if (std::any_of(gear.requests.begin(), gear.requests.end(), asked)) {
            if (Status status = attend(gear, layer, executor); !status.ok()) return status;
        }
        for (std::size_t i = 0; op.has_rows && i < run.caches.size(); ++i) {
            if (i == 0 && run.caches[0]->n_tokens(layer) != run.n_before)
                return Status::error(gearkv::Code::wrong_size, "%llu tokens before this batch, not %llu",
                                     static_cast<unsigned long long>(run.caches[0]->n_tokens(layer)),
                                     static_cast<unsigned long long>(run.n_before));
            Status status = run.caches[i]->append(layer, rows(dst->src[1], run.first),
                                                  rows(dst->src[2], run.first), run.n, executor);
            if (!status.ok()) return status;
        }
        gearkv::AttendRequest request;
        request.cache = run.caches[0];
        request.out = reinterpret_cast<float*>(static_cast<char*>(dst->data) + run.first * dst->nb[1]);
        request.n_floats = static_cast<std::size_t>(run.n) * static_cast<std::size_t>(dst->ne[0]);
        auto& queries = request.queries;
        queries.data = row(q, run.first);
        queries.query_stride = q->nb[2] / sizeof(float);
        queries.head_stride = q->nb[1] / sizeof(float);
        queries.n_queries = run.n;
        queries.n_heads = static_cast<std::uint32_t>(q->ne[1]);
        queries.scale = op.rules.scale;
        queries.soft_cap = op.rules.soft_cap;
        queries.causal = op.rules.causal;
        queries.window = gear.window;
        queries.slopes = op.slopes.empty() ? nullptr : op.slopes.data();
        queries.sinks = sinks != nullptr ? static_cast<const float*>(sinks->data) : nullptr;
        gear.requests.push_back(request);
    }
    return attend(gear, layer, executor);
}

// Every worker of the engine comes here; the first one computes, the others lend it a hand.
void run_operator(ggml_tensor* dst, int ith, int nth, void* userdata) {
    const Operator& op = *static_cast<const Operator*>(userdata);
    llama_gearkv& gear = *op.gear;
    const std::uint64_t ticket = (gear.serial << 16) + static_cast<std::uint64_t>(op.il) + 1;
    gearkv::CrewExecutor* const crew = gear.crew(static_cast<unsigned>(nth));
    if (ith != 0) {
        if (crew != nullptr) static_cast<void>(crew->help(ticket));
        return;
    }
    Status status;
    if (!gear.failed->load()) {
        status = compute(op, dst,
                         crew != nullptr ? static_cast<gearkv::Executor&>(*crew) : gearkv::serial_executor());
    }
    if (!status.ok()) {
        LLAMA_LOG_ERROR("gearkv: layer %d: %s: %s\n", op.il, gearkv::code_name(status.code()),
                        status.message());
        gear.failed->store(true);
    }
    // The layers behind it are computed on nothing; the graph fails when it ends.
    if (gear.failed->load()) std::memset(dst->data, 0, ggml_nbytes(dst));
    if (crew != nullptr) crew->release(ticket);
}

std::vector<float> alibi_slopes(float max_bias, int n_heads) {
    std::vector<float> slopes;
    if (max_bias <= 0.0f) return slopes;
    const int n_even = 1 << static_cast<int>(std::floor(std::log2(n_heads)));
    for (int head = 0; head < n_heads; ++head) {
        const float power =
            head < n_even ? static_cast<float>(head + 1) : static_cast<float>(2 * (head - n_even) + 1) / 2.0f;
        slopes.push_back(std::pow(2.0f, -max_bias / static_cast<float>(n_even) * power));
    }
    return slopes;
}

void check_shape(const char* what, const ggml_tensor* tensor, std::int64_t n_heads, std::int64_t n_channels,
                 int il) {
    const std::int64_t *const found = tensor->ne, expected[] = {n_channels, n_heads};
    if (std::equal(expected, expected + 2, found)) return;
    const auto shape = [](const std::int64_t* of) {
        return std::to_string(of[1]) + " heads of " + std::to_string(of[0]) + " channels";
    };
    refuse_model(std::string(what) + " of layer " + std::to_string(il) + " have " + shape(found) +
                 ", expected " + shape(expected));
}

}  // namespace

ggml_tensor* llama_gearkv_store(llama_gearkv& gear, int il, int layer, int which, ggml_tensor* cur) {
    auto& rows = gear.stored[layer];
    rows.il = il;
    rows.cur[which] = cur;
    return cur;
}

ggml_tensor* llama_gearkv_fetch(llama_gearkv& gear, int il, int layer, int which) {
    if (which == 0) {
        const bool pending = fetched.gear != nullptr;
        fetched = {};
        if (pending) refuse_model("keys that are read outside of attention are not supported");
        fetched = {&gear, layer, il, gear.stored[layer].cur[0]};
    }
    return gear.stored[layer].cur[which];
}

ggml_tensor* llama_gearkv_attn(ggml_context* ctx, int il, ggml_tensor* q, ggml_tensor* k, ggml_tensor* v,
                               ggml_tensor* sinks, const llama_gearkv_rules& rules) {
    if (fetched.gear == nullptr) return nullptr;
    const Fetched from = fetched;
    fetched = {};
    if (!rules.plain)
        refuse_model("attention with biases of scores, values out of keys or chosen tokens is not supported");
    if (from.keys != k || from.il != il || q->ne[3] != 1)
        refuse_model("this kind of attention is not supported");
    const bool has_rows = from.gear->stored[from.layer].il == il;
    const gearkv::LayerDims& dims = from.gear->sequences.config().dims[from.layer];
    check_shape("queries", q, q->ne[1], dims.key_dim, il);
    check_shape("keys", k, dims.n_kv_heads, dims.key_dim, il);
    check_shape("values", v, dims.n_kv_heads, dims.value_dim, il);
    auto& op = from.gear->operators[il];
    if (!op) op = std::make_unique<Operator>();
    op->gear = from.gear;
    op->layer = from.layer;
    op->il = il;
    op->has_rows = has_rows;
    op->has_sinks = sinks != nullptr;
    op->rules = rules;
    if (op->slopes.empty()) op->slopes = alibi_slopes(rules.max_bias, static_cast<int>(q->ne[1]));
    std::vector<ggml_tensor*> args = {q};
    if (has_rows) args.insert(args.end(), {k, v});
    if (sinks != nullptr) args.push_back(sinks);
    for (const ggml_tensor* arg : args) {
        if (arg->type != GGML_TYPE_F32 || arg->nb[0] != sizeof(float))
            refuse_model("queries, keys and values in another type than f32 are not supported");
    }
    const std::int64_t n_floats = q->ne[1] * dims.value_dim;
    return ggml_custom_4d(ctx, GGML_TYPE_F32, n_floats, q->ne[2], 1, 1, args.data(),
                          static_cast<int>(args.size()), run_operator, GGML_N_TASKS_MAX, op.get());
}
