#include <cstring>

#include "cache/impl.hpp"
#include "executor/call.hpp"
#include "file/atomic_file.hpp"
#include "file/xxh64.hpp"
#include "format/state.hpp"
#include "format/trellis.hpp"
#include "gearkv/state.hpp"

namespace gearkv {
namespace {

// Lists the sections of a cache, in the order of the file: visit(section, bytes), with neither offset nor
// checksum. `layer` and `queries` are where StateLayer and queries are put together.
class Sections {
  public:
    Sections(const CacheAccess::Impl& impl, const SaveOptions& options) noexcept
        : impl_(impl), options_(options) {}

    // Bytes of what does not lie in the cache as it is saved.
    std::uint64_t n_composed() const noexcept {
        std::uint64_t n = 0;
        for (std::uint32_t i = 0; i < impl_.context.config.n_layers; ++i)
            n += sizeof(StateLayer) + query_bytes(i) + rope_bytes(i) + squares_bytes(i);
        return n;
    }

    template <class Visit>
    void list(unsigned char* composed, const Visit& visit) const noexcept {
        for (std::uint32_t i = 0; i < impl_.context.config.n_layers; ++i) {
            const LayerStream* stream = impl_.layers[i];
            if (stream != nullptr &&
                (stream->n_tokens() > 0 || stream->rates().planes(TensorKind::key) != nullptr))
                list_layer(i, *stream, &composed, visit);
        }
        if (options_.n_extra > 0) visit(section(StateKind::extra, 0, options_.n_extra), options_.extra);
    }

  private:
    static constexpr TensorKind kinds[] = {TensorKind::key, TensorKind::value};

    static StateSection section(StateKind kind, std::uint32_t layer, std::uint64_t n_bytes) noexcept {
        StateSection section = {};
        section.kind = static_cast<std::uint32_t>(kind);
        section.layer = layer;
        section.n_bytes = n_bytes;
        return section;
    }
    std::uint64_t query_bytes(std::uint32_t layer) const noexcept {
        const QuerySample* sample = impl_.rates.sample(layer);
        if (sample == nullptr || sample->n_queries == 0) return 0;
        return sizeof(StateQueries) + std::uint64_t{sample->n_queries} * sample->n_heads *
                                          impl_.context.config.dims_of(layer).key_dim * sizeof(float);
    }

    std::uint64_t rope_bytes(std::uint32_t layer) const noexcept {
        const RopeConfig* rope = own_rope(layer);
        return rope == nullptr ? 0 : sizeof(StateRope) + rope->n_pairs * sizeof(double);
    }
    std::uint64_t squares_bytes(std::uint32_t layer) const noexcept {
        const LayerStream* stream = impl_.layers[layer];
        if (stream == nullptr || stream->n_tokens() == 0 || stream->squares().is_empty()) return 0;
        const QuerySquares& squares = stream->squares();
        return sizeof(StateSquares) + squares.n_channels() * sizeof(double) +
               squares.n_rows() * (sizeof(StateSquareRow) + squares.n_channels() * sizeof(float));
    }
    const RopeConfig* own_rope(std::uint32_t layer) const noexcept {
        const LayerStream* stream = impl_.layers[layer];
        return stream == nullptr ? nullptr : stream->rope_in_use().own();
    }

    template <class Visit>
    void list_layer(std::uint32_t layer, const LayerStream& stream, unsigned char** composed,
                    const Visit& visit) const noexcept {
        const CacheConfig& config = impl_.context.config;
        const LayerShape shape = stream.tokens().shape();
        compose_layer(stream, *composed);
        visit(section(StateKind::layer, layer, sizeof(StateLayer)), *composed);
        if (*composed != nullptr) *composed += sizeof(StateLayer);
        for (const TensorKind kind : kinds) {
            const std::uint64_t n_bytes =
                (config.dims_of(layer).n_kv_heads + std::uint64_t{1}) * sizeof(std::uint32_t);
            if (stream.rates().planes(kind) != nullptr)
                visit(section(state_kind(StateKind::key_planes, kind), layer, n_bytes),
                      stream.rates().planes(kind));
        }
        for (const TensorKind kind : kinds) {
            const TokenBuffer& sinks = stream.tokens().sinks(kind);
            if (shape.n_sinks > 0)
                visit(section(state_kind(StateKind::key_sinks, kind), layer, sinks.n_bytes(shape.n_sinks)),
                      sinks.data());
        }
        list_blocks(layer, stream.tokens().blocks(), visit);
        for (const TensorKind kind : kinds) {
            const TokenBuffer& buffer = stream.tokens().buffer(kind);
            if (shape.n_buffered > 0)
                visit(
                    section(state_kind(StateKind::key_buffer, kind), layer, buffer.n_bytes(shape.n_buffered)),
                    buffer.data());
        }
        if (const std::uint64_t n_bytes = query_bytes(layer); n_bytes > 0) {
            compose_queries(*impl_.rates.sample(layer), n_bytes, *composed);
            visit(section(StateKind::queries, layer, n_bytes), *composed);
            if (*composed != nullptr) *composed += n_bytes;
        }
        if (const std::uint64_t n_bytes = rope_bytes(layer); n_bytes > 0) {
            compose_rope(*own_rope(layer), *composed);
            visit(section(StateKind::rope, layer, n_bytes), *composed);
            if (*composed != nullptr) *composed += n_bytes;
        }
        if (const std::uint64_t n_bytes = squares_bytes(layer); n_bytes > 0) {
            compose_squares(stream.squares(), *composed);
            visit(section(StateKind::squares, layer, n_bytes), *composed);
            if (*composed != nullptr) *composed += n_bytes;
        }
    }

