#include "llama-gearkv-seqs.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <exception>
#include <limits>
#include <set>
#include <utility>

#include "gearkv/state.hpp"

namespace llama_gearkv_detail {

using gearkv::Cache;
using gearkv::Code;
using gearkv::Status;

namespace {

constexpr std::size_t chunk_tokens = 512;  // read and appended at once
// How many tokens of a draft are taken back without a trace; and how far back layers with a window can go at
// all (pos_min tells what is there).
constexpr std::uint32_t draft_tokens = 16, window_rollback_tokens = 64;

std::int32_t end_of(std::int32_t p1) {
    return p1 < 0 ? std::numeric_limits<std::int32_t>::max() : p1;
}

bool within(const Token& token, std::int32_t p0, std::int32_t p1) {
    return token.gone == 0 && token.pos >= p0 && token.pos < p1;
}

// False for a layer without attention, and for one that this model's graph does not compute.
bool is_used(const Sequence& sequence, std::uint32_t layer) {
    return sequence.cache->n_tokens(layer) > 0;
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
        setup_.cache.rollback_tokens = window_rollback_tokens;
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
    if (pieces.empty() || !is_used(*pieces[0].from, layer)) return {};
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
            if (n < s.tokens.size() && is_used(s, layer)) {
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

namespace {

// Functions of the engine that may throw, for gearkv, which must not see it; what they threw is thrown again.
struct Stream {
    const Sequences::Write* write = nullptr;
    const Sequences::Read* read = nullptr;
    std::exception_ptr thrown;

    template <class Call>
    bool attempt(Call&& call) noexcept {
        try {
            call();
        } catch (...) {
            thrown = std::current_exception();
        }
        return thrown == nullptr;
    }
    void rethrow() const {
        if (thrown != nullptr) std::rethrow_exception(thrown);
    }
    static bool put(void* context, const void* bytes, std::size_t n) {
        auto& stream = *static_cast<Stream*>(context);
        return stream.attempt([&] { (*stream.write)(bytes, n); });
    }
    static bool get(void* context, void* to, std::size_t n, std::size_t* n_read) {
        auto& stream = *static_cast<Stream*>(context);
        *n_read = n;
        return stream.attempt([&] { (*stream.read)(to, n); });
    }
};

}  // namespace

Status Sequences::write(std::int32_t id, const Write& write) {
    const auto number = [&](std::uint64_t value) { write(&value, sizeof value); };
    std::vector<std::pair<Shared, std::vector<std::int32_t>>> saved;
    for (const auto& [each, sequence] : seqs_) {
        if (id >= 0 && each != id) continue;
        if (Status status = settle(*sequence); !status.ok()) return status;
        const auto same = [&, wanted = sequence.get()](const auto& entry) {
            return entry.first.get() == wanted;
        };
        auto at = std::find_if(saved.begin(), saved.end(), same);
        if (at == saved.end()) at = saved.insert(at, {sequence, {}});
        at->second.push_back(each);
    }
    number(saved.size());
    for (const auto& [sequence, ids] : saved) {
        number(ids.size());
        write(ids.data(), ids.size() * sizeof ids[0]);
        number(sequence->tokens.size());
        write(sequence->tokens.data(), sequence->tokens.size() * sizeof(Token));
        Stream stream{&write, nullptr, nullptr};
        const Status status = gearkv::save_state(*sequence->cache, gearkv::ByteSink{Stream::put, &stream}, {},
                                                 gearkv::serial_executor());
        stream.rethrow();
        if (!status.ok()) return status;
    }
    return {};
}

Status Sequences::read(std::int32_t id, std::int32_t n_ids, const Read& read) {
    const auto number = [&] {
        std::uint64_t value = 0;
        read(&value, sizeof value);
        return value;
    };
    const auto bad = [](const char* what, std::uint64_t found, std::uint64_t most) {
        return Status::error(Code::corrupt_state, "%llu %s, expected at most %llu",
                             static_cast<unsigned long long>(found), what,
                             static_cast<unsigned long long>(most));
    };
    const std::uint64_t n_sequences = number();
    const std::uint64_t most = id >= 0 ? 1 : static_cast<std::uint64_t>(n_ids);
    if (n_sequences > most) return bad("sequences", n_sequences, most);
    for (std::uint64_t i = 0; i < n_sequences; ++i) {
        const std::uint64_t n = number();
        if (n > most) return bad("names of a sequence", n, most);
        std::vector<std::int32_t> ids(n);
        read(ids.data(), n * sizeof ids[0]);
        for (const std::int32_t each : ids) {
            if (each < 0 || each >= n_ids)
                return Status::error(Code::corrupt_state, "sequence %d of %d", each, n_ids);
        }
        auto sequence = std::make_shared<Sequence>();
        const std::uint64_t n_tokens = number();
        if (n_tokens > setup_.cache.max_tokens) return bad("tokens", n_tokens, setup_.cache.max_tokens);
        sequence->tokens.resize(n_tokens);
        read(sequence->tokens.data(), n_tokens * sizeof(Token));
        sequence->edited = true;  // as far as its tokens tell
        Stream stream{nullptr, &read, nullptr};
        const Status status = gearkv::load_state(gearkv::ByteSource{Stream::get, &stream}, setup_.cache, {},
                                                 gearkv::serial_executor(), &sequence->cache);
        stream.rethrow();
        if (!status.ok()) return status;
        for (std::uint32_t layer = 0; layer < setup_.cache.n_layers; ++layer) {
            if (is_used(*sequence, layer) && sequence->cache->n_tokens(layer) != n_tokens)
                return bad("tokens in a layer", sequence->cache->n_tokens(layer), n_tokens);
        }
        if (id >= 0) ids = {id};
        for (const std::int32_t each : ids)
            seqs_[each] = sequence;
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
