#include "codec/reencode.hpp"

#include <cstring>

#include "codec/trellis.hpp"
#include "gearkv/executor.hpp"

namespace gearkv {

void begin_reencoding(void* block, const ReencodeTask& task) noexcept {
    const BlockHeader& header = task.header;
    std::memset(block, 0, header.n_bytes);
    std::memcpy(block, &header, sizeof(header));
    if (header.profile == 0) return;
    std::memcpy(static_cast<unsigned char*>(block) + header.profile, task.source.profiles,
                profile_part_bytes(static_cast<TensorKind>(header.kind), header.n_heads, header.dim));
}

SectionSquares reencode_sections(void* block, void* scratch, const ReencodeTask& task, std::uint32_t first,
                                 std::uint32_t n, Executor& executor) noexcept {
    const BlockHeader& header = task.header;
    BlockWork work;
    work.kernels = task.kernels;
    work.source = &task.source;
    work.header = static_cast<BlockHeader*>(block);
    work.key_weights = task.key_weights;
    work.stride = round_up(header.dim, 16);
    work.view = trusted_block(block);
    if (header.profile == 0) work.view.use_profiles(task.source.profiles);
    const std::uint64_t slot_bytes = compress_scratch_bytes(header) / piece_slots(header);
    const auto slot_of = [&](std::size_t head) {
        return static_cast<unsigned char*>(scratch) + head * slot_bytes;
    };
    // A head's sums wait where its slot begins, to be added up in order.
    parallel_for(executor, header.n_heads, [&](std::size_t at) {
        const auto head = static_cast<std::uint32_t>(at);
        TrellisScratch of_head;
        place_trellis_scratch(&of_head, header.dim, slot_of(head));
        const float* weights = task.key_weights == nullptr ? nullptr : task.key_weights + at * header.dim;
        SectionSquares sum;
        for (std::uint32_t i = first; i < first + n; ++i) {
            encode_section(work, head, i, slot_of(head));
            if (!task.compares) continue;
            const SectionSquares found = compare_section(work.view, head, i, of_head.x, work.stride, weights);
            sum.error += found.error;
            sum.signal += found.signal;
        }
        std::memcpy(slot_of(head), &sum, sizeof(sum));
    });
    SectionSquares all;
    for (std::uint32_t head = 0; head < header.n_heads; ++head) {
        SectionSquares sum;
        std::memcpy(&sum, slot_of(head), sizeof(sum));
        all.error += sum.error;
        all.signal += sum.signal;
    }
    return all;
}

SectionSquares reencode_block(void* block, void* scratch, const ReencodeTask& task,
                              Executor& executor) noexcept {
    begin_reencoding(block, task);
    return reencode_sections(block, scratch, task, 0, block_sizes(task.header).n_sections, executor);
}

}  // namespace gearkv