    template <class Visit>
    void list_blocks(std::uint32_t layer, const BlockTable& blocks, const Visit& visit) const noexcept {
        for (const TensorKind kind : kinds) {
            if (blocks.own_profiles(kind) != nullptr)
                visit(section(state_kind(StateKind::key_profiles, kind), layer, blocks.profile_bytes(kind)),
                      blocks.own_profiles(kind));
        }
        for (std::uint64_t i = 0; i < blocks.size(); ++i) {
            for (const TensorKind kind : kinds) {
                const void* block = kind == TensorKind::key ? blocks[i].key : blocks[i].value;
                StateSection found = section(state_kind(StateKind::key_block, kind), layer,
                                             static_cast<const BlockHeader*>(block)->n_bytes);
                found.first = blocks[i].first;
                found.n_tokens = blocks[i].n_tokens;
                found.shift = blocks[i].shift;
                visit(found, block);
            }
        }
    }

    static void compose_layer(const LayerStream& stream, unsigned char* to) noexcept {
        if (to == nullptr) return;
        const LayerShape shape = stream.tokens().shape();
        const LayerProgress progress = stream.progress();
        StateLayer layer = {};
        layer.n_sinks = shape.n_sinks;
        layer.n_forgotten = shape.n_forgotten;
        layer.n_closed = shape.n_closed;
        layer.n_buffered = shape.n_buffered;
        layer.exact_from = progress.exact_from;
        layer.pending_tokens = progress.pending_tokens;
        layer.pending_appended = progress.pending_appended;
        layer.flags = static_cast<std::uint32_t>(progress.prompt) |
                      static_cast<std::uint32_t>(progress.pending_prompt) << 1 |
                      static_cast<std::uint32_t>(shape.n_left > 0) << 2 |
                      static_cast<std::uint32_t>(stream.rope_in_use().is_in_use()) << 3;
        layer.key_rate = stream.rates().spec(TensorKind::key).rate;
        layer.value_rate = stream.rates().spec(TensorKind::value).rate;
        std::memcpy(to, &layer, sizeof(layer));
    }

    static void compose_rope(const RopeConfig& rope, unsigned char* to) noexcept {
        if (to == nullptr) return;
        StateRope found = {};
        found.n_pairs = rope.n_pairs;
        found.interleaved = rope.interleaved;
        std::memcpy(to, &found, sizeof(found));
        if (rope.n_pairs > 0)
            std::memcpy(to + sizeof(found), rope.frequencies, rope.n_pairs * sizeof(double));
    }

    static void compose_squares(const QuerySquares& squares, unsigned char* to) noexcept {
        if (to == nullptr) return;
        StateSquares found = {};
        found.n_rows = squares.n_rows();
        found.n_summed = squares.n_summed();
        const auto put = [&](const void* from, std::uint64_t n_bytes) {
            if (n_bytes > 0) std::memcpy(to, from, n_bytes);
            to += n_bytes;
        };
        put(&found, sizeof(found));
        put(squares.sum(), squares.n_channels() * sizeof(double));
        put(squares.rows(), squares.n_rows() * sizeof(StateSquareRow));
        put(squares.levels(), squares.n_rows() * squares.n_channels() * sizeof(float));
    }

