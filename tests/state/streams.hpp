// Functions that take and give the bytes of a state, and fail when they are told to.
#pragma once

#include <algorithm>
#include <cstring>
#include <random>

#include "states.hpp"

namespace gearkv::testing {

// Keeps what it is given.
struct Collector {
    FileBytes bytes;
    long calls = 0, most_calls = -1;  // -1: any number
    static bool write(void* context, const void* bytes, std::size_t n_bytes) {
        auto* self = static_cast<Collector*>(context);
        if (self->calls++ == self->most_calls) return false;
        const auto* at = static_cast<const unsigned char*>(bytes);
        self->bytes.insert(self->bytes.end(), at, at + n_bytes);
        return n_bytes > 0;
    }
    ByteSink sink() { return {write, this}; }
};

// Gives bytes in pieces of random lengths, or whole.
struct Giver {
    const unsigned char* bytes;
    std::size_t n_bytes;
    bool is_short = false;
    bool is_endless = false;  // zeros behind the bytes, without end
    long calls = 0, most_calls = -1;
    std::size_t place = 0;
    std::mt19937 random{3};

    explicit Giver(const FileBytes& all) : bytes(all.data()), n_bytes(all.size()) {}
    static bool read(void* context, void* to, std::size_t n_bytes, std::size_t* n_read) {
        auto* self = static_cast<Giver*>(context);
        if (self->calls++ == self->most_calls || n_bytes == 0) return false;
        const std::size_t left = self->n_bytes - std::min(self->place, self->n_bytes);
        std::size_t n = std::min(n_bytes, left);
        if (self->is_short && n > 1) n = 1 + self->random() % std::min<std::size_t>(n, 3000);
        if (n > 0) std::memcpy(to, self->bytes + self->place, n);
        if (n == 0 && self->is_endless) std::memset(to, 0, n = n_bytes);
        self->place += n;
        *n_read = n;
        return true;
    }
    ByteSource source() { return {read, this}; }
};

inline FileBytes saved_bytes(const Cache& cache, const SaveOptions& options = {}) {
    Collector all;
    const Status status = save_state(cache, all.sink(), options, serial_executor());
    INFO(status.message());
    REQUIRE(status.ok());
    return all.bytes;
}

inline Status load_from(Giver* giver, const CacheConfig& config, std::unique_ptr<Cache>* out,
                        const LoadOptions& options = {}) {
    return load_state(giver->source(), config, options, serial_executor(), out);
}

}  // namespace gearkv::testing
