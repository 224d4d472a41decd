#include "llama-gearkv-seqs.h"

#include <algorithm>
#include <cstdio>
#include <limits>
#include <set>
#include <utility>

namespace llama_gearkv_detail {

using gearkv::Cache;
using gearkv::Code;
using gearkv::Status;

namespace {

// How many tokens of a draft are taken back without a trace; where the window of a layer is not whole behind
// more, pos_min tells.
constexpr std::uint32_t draft_tokens = 16;

std::int32_t end_of(std::int32_t p1) {
    return p1 < 0 ? std::numeric_limits<std::int32_t>::max() : p1;
}

bool within(const Token& token, std::int32_t p0, std::int32_t p1) {
    return token.gone == 0 && token.pos >= p0 && token.pos < p1;
}

}  // namespace

Status Sequences::create(const Setup& setup) {
    setup_ = setup;
    if (Status status = gearkv::Workspace::create(setup.cache.allocator, &workspace_); !status.ok())
        return status;
    setup_.cache.workspace = workspace_.get();
    setup_.cache.n_layers = static_cast<std::uint32_t>(setup_.dims.size());
    setup_.cache.dims = setup_.dims.data();
    setup_.cache.rollback_tokens = draft_tokens;
    if (setup_.give_back) {
        windows_.assign(setup_.cache.n_layers, setup_.window);
        setup_.cache.windows = windows_.data();
    }
    ropes_.clear();
    for (const auto& frequencies : setup_.frequencies)
        ropes_.push_back(
            {frequencies.data(), static_cast<std::uint32_t>(frequencies.size()), setup_.interleaved});
    Shared any;
    return make(&any);
}

Status Sequences::make(Shared* out) const {
    auto made = std::make_shared<Sequence>();
    if (Status status = Cache::create(setup_.cache, &made->cache); !status.ok()) return status;
    *out = std::move(made);
    return {};
}

Status Sequences::fork(const Sequence& from, Shared* out) const {
    if (!from.fault.ok()) return from.fault;
    auto made = std::make_shared<Sequence>();
    if (Status status = from.cache->fork(&made->cache); !status.ok()) return status;
    made->tokens = from.tokens;
    made->edited = from.edited;
    *out = std::move(made);
    return {};
}

// The sequence for a change that the others which show its tokens do not see; null for none.
Sequence* Sequences::own(std::int32_t id) {
    const auto found = seqs_.find(id);
    if (found == seqs_.end()) return nullptr;
    if (found->second.use_count() > 1) {
        Shared fresh;
        if (const Status status = fork(*found->second, &fresh); !status.ok()) {
            fresh = std::make_shared<Sequence>();
            fresh->tokens = found->second->tokens;
            fresh->fault = status;
        }
        found->second = std::move(fresh);
    }
    return found->second.get();
}

// Removed tokens at the end go at once: they are what is computed again.
Status Sequences::cut_gone(Sequence& s) const {
    std::size_t n = s.tokens.size();
    while (n > 0 && s.tokens[n - 1].gone != 0)
        --n;
    if (n == s.tokens.size()) return {};
    s.tokens.resize(n);
    if (!s.fault.ok()) return s.fault;
    return s.fault = s.cache->truncate(n);
}

bool Sequences::remove(std::int32_t id, std::int32_t p0, std::int32_t p1) {
    if (id < 0) {
        std::vector<std::int32_t> ids;
        for (const auto& entry : seqs_)
            ids.push_back(entry.first);
        bool all = true;
        for (const std::int32_t each : ids)
            all = remove(each, p0, p1) && all;
        return all;
    }
    const auto found = seqs_.find(id);
    if (found == seqs_.end()) return true;
    p1 = end_of(p1);
    const auto& tokens = found->second->tokens;
    const auto is_there = [](const Token& t) { return t.gone == 0; };
    const auto goes = [&](const Token& t) { return within(t, p0, p1); };
    const auto n_going = std::count_if(tokens.begin(), tokens.end(), goes);
    if (n_going == std::count_if(tokens.begin(), tokens.end(), is_there)) {
        seqs_.erase(found);
        return true;
    }
    if (n_going == 0) return true;
    Sequence& s = *own(id);
    for (Token& token : s.tokens) {
        if (goes(token)) token.gone = 1;
    }
    s.edited = true;
    return cut_gone(s).ok();
}

void Sequences::keep(std::int32_t id) {
    if (setup_.one_stream_each) return;
    for (auto at = seqs_.begin(); at != seqs_.end();)
        at = at->first == id ? std::next(at) : seqs_.erase(at);
}

void Sequences::move(std::int32_t id, std::int32_t p0, std::int32_t p1,
                     const std::function<std::int32_t(std::int32_t)>& to) {
    p1 = end_of(p1);
    Sequence* const s = own(id);
    if (s == nullptr) return;
    for (Token& token : s->tokens) {
        if (!within(token, p0, p1)) continue;
        token.pos = to(token.pos);
        if (token.pos < 0) token.gone = 1;
        s->edited = true;
    }
    if (std::all_of(s->tokens.begin(), s->tokens.end(), [](const Token& t) { return t.gone != 0; })) {
        seqs_.erase(id);
        return;
    }
    static_cast<void>(cut_gone(*s));  // its fault is told when the sequence is next computed
}

void Sequences::copy(std::int32_t src, std::int32_t dst, std::int32_t p0, std::int32_t p1) {
    if (src == dst) return;
    if (setup_.one_stream_each) seqs_.erase(dst);
    const auto from = seqs_.find(src);
    if (from == seqs_.end()) return;
    const auto to = seqs_.find(dst);
    if (to != seqs_.end() && to->second == from->second) return;
    p1 = end_of(p1);
    const Sequence& s = *from->second;
    std::size_t n_there = 0, n_copied = 0;
    for (const Token& token : s.tokens) {
        n_there += token.gone == 0 ? 1 : 0;
        n_copied += within(token, p0, p1) ? 1 : 0;
    }
    if (n_copied == 0) return;
    if (to == seqs_.end()) {
        seqs_[dst] = from->second;
        if (n_copied == n_there) return;
        Sequence& part = *own(dst);
        for (Token& token : part.tokens) {
            if (!within(token, p0, p1)) token.gone = 1;
        }
        part.edited = true;
        static_cast<void>(cut_gone(part));
        return;
    }
    std::vector<Piece> pieces;
    std::set<std::int32_t> taken;
    for (std::size_t i = 0; i < to->second->tokens.size(); ++i) {
        const Token& token = to->second->tokens[i];
        if (token.gone != 0) continue;
        pieces.push_back({to->second.get(), i, token});
        taken.insert(token.pos);
    }
    bool twice = false;
    for (std::size_t i = 0; i < s.tokens.size(); ++i) {
        if (!within(s.tokens[i], p0, p1)) continue;
        pieces.push_back({&s, i, s.tokens[i]});
        twice = twice || taken.count(s.tokens[i].pos) > 0;
    }
    Shared joined;
    Status status = !s.fault.ok() ? s.fault : to->second->fault;
    if (twice)
        status = Status::error(Code::invalid_argument, "sequence %d gets tokens of %d at positions it has",
                               dst, src);
    if (status.ok()) status = assemble(pieces, &joined);
    if (!status.ok()) {
        joined = std::make_shared<Sequence>();
        for (const Piece& piece : pieces)
            joined->tokens.push_back(piece.token);
        joined->fault = status;
    }
    to->second = std::move(joined);
}

std::int32_t Sequences::pos_min(std::int32_t id, std::int32_t pos_min) const {
    const auto found = seqs_.find(id);
    if (found == seqs_.end() || !setup_.give_back || !found->second->cache) return pos_min;
    const Sequence& s = *found->second;
    std::uint64_t first = 0;
    for (std::uint32_t layer = 0; layer < setup_.cache.n_layers; ++layer)
        first = std::max(first, s.cache->first_token(layer));
    if (first == 0) return pos_min;
    return first < s.tokens.size() ? std::max(pos_min, s.tokens[first].pos) : pos_min;
}

Status Sequences::begin(const Batch& batch) {
    runs_.clear();
    std::map<std::int32_t, std::vector<std::uint32_t>> lists;
    for (std::uint32_t i = 0; i < batch.n_tokens; ++i) {
        for (std::int32_t j = 0; j < batch.n_ids[i]; ++j)
            lists[batch.ids[i][j]].push_back(i);
    }
    // Sequences that were one go on as one if they get the same tokens.
    std::map<std::pair<Sequence*, std::vector<std::uint32_t>>, std::vector<std::int32_t>> groups;
    for (const auto& [id, list] : lists) {
        const auto found = seqs_.find(id);
        groups[{found == seqs_.end() ? nullptr : found->second.get(), list}].push_back(id);
    }
    for (const auto& [key, ids] : groups) {
        Shared mine;
        Status status;
        if (key.first == nullptr) {
            status = make(&mine);
        } else if (mine = seqs_[ids[0]]; static_cast<std::size_t>(mine.use_count()) - 1 > ids.size()) {
            const Shared whole = std::move(mine);
            status = fork(*whole, &mine);
        }
        if (!status.ok()) return status;
        for (const std::int32_t id : ids)
            seqs_[id] = mine;

        Sequence& s = *mine;
        if (status = settle(s); !status.ok()) return status;
        for (std::uint32_t layer = 0; layer < setup_.cache.n_layers; ++layer) {
            const std::uint64_t n = s.cache->n_tokens(layer);
            if (n > s.tokens.size()) status = s.cache->truncate(s.tokens.size());
            if (n < s.tokens.size() && s.uses(layer)) {
                status =
                    Status::error(Code::wrong_size,
                                  "layer %u of sequence %d lost tokens in a step that failed: %llu of %zu",
                                  layer, ids[0], static_cast<unsigned long long>(n), s.tokens.size());
            }
            if (!status.ok()) return s.fault = status;
        }
        for (const std::uint32_t i : key.second) {
            const std::int32_t pos = batch.pos[i];
            // Tokens of an image have one position; others follow one another.
            if (!s.tokens.empty() && pos != s.tokens.back().pos && pos != s.tokens.back().pos + 1) {
                return Status::error(Code::invalid_argument,
                                     "sequence %d goes on at position %d, but ends with %d", ids[0], pos,
                                     s.tokens.back().pos);
            }
            s.tokens.push_back({pos, pos, 0});
        }
    }

    std::map<const Sequence*, std::uint64_t> n_before;
    for (const auto& [id, list] : lists)
        n_before[seqs_[id].get()] = seqs_[id]->tokens.size() - list.size();
    std::vector<std::int32_t> ids, last_ids;
    for (std::uint32_t i = 0; i < batch.n_tokens; ++i) {
        ids.assign(batch.ids[i], batch.ids[i] + batch.n_ids[i]);
        if (i == 0 || ids != last_ids) {
            Run run;
            run.first = i;
            run.n = 0;
            run.n_before = n_before[seqs_[ids[0]].get()];
            for (const std::int32_t id : ids) {
                Cache* const cache = seqs_[id]->cache.get();
                if (std::find(run.caches.begin(), run.caches.end(), cache) == run.caches.end())
                    run.caches.push_back(cache);
            }
            runs_.push_back(std::move(run));
            last_ids = ids;
        }
        ++runs_.back().n;
        std::set<Sequence*> seen;
        for (const std::int32_t id : ids) {
            if (seen.insert(seqs_[id].get()).second) ++n_before[seqs_[id].get()];
        }
    }
    return {};
}

void Sequences::describe(const std::function<void(const std::string&)>& line) const {
    std::set<const Sequence*> seen;
    for (const auto& [id, sequence] : seqs_) {
        if (!sequence->cache || !seen.insert(sequence.get()).second) continue;
        const gearkv::CacheStats stats = sequence->cache->stats();
        const std::uint64_t held = stats.bytes.keys.bytes + stats.bytes.values.bytes + stats.bytes.buffer;
        std::uint64_t n_channels = 0;  // of a token
        for (const gearkv::LayerDims& dims : setup_.dims)
            n_channels += std::uint64_t{dims.n_kv_heads} * (dims.key_dim + dims.value_dim);
        const double fp16 = 2.0 * static_cast<double>(n_channels * sequence->tokens.size());
        char text[160];
        std::snprintf(
            text, sizeof text,
            "sequence %d: %zu tokens, %.2f MiB in blocks and buffers (%.3f of fp16), %.2f MiB tables", id,
            sequence->tokens.size(), static_cast<double>(held) / 1048576, static_cast<double>(held) / fp16,
            static_cast<double>(stats.bytes.tables) / 1048576);
        line(text);
    }
}

}  // namespace llama_gearkv_detail
