// Older blocks made smaller, of all layers in turn.
#include <algorithm>

#include "cache/sequence.hpp"

namespace gearkv {

Status Sequence::shrink(std::uint64_t target_bytes) noexcept {
    const std::uint32_t n_layers = context.config.n_layers;
    // Outliers of all blocks first, then low rank; the oldest blocks of all layers before younger ones.
    for (const bool drop_low_rank : {false, true}) {
        for (std::uint64_t i = 0; context.ledger.total() > target_bytes; ++i) {
            std::uint64_t next = UINT64_MAX;
            for (std::uint32_t layer = 0; layer < n_layers; ++layer) {
                if (layers[layer] == nullptr) continue;
                const std::uint64_t at = next_reducible(layer, i, drop_low_rank);
                if (at < layers[layer]->tokens().blocks().size()) next = std::min(next, at);
            }
            if (next == UINT64_MAX) break;
            i = next;
            for (std::uint32_t layer = 0; layer < n_layers; ++layer) {
                if (layers[layer] == nullptr || i >= layers[layer]->tokens().blocks().size()) continue;
                if (next_reducible(layer, i, drop_low_rank) != i) continue;
                if (Status status = own(layer); !status.ok()) return status;
                (void)layers[layer]->reduce(&context, i, drop_low_rank);
            }
        }
    }
    return {};
}

std::uint64_t Sequence::next_reducible(std::uint32_t layer, std::uint64_t i, bool drop_low_rank) noexcept {
    const BlockTable& blocks = layers[layer]->tokens().blocks();
    std::uint64_t& n_known = irreducible[(drop_low_rank ? context.config.n_layers : 0) + layer];
    const bool from_known = i <= n_known;
    i = std::max(i, n_known);
    while (i < blocks.size() && !blocks.can_reduce(i, drop_low_rank))
        ++i;
    if (from_known) n_known = i;
    return i;
}

void Sequence::look_again() noexcept {
    std::fill_n(irreducible, 2 * std::uint64_t{context.config.n_layers}, 0);
}

void Sequence::look_again(std::uint32_t layer) noexcept {
    irreducible[layer] = irreducible[context.config.n_layers + layer] = 0;
}

}  // namespace gearkv
