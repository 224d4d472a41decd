// The bytes of a state in their order, wherever they come from.
#pragma once

#include "file/input_file.hpp"
#include "gearkv/memory.hpp"
#include "gearkv/state.hpp"

namespace gearkv {

// Gives bytes once, from front to back.
class StateStream {
  public:
    // The next ones, at least one and at most n_bytes; 0 at the end.
    virtual Status read(void* to, std::size_t n_bytes, std::size_t* n_read) noexcept = 0;

  protected:
    ~StateStream() = default;
};

class CallbackStream final : public StateStream {
  public:
    explicit CallbackStream(const ByteSource& source) noexcept : source_(source) {}
    // Errors: read_failed.
    Status read(void* to, std::size_t n_bytes, std::size_t* n_read) noexcept override;

  private:
    ByteSource source_;
    std::uint64_t n_given_ = 0;
};

class MemoryStream final : public StateStream {
  public:
    MemoryStream(const void* bytes, std::size_t n_bytes) noexcept
        : at_(static_cast<const unsigned char*>(bytes)), left_(n_bytes) {}
    Status read(void* to, std::size_t n_bytes, std::size_t* n_read) noexcept override;

  private:
    const unsigned char* at_;
    std::size_t left_;
};

class FileStream final : public StateStream {
  public:
    explicit FileStream(InputFile* file) noexcept : file_(file) {}
    Status read(void* to, std::size_t n_bytes, std::size_t* n_read) noexcept override {
        return file_->read(to, n_bytes, n_read);
    }

  private:
    InputFile* file_;
};

// What the reader of a state reads from: bytes in memory, which stay where they are, or a stream, of which
// this keeps what is asked for. Memory for that is taken as the bytes come, whatever was promised.
class StateInput {
  public:
    static constexpr std::uint64_t unknown = UINT64_MAX;

    // Bytes at a multiple of 64 that outlive the object. What else is needed comes from the allocator.
    StateInput(const void* bytes, std::uint64_t n_bytes, const Allocator& allocator) noexcept
        : allocator_(allocator), in_place_(static_cast<const unsigned char*>(bytes)), n_bytes_(n_bytes) {}
    // n_bytes is how many the stream gives, if that is known.
    StateInput(StateStream* stream, std::uint64_t n_bytes, const Allocator& allocator) noexcept
        : allocator_(allocator), stream_(stream), n_bytes_(n_bytes) {}
    ~StateInput();
    StateInput(const StateInput&) = delete;
    StateInput& operator=(const StateInput&) = delete;

    bool is_in_place() const noexcept { return stream_ == nullptr; }
    // All there are, or unknown.
    std::uint64_t n_bytes() const noexcept { return n_bytes_; }
    // How many bytes were read.
    std::uint64_t place() const noexcept { return place_; }
    // The end of the state. A few bytes up to there may be read ahead, none before this was called.
    void set_end(std::uint64_t end) noexcept { end_ = end; }

    // The next bytes, fewer at the end only. Errors: those of the stream.
    Status read_some(void* to, std::uint64_t n_bytes, std::uint64_t* n_read) noexcept;
    // Errors: those of the stream; truncated.
    Status read(void* to, std::uint64_t n_bytes) noexcept;
    // The same, at a multiple of 64 in memory that lasts until let_go, or the end of the object when keep was
    // called. Errors: also out_of_memory.
    Status fetch(std::uint64_t n_bytes, const void** out) noexcept;
    // Memory that lasts as long; null when there is none.
    void* allocate(std::uint64_t n_bytes) noexcept;
    void keep() noexcept { kept_ = last_; }
    void let_go() noexcept;

  private:
    struct alignas(64) Piece {
        Piece* before;
        std::uint64_t n_bytes;
    };
    Piece* make_piece(std::uint64_t n_bytes) noexcept;
    void drop_piece(Piece* piece) noexcept;

    Allocator allocator_;
    StateStream* stream_ = nullptr;
    const unsigned char* in_place_ = nullptr;
    std::uint64_t n_bytes_;
    std::uint64_t place_ = 0;
    std::uint64_t end_ = 0;
    Piece* last_ = nullptr;
    Piece* kept_ = nullptr;
    std::size_t n_ahead_ = 0;  // bytes at the end of ahead_ that were read and not asked for
    unsigned char ahead_[4096];
};

}  // namespace gearkv
