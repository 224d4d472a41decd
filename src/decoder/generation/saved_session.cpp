#include "decoder/generation/saved_session.hpp"

#include <cstring>

#include "decoder/gguf/checked.hpp"

namespace gearkv {
namespace {

// Puts n elements behind the ones before, in room that is known to be there.
template <class T>
void put(unsigned char*& at, const T* elements, std::size_t n) {
    if (n > 0) std::memcpy(at, elements, n * sizeof(T));
    at += n * sizeof(T);
}

// Takes n elements off the front, of bytes that are known to be there.
template <class T>
std::vector<T> take(const unsigned char*& at, std::uint64_t n) {
    std::vector<T> elements(n);
    if (n > 0) std::memcpy(elements.data(), at, n * sizeof(T));
    at += n * sizeof(T);
    return elements;
}

}  // namespace

std::vector<unsigned char> write_saved_session(const SavedSession& session) {
    SavedSessionHeader header;
    header.n_vocab = session.n_vocab;
    header.n_tokens = session.tokens.size();
    header.n_logits = session.logits.size();
    header.n_sampler = session.sampler.size();
    header.n_note = session.note.size();
    std::vector<unsigned char> bytes(sizeof(header) + session.tokens.size() * sizeof(Token) +
                                     session.logits.size() * sizeof(float) + session.sampler.size() +
                                     session.note.size());
    unsigned char* at = bytes.data();
    put(at, &header, 1);
    put(at, session.tokens.data(), session.tokens.size());
    put(at, session.logits.data(), session.logits.size());
    put(at, session.sampler.data(), session.sampler.size());
    put(at, session.note.data(), session.note.size());
    return bytes;
}

Status read_saved_session(const std::vector<unsigned char>& bytes, std::uint32_t n_vocab, SavedSession* out) {
    const SavedSessionHeader expected;
    SavedSessionHeader header = {};
    if (bytes.size() < sizeof(header.magic) ||
        std::memcmp(bytes.data(), expected.magic, sizeof(header.magic)) != 0) {
        // Sessions without tokens began with their number, and a 4-byte size of the vocabulary.
        std::uint64_t words[2] = {};
        if (bytes.size() >= sizeof(words)) std::memcpy(words, bytes.data(), sizeof(words));
        if (words[0] < 1u << 31 && (words[1] & 0xffffffff) == n_vocab) {
            return Status::error(Code::bad_version,
                                 "a session saved without its tokens, as before version 1 of session files");
        }
        return Status::error(Code::corrupt_state, "the file holds a cache, but no session with it");
    }
    if (bytes.size() >= sizeof(header)) std::memcpy(&header, bytes.data(), sizeof(header));
    if (header.version != expected.version) {
        return Status::error(Code::bad_version, "a session of version %u, expected %u", header.version,
                             expected.version);
    }
    const Checked n_bytes = Checked(sizeof(header)) + Checked(header.n_tokens) * Checked(sizeof(Token)) +
                            Checked(header.n_logits) * Checked(sizeof(float)) + Checked(header.n_sampler) +
                            Checked(header.n_note);
    if (!n_bytes.valid() || n_bytes.value() != bytes.size() || header.n_vocab != n_vocab ||
        (header.n_logits != 0 && header.n_logits != n_vocab)) {
        return Status::error(Code::corrupt_state,
                             "%zu bytes of a session with %llu tokens and %llu logits, of a vocabulary of %u",
                             bytes.size(), static_cast<unsigned long long>(header.n_tokens),
                             static_cast<unsigned long long>(header.n_logits), header.n_vocab);
    }
    const unsigned char* at = bytes.data() + sizeof(header);
    SavedSession session;
    session.n_vocab = n_vocab;
    session.tokens = take<Token>(at, header.n_tokens);
    session.logits = take<float>(at, header.n_logits);
    session.sampler = take<unsigned char>(at, header.n_sampler);
    session.note = {reinterpret_cast<const char*>(at), static_cast<std::size_t>(header.n_note)};
    for (const Token token : session.tokens) {
        if (token >= 0 && static_cast<std::uint32_t>(token) < n_vocab) continue;
        return Status::error(Code::corrupt_state, "a session with token %d, expected 0 to %u", token,
                             n_vocab - 1);
    }
    *out = std::move(session);
    return {};
}

}  // namespace gearkv