    static void compose_queries(const QuerySample& sample, std::uint64_t n_bytes,
                                unsigned char* to) noexcept {
        if (to == nullptr) return;
        StateQueries queries = {};
        queries.n_queries = sample.n_queries;
        queries.next = sample.next;
        queries.n_heads = sample.n_heads;
        queries.scale = sample.scale;
        std::copy_n(sample.visible, sample.n_queries, queries.visible);
        std::memcpy(to, &queries, sizeof(queries));
        std::memcpy(to + sizeof(queries), sample.rows, n_bytes - sizeof(queries));
    }

    const CacheAccess::Impl& impl_;
    const SaveOptions& options_;
};

StateHeader make_header(const CacheAccess::Impl& impl, const SaveOptions& options) noexcept {
    const CacheConfig& config = impl.context.config;
    const bool is_alike = is_uniform(config);
    StateHeader header = {};
    std::memcpy(header.magic, state_magic, sizeof(state_magic));
    header.version = is_alike ? state_version : state_dims_version;
    header.byte_order = state_byte_order;
    header.block_version = 1;
    for (std::uint32_t layer = 0; layer < config.n_layers; ++layer) {
        const KvSpec spec = first_spec(config, layer);
        if (spec.key.backbone == Backbone::trellis || spec.value.backbone == Backbone::trellis)
            header.block_version = block_version;
    }
    header.n_layers = config.n_layers;
    if (is_alike) {
        const LayerDims dims = config.dims_of(0);
        header.n_kv_heads = dims.n_kv_heads;
        header.key_dim = dims.key_dim;
        header.value_dim = dims.value_dim;
    } else {
        header.dims_checksum = xxh64(config.dims, config.n_layers * sizeof(LayerDims));
    }
    header.max_tokens = config.max_tokens;
    header.seed = config.seed;
    header.spread_tokens = config.spread_tokens;
    header.flags =
        (config.spec.auto_bits != 0.0f && !impl.rates.waits() ? 1u : 0u) | (config.latent ? 2u : 0u);
    header.rope_pairs = config.rope.n_pairs;
    header.rope_interleaved = config.rope.interleaved;
    header.rope_checksum = xxh64(config.rope.frequencies, config.rope.n_pairs * sizeof(double));
    std::memcpy(header.model, options.model.bytes, sizeof(header.model));
    static_assert(state_spec_chars >= max_spec_chars);
    (void)format_spec(config.spec, header.spec, sizeof(header.spec)).ok();  // the spec was checked
    return header;
}

// Where the bytes of a state go.
class StateOutput {
  public:
    virtual Status write(const void* bytes, std::size_t n_bytes) noexcept = 0;

  protected:
    ~StateOutput() = default;
};

class FileOutput final : public StateOutput {
  public:
    explicit FileOutput(AtomicFile* file) noexcept : file_(file) {}
    Status write(const void* bytes, std::size_t n_bytes) noexcept override {
        return file_->write(bytes, n_bytes);
    }

  private:
    AtomicFile* file_;
};

class CallbackOutput final : public StateOutput {
  public:
    explicit CallbackOutput(const ByteSink& sink) noexcept : sink_(sink) {}
    // Errors: write_failed.
    Status write(const void* bytes, std::size_t n_bytes) noexcept override {
        if (!sink_.write(sink_.context, bytes, n_bytes)) {
            return Status::error(Code::write_failed,
                                 "the function that writes took %llu bytes, but not %zu more",
                                 static_cast<unsigned long long>(n_taken_), n_bytes);
        }
        n_taken_ += n_bytes;
        return {};
    }

  private:
    ByteSink sink_;
    std::uint64_t n_taken_ = 0;
};

// Of memory with room for all.
class MemoryOutput final : public StateOutput {
  public:
    explicit MemoryOutput(void* to) noexcept : at_(static_cast<unsigned char*>(to)) {}
    Status write(const void* bytes, std::size_t n_bytes) noexcept override {
        std::memcpy(at_, bytes, n_bytes);
        at_ += n_bytes;
        return {};
    }

  private:
    unsigned char* at_;
};

// Whether the section shows the same block as the one of its kind before it, whose bytes are at `before`.
bool repeats(const StateSection& section, const void* bytes, const void* before) noexcept {
    const auto kind = static_cast<StateKind>(section.kind);
    return bytes == before && (kind == StateKind::key_block || kind == StateKind::value_block);
}
bool repeats(const StateSection* sections, const void* const* bytes, std::uint64_t i) noexcept {
    return i >= 2 && repeats(sections[i], bytes[i], bytes[i - 2]);
}

// How many sections there are, and the bytes of the whole.
struct StateSize {
    std::uint64_t n_sections = 0;
    std::uint64_t n_bytes = sizeof(StateHeader);

