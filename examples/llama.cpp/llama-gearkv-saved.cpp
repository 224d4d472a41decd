// Sequences as bytes, through functions of the engine.
#include "llama-gearkv-seqs.h"

#include <algorithm>
#include <exception>
#include <utility>

#include "gearkv/state.hpp"

namespace llama_gearkv_detail {

using gearkv::Code;
using gearkv::Status;

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
            if (sequence->uses(layer) && sequence->cache->n_tokens(layer) != n_tokens)
                return bad("tokens in a layer", sequence->cache->n_tokens(layer), n_tokens);
        }
        if (id >= 0) ids = {id};
        for (const std::int32_t each : ids)
            seqs_[each] = sequence;
    }
    return {};
}

}  // namespace llama_gearkv_detail
