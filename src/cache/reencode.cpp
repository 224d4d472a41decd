// Blocks of a layer encoded again at a lower rate, and what that costs.
#include "codec/reencode.hpp"

#include <algorithm>
#include <cstring>

#include "cache/layer.hpp"

namespace gearkv {
namespace {

// What queries tell of channels, in memory of its own: an open unit goes on with what it began with.
class KeyWeights {
  public:
    KeyWeights(const Memory& memory, const QuerySquares& squares, TensorKind kind) noexcept
        : memory_(memory), n_bytes_(squares.n_channels() * sizeof(float)) {
        if (kind == TensorKind::value || squares.is_empty()) return;
        weights_ = static_cast<float*>(memory_.take(n_bytes_, Use::scratch));
        is_short_ = weights_ == nullptr;
        if (!is_short_) (void)squares.weigh_all(weights_);
    }
    ~KeyWeights() { memory_.give_back(weights_, n_bytes_, Use::scratch); }
    KeyWeights(const KeyWeights&) = delete;
    KeyWeights& operator=(const KeyWeights&) = delete;
    bool is_short() const noexcept { return is_short_; }
    const float* data() const noexcept { return weights_; }

  private:
    Memory memory_;
    std::uint64_t n_bytes_;
    float* weights_ = nullptr;
    bool is_short_ = false;
};

// Beside what varies of the scores, or of the values. Both then count by the squares of the weights.
double error_of(const SectionSquares& squares) {
    return squares.error <= 0.0 ? 0.0 : squares.error / std::max(squares.signal, 1e-30);
}

}  // namespace

double LayerStream::measure_lower(CacheContext* context, std::uint64_t i, TensorKind tensor,
                                  const BlockHeader& lower, Executor& executor) const noexcept {
    if (!tokens_.blocks().check(i + 1, executor).ok()) return 0.0;  // told by who encodes it
    const auto kind = static_cast<TensorKind>(lower.kind);          // of latents that of keys
    const Memory memory = context->memory();                        // others may show the stream
    const KeyWeights weights(memory, squares_, tensor);
    if (weights.is_short()) return -1.0;
    ReencodeTask task = {context->kernels, tokens_.blocks().view(i, tensor), {}, weights.data()};
    const BlockShape shape = {kind, std::min(lower.n_tokens, section_tokens), lower.n_heads, lower.dim};
    if (!lay_out_block(shape, spec_of(lower), 0, &task.header, false).ok()) return 0.0;
    void* trial = memory.take(task.header.n_bytes, Use::scratch);
    if (trial == nullptr) return -1.0;
    const SectionSquares found = reencode_block(trial, context->compress_scratch->data(), task, executor);
    memory.give_back(trial, task.header.n_bytes, Use::scratch);
    return error_of(found);
}

Status LayerStream::begin_lower(CacheContext* context, std::uint64_t i, TensorKind tensor,
                                const BlockHeader& lower, Executor& executor, Lowering* out) const noexcept {
    if (Status status = tokens_.blocks().check(i + 1, executor); !status.ok()) return status;
    const ClosedBlock& old = tokens_.blocks()[i];
    const bool keys = tensor == TensorKind::key;
    const std::uint64_t beside = static_cast<const BlockHeader*>(keys ? old.value : old.key)->n_bytes;
    Lowering begun;
    if (!take_block(context->memory(), keys ? lower.n_bytes : beside, keys ? beside : lower.n_bytes,
                    &begun.pair)) {
        return memory_error(*context, "for a smaller block of layer %u: %llu bytes", index_,
                            static_cast<unsigned long long>(lower.n_bytes + beside));
    }
    std::memcpy(keys ? begun.pair.value : begun.pair.key, keys ? old.value : old.key, beside);
    ReencodeTask task;
    task.source = tokens_.blocks().view(i, tensor);
    task.header = lower;
    begin_reencoding(keys ? begun.pair.key : begun.pair.value, task);
    begun.source = old.owner;
    begun.source->add_user();
    begun.lower = lower;
    begun.tensor = tensor;
    begun.block = i;
    begun.n_sections = block_sizes(lower).n_sections;
    *out = begun;
    return {};
}

Status LayerStream::go_on_lower(CacheContext* context, Lowering* lowering, std::uint32_t n,
                                Executor& executor) const noexcept {
    const TensorKind tensor = lowering->tensor;
    const KeyWeights weights(context->memory(), squares_, tensor);
    if (weights.is_short()) return memory_error(*context, "for weights of the channels of layer %u", index_);
    const ReencodeTask task = {context->kernels, tokens_.blocks().view(lowering->block, tensor),
                               lowering->lower, weights.data(), lowering->compares};
    n = std::min(n, lowering->n_sections - lowering->n_done);
    void* block = tensor == TensorKind::key ? lowering->pair.key : lowering->pair.value;
    const SectionSquares found =
        reencode_sections(block, context->compress_scratch->data(), task, lowering->n_done, n, executor);
    lowering->squares.error += found.error;
    lowering->squares.signal += found.signal;
    lowering->n_done += n;
    return {};
}

double LayerStream::finish_lower(CacheContext* context, Lowering* lowering) noexcept {
    const double error = error_of(lowering->squares);
    prepare_smaller(context, lowering->block);
    hand_over_block(context->memory(), memory(context), lowering->pair);
    mutable_blocks()->replace(memory(context), lowering->block, lowering->pair);
    lowering->source->drop_user();
    *lowering = {};
    return error;
}

}  // namespace gearkv