    StateSize(const CacheConfig& config, const Sections& list) noexcept {
        if (!is_uniform(config)) n_bytes += state_dims_bytes(config.n_layers);
        const void* before[2] = {nullptr, nullptr};  // the last two
        list.list(nullptr, [&](const StateSection& section, const void* bytes) {
            ++n_sections;
            n_bytes += sizeof(StateSection);
            if (!repeats(section, bytes, before[0])) n_bytes += round_up(section.n_bytes, state_alignment);
            before[0] = before[1];
            before[1] = bytes;
        });
    }
};

// `dims` are null where all layers are alike.
Status write_all(StateOutput* output, StateHeader* header, const LayerDims* dims, StateSection* sections,
                 const void* const* bytes, Executor& executor) noexcept {
    const std::uint64_t n = header->n_sections;
    const std::uint64_t dims_bytes = dims == nullptr ? 0 : header->n_layers * sizeof(LayerDims);
    std::uint64_t place =
        sizeof(StateHeader) + round_up(dims_bytes, state_alignment) + n * sizeof(StateSection);
    for (std::uint64_t i = 0; i < n; ++i) {
        const bool again = repeats(sections, bytes, i);
        sections[i].offset = again ? sections[i - 2].offset : place;
        if (!again) place = round_up(place + sections[i].n_bytes, state_alignment);
    }
    parallel_for(executor, n, [&](std::size_t i) {
        if (!repeats(sections, bytes, i)) sections[i].checksum = xxh64(bytes[i], sections[i].n_bytes);
    });
    for (std::uint64_t i = 0; i < n; ++i) {
        if (repeats(sections, bytes, i)) sections[i].checksum = sections[i - 2].checksum;
    }
    header->n_bytes = place;
    header->table_checksum = xxh64(sections, n * sizeof(StateSection));
    header->checksum = xxh64(header, offsetof(StateHeader, checksum));
    static constexpr unsigned char zeros[state_alignment] = {};
    const auto write = [&](const void* from, std::uint64_t n_bytes) {
        Status status = output->write(from, n_bytes);
        const std::uint64_t n_zeros = round_up(n_bytes, state_alignment) - n_bytes;
        return status.ok() && n_zeros > 0 ? output->write(zeros, n_zeros) : status;
    };
    Status status = output->write(header, sizeof(*header));
    if (status.ok() && dims_bytes > 0) status = write(dims, dims_bytes);
    if (status.ok() && n > 0) status = output->write(sections, n * sizeof(StateSection));
    for (std::uint64_t i = 0; status.ok() && i < n; ++i) {
        if (!repeats(sections, bytes, i)) status = write(bytes[i], sections[i].n_bytes);
    }
    return status;
}

Status check_options(const void* target, const char* name, const SaveOptions& options) noexcept {
    const char* null = target == nullptr                                 ? name
                       : options.extra == nullptr && options.n_extra > 0 ? "extra"
                       : options.kept == nullptr && options.n_kept > 0   ? "kept"
                                                                         : nullptr;
    return null == nullptr ? Status() : Status::error(Code::invalid_argument, "null %s", null);
}

// The cache that is saved: the caller's, or a fork of it cut to the tokens that were asked for.
class SavedCache {
  public:
    Status choose(const Cache& cache, const SaveOptions& options, bool* lossless) noexcept {
        chosen_ = &cache;
        *lossless = true;
        if (options.n_tokens == UINT64_MAX) return {};
        if (Status status = cache.fork(&part_); !status.ok()) return status;
        chosen_ = part_.get();
        return part_->truncate(options.n_tokens, lossless);
    }
    const CacheAccess::Impl& impl() const noexcept { return CacheAccess::of(*chosen_); }
    std::uint64_t n_bytes(const SaveOptions& options) const noexcept {
        return StateSize(chosen_->config(), Sections(impl(), options)).n_bytes;
    }

