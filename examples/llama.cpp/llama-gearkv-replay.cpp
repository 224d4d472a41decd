// What the engine removed, moved and joined, made true in the caches: as truncations and context shifts, or
// anew.
#include "llama-gearkv-seqs.h"

#include <algorithm>
#include <cmath>
#include <utility>

namespace llama_gearkv_detail {

using gearkv::Code;
using gearkv::Status;

namespace {

constexpr std::size_t chunk_tokens = 512;  // read and appended at once

}  // namespace

// Replays what the engine removed and moved since the sequence was last computed.
Status Sequences::settle(Sequence& s) const {
    if (!s.fault.ok() || !s.edited) return s.fault;
    // What no query will see need not be in order; the engine drops such tokens all the time.
    const std::size_t n = s.tokens.size();
    const std::size_t first_seen = setup_.window > 0 && n > setup_.window ? n - setup_.window : 0;
    const auto is_changed = [](const Token& t) { return t.gone != 0 || t.at != t.pos; };
    if (std::none_of(s.tokens.begin() + static_cast<std::ptrdiff_t>(first_seen), s.tokens.end(),
                     is_changed)) {
        s.edited = first_seen > 0;
        return {};
    }

    struct Gap {
        std::size_t first, n;
    };
    std::vector<Gap> gaps;
    bool in_place = true;
    std::size_t n_gone = 0;
    std::int32_t shift = 0;
    for (std::size_t i = 0; i < n; ++i) {
        const Token& token = s.tokens[i];
        if (token.gone != 0) {
            ++n_gone;
            continue;
        }
        // Tokens behind a gap move up by its length, or the sequence is to be made anew.
        const std::int32_t step = token.at - token.pos - shift;
        in_place = in_place && step == static_cast<std::int32_t>(n_gone);
        if (step != static_cast<std::int32_t>(n_gone) && i > n_gone &&
            (setup_.window > 0 || setup_.distances_matter)) {
            return s.fault = Status::error(Code::invalid_argument,
                                           "positions %d tokens apart where windows or ALiBi count tokens",
                                           static_cast<std::int32_t>(n_gone) - step + 1);
        }
        if (n_gone > 0) gaps.push_back({i - n_gone, n_gone});
        shift += step;
        n_gone = 0;
    }
    for (std::size_t i = gaps.size(); in_place && i-- > 0;) {
        const auto [first, length] = gaps[i];
        const Status status = s.cache->remove(first, length, ropes_.data());
        if (status.code() == Code::out_of_memory || status.code() == Code::over_budget) return status;
        in_place = status.ok();
        if (!in_place) break;
        const auto at = s.tokens.begin() + static_cast<std::ptrdiff_t>(first);
        const auto behind = s.tokens.erase(at, at + static_cast<std::ptrdiff_t>(length));
        std::for_each(behind, s.tokens.end(),
                      [n_moved = length](Token& t) { t.at -= static_cast<std::int32_t>(n_moved); });
    }
    if (in_place) {
        s.edited = false;
        return {};
    }
    std::vector<Piece> pieces;
    for (std::size_t i = 0; i < s.tokens.size(); ++i) {
        if (s.tokens[i].gone == 0) pieces.push_back({&s, i, s.tokens[i]});
    }
    Shared anew;
    if (const Status status = assemble(std::move(pieces), &anew); !status.ok()) return s.fault = status;
    s = std::move(*anew);
    return {};
}

// A sequence of these tokens, by position.
Status Sequences::assemble(std::vector<Piece> pieces, Shared* out) const {
    std::stable_sort(pieces.begin(), pieces.end(),
                     [](const Piece& a, const Piece& b) { return a.token.pos < b.token.pos; });
    Shared made;
    if (Status status = make(&made); !status.ok()) return status;
    for (std::uint32_t layer = 0; layer < setup_.cache.n_layers; ++layer) {
        if (Status status = carry(pieces, layer, *made); !status.ok()) return status;
    }
    for (const Piece& piece : pieces)
        made->tokens.push_back({piece.token.pos, piece.token.pos, 0});
    *out = std::move(made);
    return {};
}

Status Sequences::carry(const std::vector<Piece>& pieces, std::uint32_t layer, Sequence& to) const {
    const gearkv::LayerDims& dims = setup_.dims[layer];
    const std::size_t key_floats = std::size_t{dims.n_kv_heads} * dims.key_dim;
    const std::size_t value_floats = std::size_t{dims.n_kv_heads} * dims.value_dim;
    if (pieces.empty() || !pieces[0].from->uses(layer)) return {};
    std::vector<float> keys(chunk_tokens * key_floats), values(chunk_tokens * value_floats);
    for (std::size_t i = 0; i < pieces.size();) {
        // As many as lie side by side and turn alike.
        const Piece& first = pieces[i];
        std::size_t n = 1;
        while (n < chunk_tokens && i + n < pieces.size() && pieces[i + n].from == first.from &&
               pieces[i + n].index == first.index + n &&
               pieces[i + n].token.pos - pieces[i + n].token.at == first.token.pos - first.token.at)
            ++n;
        Status status = first.from->cache->read(layer, first.index, n, keys.data(), keys.size(),
                                                values.data(), values.size());
        if (!status.ok()) return status;
        turn(keys.data(), n, layer, first.token.pos - first.token.at);
        status = to.cache->append(layer, {keys.data(), key_floats, dims.key_dim},
                                  {values.data(), value_floats, dims.value_dim},
                                  static_cast<std::uint32_t>(n), gearkv::serial_executor());
        if (!status.ok()) return status;
        i += n;
    }
    return to.cache->compress(layer, gearkv::serial_executor());
}

void Sequences::turn(float* keys, std::size_t n_tokens, std::uint32_t layer, std::int32_t by) const {
    const auto& frequencies = setup_.frequencies[layer];
    const gearkv::LayerDims& dims = setup_.dims[layer];
    const std::size_t n_pairs = frequencies.size();
    if (by == 0) return;
    for (std::size_t pair = 0; pair < n_pairs; ++pair) {
        const double angle = by * frequencies[pair];
        const double cos = std::cos(angle), sin = std::sin(angle);
        const std::size_t a = setup_.interleaved ? 2 * pair : pair,
                          b = setup_.interleaved ? a + 1 : pair + n_pairs;
        for (std::size_t head = 0; head < n_tokens * dims.n_kv_heads; ++head) {
            float* const key = keys + head * dims.key_dim;
            const double x = key[a], y = key[b];
            key[a] = static_cast<float>(x * cos - y * sin);
            key[b] = static_cast<float>(x * sin + y * cos);
        }
    }
}

}  // namespace llama_gearkv_detail
