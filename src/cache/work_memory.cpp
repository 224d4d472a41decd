#include "cache/work_memory.hpp"

#include <algorithm>
#include <new>

#include "cache/rates.hpp"
#include "codec/compress.hpp"

namespace gearkv {

bool most_compress_bytes(const CacheConfig& config, std::uint64_t* most) noexcept {
    const LayerRule* last = nullptr;
    for (std::uint32_t layer = 0; layer < config.n_layers; ++layer) {
        const LayerDims dims = config.dims_of(layer);
        const LayerRule* rule = config.spec.rule_of(layer, config.n_layers);
        if (!dims.has_keys() || (layer > 0 && rule == last && dims == config.dims_of(layer - 1))) continue;
        last = rule;
        const KvSpec spec = first_spec(config, layer);
        for (const TensorKind kind : {TensorKind::key, TensorKind::value}) {
            for (const bool prompt : {false, true}) {
                BlockHeader header;
                const TensorSpec& tensor = kind == TensorKind::key ? spec.key : spec.value;
                const Unit unit = {config.spec.buffer_tokens, prompt, true};
                if (!lay_out_unit(config, dims, tensor, kind, unit, &header).ok()) return false;
                *most = std::max(*most, compress_scratch_bytes(header));
            }
        }
    }
    return true;
}

AttendBytes most_attend_bytes(const CacheConfig& config) noexcept {
    AttendBytes most;
    for (std::uint32_t layer = 0; layer < config.n_layers; ++layer) {
        const LayerDims dims = config.dims_of(layer);
        if (!dims.has_keys()) continue;
        const std::uint64_t slot = attend_scratch_bytes(head_dims(config, dims));
        most.of_slot = std::max(most.of_slot, slot);
        most.of_heads = std::max(most.of_heads, slot * dims.n_kv_heads);
        if (config.dims == nullptr) break;
    }
    return most;
}

std::uint64_t parts_of(std::uint64_t n_tokens, std::uint64_t n_units) noexcept {
    constexpr std::uint64_t wanted_tasks = 8, least_tokens = 1024;
    return std::clamp<std::uint64_t>(n_tokens / least_tokens, 1, ceil_div(wanted_tasks, n_units));
}

std::uint64_t call_bytes(const CacheConfig& config, const LayerDims& dims, std::uint64_t slot_bytes,
                         std::uint32_t n_queries, std::uint32_t n_heads, std::uint32_t n_threads) noexcept {
    const std::uint64_t n_units =
        dims.n_kv_heads * ceil_div(std::uint64_t{n_queries} * (n_heads / dims.n_kv_heads), max_rows);
    const std::uint64_t n_parts = parts_of(config.max_tokens, n_units), n_tasks = n_units * n_parts;
    const std::uint64_t n_floats = n_parts > 1 ? n_tasks * part_floats(dims.value_dim) : 0;
    return slot_bytes * std::min<std::uint64_t>(n_tasks, n_threads) + n_floats * sizeof(float);
}

bool WorkMemory::create(const CacheConfig& config, const Memory& memory) noexcept {
    std::uint64_t compress_bytes = 0;
    return reserve_runs(memory, least_runs) && attend.ensure(memory, most_attend_bytes(config).of_heads) &&
           most_compress_bytes(config, &compress_bytes) && compress.ensure(memory, compress_bytes);
}

bool WorkMemory::reserve_runs(const Memory& memory, std::uint64_t n) noexcept {
    if (n <= max_runs) return true;
    n = grown_runs(max_runs, n);
    auto* more = static_cast<KvRun*>(memory.take(n * sizeof(KvRun), Use::table));
    if (more == nullptr) return false;
    memory.give_back(runs, max_runs * sizeof(KvRun), Use::table);
    runs = more;
    max_runs = n;
    return true;
}

void WorkMemory::free(const Memory& memory) noexcept {
    memory.give_back(runs, max_runs * sizeof(KvRun), Use::table);
    runs = nullptr;
    max_runs = 0;
    for (Scratch* scratch : {&jobs, &attend, &turns, &select, &compress, &batch})
        scratch->free(memory);
}

Status Workspace::create(const Allocator& allocator, std::unique_ptr<Workspace>* out) noexcept {
    if (out == nullptr || allocator.allocate == nullptr || allocator.release == nullptr)
        return Status::error(Code::invalid_argument, "%s",
                             out == nullptr ? "out is null" : "allocator has a null function");
    void* place = allocator.allocate(allocator.context, sizeof(Impl), alignof(Impl));
    Impl* impl = place == nullptr ? nullptr : new (place) Impl(allocator);
    Workspace* workspace = impl == nullptr ? nullptr : new (std::nothrow) Workspace(impl);
    if (workspace == nullptr) {
        if (place != nullptr) allocator.release(allocator.context, place, sizeof(Impl));
        return Status::error(Code::out_of_memory, "no memory for a workspace");
    }
    out->reset(workspace);
    return {};
}

Workspace::~Workspace() {
    const Allocator allocator = impl_->ledger.allocator();
    impl_->work.free(impl_->memory());
    impl_->~Impl();
    allocator.release(allocator.context, impl_, sizeof(Impl));
}

std::uint64_t Workspace::n_bytes() const noexcept {
    return impl_->ledger.total() + sizeof(Impl);
}

}  // namespace gearkv