  private:
    const Cache* chosen_ = nullptr;
    std::unique_ptr<Cache> part_;
};

// After the options were checked.
Status write_state(const CacheAccess::Impl& impl, const SaveOptions& options, Executor& executor,
                   StateOutput* output) noexcept {
    const CacheConfig& config = impl.context.config;
    for (std::uint32_t i = 0; i < config.n_layers; ++i) {
        if (impl.layers[i] == nullptr) continue;
        if (Status status = impl.layers[i]->check_blocks(executor); !status.ok()) return status;
    }
    const Sections list(impl, options);
    StateHeader header = make_header(impl, options);
    const std::uint64_t n = StateSize(config, list).n_sections;
    if (n > UINT32_MAX) return Status::error(Code::wrong_size, "too many blocks for one state");
    header.n_sections = static_cast<std::uint32_t>(n);
    const std::uint64_t n_bytes = list.n_composed() + n * (sizeof(StateSection) + sizeof(void*));
    const Allocator& allocator = config.allocator;
    auto* memory =
        static_cast<unsigned char*>(allocator.allocate(allocator.context, n_bytes, block_alignment));
    if (memory == nullptr) {
        return Status::error(Code::out_of_memory, "no %llu bytes for the table of a state",
                             static_cast<unsigned long long>(n_bytes));
    }
    auto* sections = reinterpret_cast<StateSection*>(memory);
    auto* bytes = reinterpret_cast<const void**>(sections + n);
    auto* composed = reinterpret_cast<unsigned char*>(bytes + n);
    std::uint64_t i = 0;
    list.list(composed, [&](const StateSection& section, const void* from) {
        sections[i] = section;
        bytes[i++] = from;
    });
    const LayerDims* dims = is_uniform(config) ? nullptr : config.dims;
    const Status status = write_all(output, &header, dims, sections, bytes, executor);
    allocator.release(allocator.context, memory, n_bytes);
    return status;
}

Status save(const Cache& cache, const SaveOptions& options, Executor& executor,
            StateOutput* output) noexcept {
    SavedCache saved;
    bool lossless = true;
    if (Status status = saved.choose(cache, options, &lossless); !status.ok()) return status;
    return write_state(saved.impl(), options, executor, output);
}

}  // namespace

Status save_state(const Cache& cache, const char* path, const SaveOptions& options, Executor& caller,
                  Status* warning) noexcept {
    CallExecutor executor(caller);
    if (Status status = executor.check(); !status.ok()) return status;
    if (Status status = check_options(path, "path", options); !status.ok()) return status;
    AtomicFile file;
    if (Status status = file.open(path, options.kept, options.n_kept); !status.ok()) return status;
    FileOutput output(&file);
    const Status status = save(cache, options, executor, &output);
    return status.ok() ? file.commit(warning) : status;
}

Status save_state(const Cache& cache, const ByteSink& sink, const SaveOptions& options,
                  Executor& caller) noexcept {
    CallExecutor executor(caller);
    if (Status status = executor.check(); !status.ok()) return status;
    if (sink.write == nullptr) return Status::error(Code::invalid_argument, "a sink without write");
    if (Status status = check_options(&sink, "sink", options); !status.ok()) return status;
    CallbackOutput output(sink);
    return save(cache, options, executor, &output);
}

Status save_state(const Cache& cache, void* to, std::size_t n_room, const SaveOptions& options,
                  Executor& caller, std::size_t* n_written) noexcept {
    CallExecutor executor(caller);
    if (Status status = executor.check(); !status.ok()) return status;
    if (Status status = check_options(to, "memory", options); !status.ok()) return status;
    SavedCache saved;
    bool lossless = true;
    if (Status status = saved.choose(cache, options, &lossless); !status.ok()) return status;
    const std::uint64_t n_bytes = saved.n_bytes(options);
    if (n_bytes > n_room) {
        return Status::error(Code::wrong_size, "room for %zu bytes, the state has %llu", n_room,
                             static_cast<unsigned long long>(n_bytes));
    }
    MemoryOutput output(to);
    if (Status status = write_state(saved.impl(), options, executor, &output); !status.ok()) return status;
    if (n_written != nullptr) *n_written = static_cast<std::size_t>(n_bytes);
    return {};
}

Status state_bytes(const Cache& cache, const SaveOptions& options, std::uint64_t* n_bytes,
                   bool* lossless) noexcept {
    if (Status status = check_options(n_bytes, "number of bytes", options); !status.ok()) return status;
    SavedCache saved;
    bool exact = true;
    if (Status status = saved.choose(cache, options, &exact); !status.ok()) return status;
    *n_bytes = saved.n_bytes(options);
    if (lossless != nullptr) *lossless = exact;
    return {};
}

Status check_save_target(const char* path, const SaveOptions& options) noexcept {
    if (Status status = check_options(path, "path", options); !status.ok()) return status;
    AtomicFile file;
    return file.open(path, options.kept, options.n_kept);
}

}  // namespace gearkv
