// One block from rows to bytes: outliers, backbone, residual, low rank (paper section 3, algorithm 1).
#include "codec/compress.hpp"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <limits>

#include "codec/trellis.hpp"
#include "executor/call.hpp"
#include "format/built.hpp"
#include "format/spec.hpp"

namespace gearkv {
namespace {

constexpr std::uint32_t max_slices = 16;

// Carves typed arrays out of one run of scratch; with a null base it only counts.
class ScratchCursor {
  public:
    explicit ScratchCursor(void* base) noexcept : base_(static_cast<unsigned char*>(base)) {}
    template <class T>
    T* take(std::uint64_t n) noexcept {
        const std::uint64_t at = used_;
        used_ = round_up(used_ + n * sizeof(T), block_alignment);
        return base_ == nullptr ? nullptr : reinterpret_cast<T*>(base_ + at);
    }
    std::uint64_t used() const noexcept { return used_; }

  private:
    unsigned char* base_;
    std::uint64_t used_ = 0;
};

[[maybe_unused]] std::uint64_t place_scratch(BlockWork* work, const BlockHeader& header,
                                             void* base) noexcept {
    ScratchCursor cursor(base);
    const std::uint64_t n_heads = header.n_heads;
    const BlockSizes sizes = block_sizes(header);
    const bool keys = header.kind == static_cast<std::uint8_t>(TensorKind::key);
    work->stride = round_up(header.dim, 16);
    const std::uint64_t n_entries = n_heads * header.n_tokens * work->stride;
    work->n_slices = std::min(header.n_tokens, max_slices);
    work->line_floats = std::max<std::size_t>(work->stride, 16);
    work->x = cursor.take<float>(n_entries);
    work->codes = cursor.take<std::uint8_t>(n_entries);
    work->lines = cursor.take<float>(n_heads * 4 * work->line_floats);
    work->factors = cursor.take<float>(n_heads * header.rank * (sizes.a_stride + work->stride));
    if (header.n_outliers > 0) {
        work->outlier = cursor.take<std::uint8_t>(n_entries);
        work->vector_floats = keys ? header.n_tokens : n_heads * header.dim;
        work->vectors = cursor.take<float>((keys ? n_heads : work->n_slices) * work->vector_floats);
    }
    return cursor.used();
}

void gather_head(const BlockWork& work, std::size_t head) {
    float* x = work.x_head(head);
    for (std::size_t t = 0; t < work.n_tokens(); ++t) {
        float* end = std::copy_n(work.row(t, head, work.line(head, 0)), work.dim(), x + t * work.stride);
        std::fill(end, x + (t + 1) * work.stride, 0.0f);
    }
    if (work.outlier != nullptr) std::memset(work.outlier_head(head), 0, work.n_tokens() * work.stride);
}

void write_raw_head(const BlockWork& work, std::size_t head) {
    const std::size_t stride = work.view.sizes.raw_stride;
    const ElementType type = work.header->bits == 32 ? ElementType::f32 : ElementType::f16;
    unsigned char* out = work.part<unsigned char>(work.header->codes);
    // The padding is 0 already.
    for_each_part(work.rows, {0, work.n_tokens(), head, head + 1, work.dim()},
                  [&](std::size_t t, std::size_t, std::size_t first, const void* part, std::size_t n) {
                      const std::size_t at = (head * work.n_tokens() + t) * stride + first;
                      convert(work.kernels->codec, type, element_at(out, type, at), work.rows.type, part, n);
                  });
}

bool uses_trellis(const BlockHeader& header) {
    return header.backbone == static_cast<std::uint8_t>(Backbone::trellis);
}

std::uint64_t trellis_slot_bytes(const BlockHeader& header) {
    TrellisScratch scratch;
    return place_trellis_scratch(&scratch, header.dim, nullptr);
}

// Heads whose profiles are pieces of their own, before the sections.
std::uint32_t n_profiles(const BlockHeader& header) {
    return uses_trellis(header) && header.profile != 0 ? header.n_heads : 0;
}

// Pieces of a section: about a panel each, which takes some tens of microseconds.
std::uint32_t section_pieces(const BlockHeader& header) {
    return static_cast<std::uint32_t>(ceil_div(header.dim, lane_tile));
}

[[maybe_unused]] void compress_parts(const BlockWork& work, Executor& executor) {
    const std::size_t n_heads = work.n_heads();
    const bool has_outliers = work.header->n_outliers > 0;
    parallel_for(executor, n_heads, [&](std::size_t head) {
        gather_head(work, head);
        if (has_outliers && work.keys()) mark_key_outliers(work, head);
    });
    if (!work.keys() && (has_outliers || work.view.sizes.shared_scales)) {
        parallel_for(executor, work.n_slices, [&](std::size_t slice) {
            if (has_outliers) mark_value_outliers(work, slice);
            if (work.view.sizes.shared_scales) choose_shared_scales(work, slice);
        });
    }
    if (has_outliers) {
        parallel_for(executor, n_heads, [&](std::size_t head) { count_outliers(work, head); });
        number_outliers(work);
    }
    parallel_for(executor, n_heads, [&](std::size_t head) {
        quantize_head(work, head);
        if (has_outliers) write_outliers(work, head);
        if (work.header->rank > 0) factor_head(work, head);
    });
}

}  // namespace

Status check_rows(const Kernels& kernels, const Rows& rows, const BlockShape& shape, float limit,
                  Executor& executor) noexcept {
    const auto most_of = [&](const RowRange& range) {
        float most = 0.0f;
        for_each_part(rows, range,
                      [&](std::size_t, std::size_t, std::size_t, const void* part, std::size_t n) {
                          most = std::max(most, max_abs(kernels.codec, rows.type, part, n));
                      });
        return most;
    };
    // Whether all are good is soon told; which one is not is told once.
    std::atomic<bool> all_good = true;
    constexpr std::size_t slice_tokens = 64;
    parallel_for(executor, ceil_div(shape.n_tokens, slice_tokens), [&](std::size_t slice) {
        const std::size_t end = std::min<std::size_t>((slice + 1) * slice_tokens, shape.n_tokens);
        const bool good = most_of({slice * slice_tokens, end, 0, shape.n_heads, shape.dim}) <= limit;
        if (!good) all_good.store(false, std::memory_order_relaxed);
    });
    if (all_good.load(std::memory_order_relaxed)) return {};
    const char* name = shape.kind == TensorKind::key ? "keys" : "values";
    for (std::size_t t = 0; t < shape.n_tokens; ++t) {
        for (std::size_t head = 0; head < shape.n_heads; ++head) {
            const float most = most_of(one_row(t, head, shape.dim));
            if (!std::isfinite(most)) {
                return Status::error(Code::non_finite,
                                     "%s of token %zu, head %zu hold NaN or Inf, expected finite", name, t,
                                     head);
            }
            if (most > limit) {
                return Status::error(Code::not_representable,
                                     "%s of token %zu, head %zu reach %g, expected at most %g%s", name, t,
                                     head, static_cast<double>(most), static_cast<double>(limit),
                                     limit == max_half_entry ? " (fp16)" : "");
            }
        }
    }
    return {};
}

std::uint64_t compress_scratch_bytes(const BlockHeader& header) noexcept {
    if (header.bits >= 16) return 0;
    if (uses_trellis(header)) return piece_slots(header) * trellis_slot_bytes(header);
    if constexpr (has_codes) {
        BlockWork work;
        return place_scratch(&work, header, nullptr);
    }
    return 0;
}

void begin_block(void* block, const CompressTask& task) noexcept {
    // Alignment gaps and unused fields are part of the block's bytes: equal inputs give equal blocks.
    std::memset(block, 0, task.header.n_bytes);
    std::memcpy(block, &task.header, sizeof(task.header));
    if (!uses_trellis(task.header) || task.header.profile == 0) return;
    const BlockView view = trusted_block(block);
    auto* starts = const_cast<std::uint32_t*>(view.plane_starts);
    const std::uint64_t n_heads = task.header.n_heads;
    for (std::uint64_t head = 0; head <= n_heads; ++head) {
        starts[head] = task.plane_starts != nullptr
                           ? task.plane_starts[head]
                           : static_cast<std::uint32_t>(view.sizes.n_planes * head / n_heads);
    }
}

std::uint32_t n_pieces(const BlockHeader& header) noexcept {
    if (!uses_trellis(header)) return 1;
    return n_profiles(header) + header.n_heads * block_sizes(header).n_sections * section_pieces(header);
}

std::uint32_t stage_left(const BlockHeader& header, std::uint32_t next) noexcept {
    const std::uint32_t n_first = n_profiles(header);
    return (next < n_first ? n_first : n_pieces(header)) - next;
}

std::uint32_t group_left(const BlockHeader& header, std::uint32_t next) noexcept {
    const std::uint32_t n_first = n_profiles(header);
    if (!uses_trellis(header) || next < n_first) return 1;
    return section_pieces(header) - (next - n_first) % section_pieces(header);
}

std::uint32_t piece_slots(const BlockHeader& header) noexcept {
    return uses_trellis(header) ? header.n_heads : 1;
}

void compress_pieces(void* block, void* scratch, const CompressTask& task, std::uint32_t first,
                     std::uint32_t n, std::uint32_t slot, Executor& executor) noexcept {
    const BlockHeader& header = task.header;
    BlockWork work;
    work.kernels = task.kernels;
    work.rows = task.rows;
    work.header = static_cast<BlockHeader*>(block);
    work.view = trusted_block(block);
    work.seed = task.seed;
    work.key_weights = task.key_weights;
    if (header.bits >= 16) {
        parallel_for(executor, header.n_heads, [&](std::size_t head) { write_raw_head(work, head); });
        return;
    }
    if constexpr (has_codes) {
        if (!work.view.trellis()) {
            place_scratch(&work, header, scratch);
            compress_parts(work, executor);
            return;
        }
    }
    work.stride = round_up(header.dim, 16);
    if (header.profile == 0) work.view.use_profiles(task.profiles);
    unsigned char* memory = static_cast<unsigned char*>(scratch) + slot * trellis_slot_bytes(header);
    const std::uint32_t n_first = n_profiles(header);
    if (first < n_first) {
        write_profile(work, first, memory);
    } else {
        const std::uint32_t n_sections = work.view.sizes.n_sections, n_parts = section_pieces(header);
        const std::uint32_t section = (first - n_first) / n_parts, part = (first - n_first) % n_parts;
        encode_section(work, section / n_sections, section % n_sections, memory, {part, part + n, n_parts});
    }
}

void compress_into(void* block, void* scratch, const CompressTask& task, Executor& executor) noexcept {
    begin_block(block, task);
    const std::uint32_t n = n_pieces(task.header), n_slots = piece_slots(task.header);
    for (std::uint32_t next = 0; next < n;) {
        const std::uint32_t n_left = stage_left(task.header, next), n_group = group_left(task.header, next);
        if (n_left == n_group) {  // free to use the executor itself
            compress_pieces(block, scratch, task, next, n_group, 0, executor);
        } else {
            // A slot serves one group after the other.
            const std::uint32_t n_groups = n_left / n_group;
            parallel_for(executor, std::min(n_groups, n_slots), [&](std::size_t slot) {
                for (auto i = static_cast<std::uint32_t>(slot); i < n_groups; i += n_slots)
                    compress_pieces(block, scratch, task, next + i * n_group, n_group,
                                    static_cast<std::uint32_t>(slot), executor);
            });
        }
        next += n_left;
    }
}

Status block_bytes(const BlockShape& shape, const BlockOptions& options, BlockBytes* out) noexcept {
    if (out == nullptr) return Status::error(Code::invalid_argument, "out is null, expected BlockBytes");
    KvSpec spec;
    spec.key = spec.value = half_spec;
    (shape.kind == TensorKind::key ? spec.key : spec.value) = options.spec;
    spec.buffer_tokens = 4096;  // a block of its own goes through no buffer
    if (Status status = validate_spec(spec); !status.ok()) return status;
    BlockHeader header;
    if (Status status = lay_out_block(shape, options.spec, options.rank, &header); !status.ok())
        return status;
    *out = bytes_by_part(header);
    return {};
}

Status compress_block(void* block, std::size_t n_bytes, const Rows& rows, const BlockShape& shape,
                      const BlockOptions& options, Executor& caller, const Allocator& allocator) noexcept {
    CallExecutor executor(caller);
    if (Status status = executor.check(); !status.ok()) return status;
    if (block == nullptr || allocator.allocate == nullptr || allocator.release == nullptr)
        return Status::error(Code::invalid_argument, "%s is null", block == nullptr ? "block" : "allocator");
    if (Status status = check_layout(rows, "rows"); !status.ok()) return status;
    if (reinterpret_cast<std::uintptr_t>(block) % block_alignment != 0) {
        return Status::error(Code::invalid_argument,
                             "block at %p, expected an address that is a multiple of %u", block,
                             block_alignment);
    }
    BlockBytes bytes;
    if (Status status = block_bytes(shape, options, &bytes); !status.ok()) return status;
    if (n_bytes != bytes.bytes) {
        return Status::error(Code::wrong_size, "block of %zu bytes, expected %llu", n_bytes,
                             static_cast<unsigned long long>(bytes.bytes));
    }
    Level level;
    if (Status status = resolve_level(options.level, &level); !status.ok()) return status;
    CompressTask task;
    task.kernels = find_kernels(level);
    task.rows = rows;
    task.seed = options.seed;
    task.key_weights = shape.kind == TensorKind::key ? options.key_weights : nullptr;
    if (Status status = lay_out_block(shape, options.spec, options.rank, &task.header); !status.ok())
        return status;
    for (std::size_t i = 0; task.key_weights != nullptr && i < std::size_t{shape.n_heads} * shape.dim; ++i) {
        const float weight = task.key_weights[i];
        if (std::isfinite(weight) && weight >= 0.0f) continue;
        return Status::error(Code::non_finite,
                             "weight %g of head %zu, channel %zu, expected a finite one from 0",
                             static_cast<double>(weight), i / shape.dim, i % shape.dim);
    }
    const float limit = options.spec.bits == 32 ? std::numeric_limits<float>::max() : max_half_entry;
    if (Status status = check_rows(*task.kernels, rows, shape, limit, executor); !status.ok()) return status;
    const std::uint64_t scratch_bytes = compress_scratch_bytes(task.header);
    void* scratch = nullptr;
    if (scratch_bytes > 0) {
        scratch = allocator.allocate(allocator.context, scratch_bytes, block_alignment);
        if (scratch == nullptr) {
            return Status::error(Code::out_of_memory, "no %llu bytes of scratch to compress with",
                                 static_cast<unsigned long long>(scratch_bytes));
        }
    }
    compress_into(block, scratch, task, executor);
    if (scratch != nullptr) allocator.release(allocator.context, scratch, scratch_bytes);
    return {};
}

}  // namespace gearkv
