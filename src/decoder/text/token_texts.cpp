#include "decoder/text/token_texts.hpp"

#include <bit>

#include "file/xxh64.hpp"

namespace gearkv {
namespace {

// Half full and well mixed, a million texts need less than a hundred steps.
constexpr std::size_t max_steps = 1024;

}  // namespace

void TextIndex::reserve(const TokenTexts& texts, std::size_t n) {
    const std::size_t n_slots = std::bit_ceil(2 * n + 1);
    if (n_slots <= slots_.size()) return;
    std::vector<Slot> old(n_slots);
    old.swap(slots_);
    n_used_ = 0;
    for (const Slot& slot : old) {
        if (slot.symbol != no_symbol) add(texts, slot.symbol);
    }
}

const TextIndex::Slot* TextIndex::search(const TokenTexts& texts, std::string_view text,
                                         std::uint64_t hash) const noexcept {
    if (slots_.empty()) return nullptr;
    const std::size_t mask = slots_.size() - 1;
    const auto tag = static_cast<std::uint32_t>(hash >> 32);
    for (std::size_t step = 0; step < max_steps; step++) {
        const Slot& slot = slots_[(hash + step) & mask];
        if (slot.symbol == no_symbol) return &slot;
        if (slot.hash == tag && texts[slot.symbol] == text) return &slot;
    }
    return nullptr;
}

bool TextIndex::add(const TokenTexts& texts, Symbol symbol) {
    if (slots_.size() < 2 * (n_used_ + 1)) reserve(texts, 2 * (n_used_ + 1));
    const std::string_view text = texts[symbol];
    const std::uint64_t hash = xxh64(text.data(), text.size());
    const Slot* found = search(texts, text, hash);
    if (found == nullptr) return false;
    Slot& slot = slots_[static_cast<std::size_t>(found - slots_.data())];
    if (slot.symbol != no_symbol) return true;
    slot = {symbol, static_cast<std::uint32_t>(hash >> 32)};
    n_used_++;
    return true;
}

Symbol TextIndex::find(const TokenTexts& texts, std::string_view text) const noexcept {
    const Slot* slot = search(texts, text, xxh64(text.data(), text.size()));
    return slot == nullptr ? no_symbol : slot->symbol;
}

}  // namespace gearkv
