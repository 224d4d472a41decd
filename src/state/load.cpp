#include <cstring>
#include <new>
#include <utility>

#include "cache/check.hpp"
#include "executor/call.hpp"
#include "file/mapped_file.hpp"
#include "state/state_reader.hpp"

namespace gearkv {
namespace {

// A mapped file that blocks lie in, and what is known of them.
struct MappedBlocks final : BlockOwner {
    Allocator allocator;
    MappedFile file;
    std::uint64_t n_bytes = 0;  // of this and the checks behind it
};

void destroy_mapped(BlockOwner* owner) noexcept {
    auto* mapped = static_cast<MappedBlocks*>(owner);
    const Allocator allocator = mapped->allocator;
    const std::uint64_t n_bytes = mapped->n_bytes;
    mapped->~MappedBlocks();
    allocator.release(allocator.context, mapped, n_bytes);
}

// Fills a new cache.
class Loader {
  public:
    // The input is in place when blocks are to be mapped, and a stream when they are to be copied.
    Loader(const StateFile& file, StateInput* input, const LoadOptions& options, Cache* cache) noexcept
        : file_(file),
          options_(options),
          is_mapped_(input->is_in_place()),
          looks_later_(is_mapped_ && options.checking == StateChecking::on_first_use),
          impl_(CacheAccess::of(*cache)),
          reader_(file, input, cache->config(), is_mapped_ ? nullptr : &impl_) {}
    ~Loader() {
        if (owner_ != nullptr) owner_->drop_user();
    }

    // All but the caller's bytes.
    Status load(Executor& executor) noexcept {
        if (is_mapped_) {
            if (Status status = create_owner(); !status.ok()) return status;
        }
        for (std::uint32_t i = 0; i < file_.header().n_layers; ++i) {
            StateLayerSections sections;
            Status status = reader_.read_layer(i, &sections);
            if (status.ok() && !looks_later_) status = reader_.check_blocks(sections, executor);
            if (status.ok() && impl_.has_keys(i)) status = load_layer(i, sections);
            if (!status.ok()) return status;
        }
        impl_.rates.set_done((file_.header().flags & 1) != 0);
        impl_.has_stepped = impl_.n_tokens(impl_.longest_layer()) > 0;  // as between two steps
        return {};
    }

    // Then the caller's bytes. The last that can fail.
    Status load_extra(std::uint64_t* n_extra) noexcept {
        const void* bytes = nullptr;
        const std::uint64_t room = options_.extra_capacity > 0 ? options_.extra_capacity : UINT64_MAX;
        if (Status status = reader_.read_extra(room, &bytes, n_extra); !status.ok()) return status;
        const auto n = static_cast<std::size_t>(*n_extra);
        void* to = options_.extra_capacity > 0 ? options_.extra : nullptr;
        if (n > 0 && options_.make_room != nullptr) {
            to = options_.make_room(options_.make_room_context, n);
            if (to == nullptr)
                return Status::error(Code::out_of_memory, "the caller has no room for %zu extra bytes", n);
        }
        if (n > 0 && to != nullptr) std::memcpy(to, bytes, n);
        return {};
    }

    // After that: the mapping stays as long as its blocks.
    void keep_file(MappedFile file) noexcept { owner_->file = std::move(file); }

  private:
    // The owner of mapped blocks, and their checks when these come later.
    Status create_owner() noexcept {
        const Allocator& allocator = impl_.context.config.allocator;
        const std::uint64_t n_checks = looks_later_ ? file_.header().n_sections / 2 : 0;
        const std::uint64_t n_bytes = round_up(sizeof(MappedBlocks), 64) + n_checks * sizeof(BlockCheck);
        void* place = allocator.allocate(allocator.context, n_bytes, block_alignment);
        if (place == nullptr) {
            return Status::error(Code::out_of_memory, "no %llu bytes for what is known of the blocks",
                                 static_cast<unsigned long long>(n_bytes));
        }
        owner_ = new (place) MappedBlocks;
        owner_->destroy = destroy_mapped;
        owner_->allocator = allocator;
        owner_->n_bytes = n_bytes;
        checks_ = reinterpret_cast<BlockCheck*>(static_cast<unsigned char*>(place) +
                                                round_up(sizeof(MappedBlocks), 64));
        for (std::uint64_t i = 0; i < n_checks; ++i)
            new (checks_ + i) BlockCheck;
        return {};
    }

    Status load_layer(std::uint32_t layer, const StateLayerSections& sections) noexcept {
        LayerStream& stream = *impl_.layers[layer];
        const Memory memory = stream.memory(&impl_.context);
        if (sections.planes[0] == nullptr) stream.mutable_rates()->share_evenly(sections.spec);
        for (const TensorKind kind : {TensorKind::key, TensorKind::value}) {
            const int i = static_cast<int>(kind);
            const float rate = kind == TensorKind::key ? sections.spec.key.rate : sections.spec.value.rate;
            if (sections.planes[i] != nullptr)
                stream.mutable_rates()->set_planes(
                    kind, static_cast<const std::uint32_t*>(sections.planes[i]), rate);
            if (sections.profiles[i] != nullptr &&
                !stream.mutable_blocks()->set_profiles(memory, kind, sections.profiles[i],
                                                       sections.profile_bytes[i]))
                return no_memory(layer);
        }
        if (!stream.mutable_blocks()->reserve(memory, sections.n_blocks)) return no_memory(layer);
        for (std::uint64_t i = 0; i < sections.n_blocks; ++i)
            push_block(&stream, sections.block(i));
        const StateLayer& found = sections.layer;
        // Those without the flag may be of an earlier version, which did not tell why tokens are missing.
        const bool is_left = (found.flags & 4) != 0 || window_of(impl_.context.config, layer) > 0;
        const LayerShape shape = {found.n_sinks, found.n_forgotten, found.n_closed, found.n_buffered,
                                  is_left ? found.n_forgotten : 0};
        if (Status status = impl_.check_window(layer, shape, "state"); !status.ok()) return status;
        const LayerProgress progress = {found.exact_from, found.pending_tokens, found.pending_appended,
                                        (found.flags & 2) != 0, (found.flags & 1) != 0};
        if (const StateSquares* squares = sections.squares; squares != nullptr) {  // an open unit needs them
            const auto* sum = reinterpret_cast<const double*>(squares + 1);
            const auto* rows = reinterpret_cast<const SquareRow*>(sum + stream.squares().n_channels());
            const auto* levels = reinterpret_cast<const float*>(rows + squares->n_rows);
            if (!stream.restore_squares(&impl_.context, sum, squares->n_summed, rows, levels,
                                        squares->n_rows))
                return no_memory(layer);
        }
        if (!stream.restore(&impl_.context, shape, progress, sections.sinks, sections.buffer))
            return no_memory(layer);
        if (!restore_rope(&stream, sections)) return no_memory(layer);
        if (sections.queries == nullptr) return {};
        QuerySample sample;
        sample.n_queries = sections.queries->n_queries;
        sample.next = sections.queries->next;
        sample.n_heads = sections.queries->n_heads;
        sample.scale = sections.queries->scale;
        sample.n_tokens = shape.n_tokens();
        std::copy_n(sections.queries->visible, QuerySample::most_queries, sample.visible);
        const bool restored = impl_.rates.restore(&impl_.context, layer, sample, sections.queries + 1);
        return restored ? Status() : no_memory(layer);
    }

    // By which keys have moved, if any have; earlier files tell it only of blocks.
    bool restore_rope(LayerStream* stream, const StateLayerSections& sections) noexcept {
        bool has_moved = (sections.layer.flags & 8) != 0;
        for (std::uint64_t i = 0; i < sections.n_blocks; ++i)
            has_moved |= sections.block(i).key->shift != 0;
        if (!has_moved) return true;
        RopeConfig rope = impl_.context.config.rope;
        if (const StateRope* own = sections.rope; own != nullptr)
            rope = {reinterpret_cast<const double*>(own + 1), own->n_pairs, own->interleaved != 0};
        return stream->restore_rope(&impl_.context, rope);
    }

    void push_block(LayerStream* stream, const StateBlock& found) noexcept {
        ClosedBlock block;
        const BlockTable& table = stream->tokens().blocks();
        block.key = found.place->key;
        block.value = found.place->value;
        block.is_mapped = is_mapped_;
        if (found.repeats) {
            block = table[table.size() - 1];
            block.owner->add_user();
        } else if (is_mapped_) {
            block.owner = owner_;
            block.owner->add_user();
        } else {
            block.owner = std::exchange(found.place->owner, nullptr);
        }
        if (!found.repeats && looks_later_) {
            block.check = checks_++;
            block.check->key_checksum = found.key->checksum;
            block.check->value_checksum = found.value->checksum;
        }
        block.first = found.key->first;
        block.n_tokens = found.key->n_tokens;
        block.shift = found.key->shift;
        stream->mutable_blocks()->push(block);
    }

    Status no_memory(std::uint32_t layer) const noexcept {
        return memory_error(impl_.context, "for the tokens of layer %u of a state", layer);
    }

    const StateFile& file_;
    const LoadOptions& options_;
    const bool is_mapped_;
    const bool looks_later_;
    CacheAccess::Impl& impl_;
    StateReader reader_;
    MappedBlocks* owner_ = nullptr;
    BlockCheck* checks_ = nullptr;  // the next free one
};

Status fill_info(const StateFile& file, StateInfo* out) noexcept {
    StateInfo info;
    const StateHeader& header = file.header();
    info.version = header.version;
    info.n_bytes = header.n_bytes;
    info.config = file.config();
    if (info.config.dims != nullptr) {
        info.dims.reset(new (std::nothrow) LayerDims[header.n_layers]);
        if (info.dims == nullptr)
            return Status::error(Code::out_of_memory, "no memory for the shapes of %u layers",
                                 header.n_layers);
        std::copy_n(info.config.dims, header.n_layers, info.dims.get());
        info.config.dims = info.dims.get();
    }
    info.rope_checksum = header.rope_checksum;
    info.model = file.model();
    for (std::uint32_t i = 0; i < header.n_sections; ++i) {
        const StateSection& section = file.sections()[i];
        switch (static_cast<StateKind>(section.kind)) {
            case StateKind::key_block:
            case StateKind::value_block:
                ++info.n_blocks;
                info.block_bytes += section.n_bytes;
                break;
            case StateKind::extra:
                info.n_extra = section.n_bytes;
                break;
            default:
                break;
        }
    }
    *out = std::move(info);
    return {};
}

// The largest count of a layer's section, whose checksum is right.
Status count_tokens(const StateFile& file, const MappedFile& mapped, std::uint64_t* out) noexcept {
    *out = 0;
    const StateHeader& header = file.header();
    for (std::uint32_t i = 0; i < header.n_sections; ++i) {
        const StateSection& section = file.sections()[i];
        if (section.kind != static_cast<std::uint32_t>(StateKind::layer)) continue;
        StateLayer layer;
        if (section.n_bytes != sizeof(layer) || section.offset > header.n_bytes - sizeof(layer))
            return Status::error(Code::corrupt_state, "section %u lies outside of the file", i);
        std::memcpy(&layer, mapped.bytes() + section.offset, sizeof(layer));
        if (Status status = check_checksum("section of a layer", &layer, sizeof(layer), section.checksum);
            !status.ok())
            return status;
        *out = std::max(*out, layer.n_sinks + layer.n_forgotten + layer.n_closed + layer.n_buffered);
    }
    return {};
}

Status check_arguments(const CacheConfig& config, const LoadOptions& options, const void* source,
                       const void* out) noexcept {
    const char* null = source == nullptr                                        ? "source"
                       : out == nullptr                                         ? "out"
                       : options.extra == nullptr && options.extra_capacity > 0 ? "extra"
                                                                                : nullptr;
    if (null != nullptr) return Status::error(Code::invalid_argument, "%s is null", null);
    if (options.make_room != nullptr && options.extra_capacity > 0)
        return Status::error(Code::invalid_argument, "room for extra bytes, and a function that makes some");
    return check_config(config);
}

// `mapped`, when given, is what the input lies in.
Status load(StateInput* input, MappedFile* mapped, const CacheConfig& config, const LoadOptions& options,
            Executor& executor, std::unique_ptr<Cache>* out, std::size_t* n_extra) noexcept {
    StateFile file;
    if (Status status = file.read_header(input); !status.ok()) return status;
    if (Status status = match_config(file, config, options.model); !status.ok()) return status;
    if (Status status = file.read_table(input, config.max_tokens); !status.ok()) return status;
    CacheConfig own = config;
    own.seed = file.config().seed;
    own.spread_tokens = file.config().spread_tokens;
    std::unique_ptr<Cache> cache;
    if (Status status = Cache::create(own, &cache); !status.ok()) return status;
    Loader loader(file, input, options, cache.get());
    if (Status status = loader.load(executor); !status.ok()) return status;
    std::uint64_t n = 0;
    if (Status status = loader.load_extra(&n); !status.ok()) return status;
    if (mapped != nullptr) loader.keep_file(std::move(*mapped));
    if (n_extra != nullptr) *n_extra = static_cast<std::size_t>(n);
    *out = std::move(cache);
    return {};
}

Status load_stream(StateStream* stream, std::uint64_t n_bytes, const CacheConfig& config,
                   const LoadOptions& options, Executor& executor, std::unique_ptr<Cache>* out,
                   std::size_t* n_extra) noexcept {
    StateInput input(stream, n_bytes, config.allocator);
    return load(&input, nullptr, config, options, executor, out, n_extra);
}

Status check_copy(const LoadOptions& options) noexcept {
    if (options.loading == StateLoading::copy) return {};
    return Status::error(Code::invalid_argument, "only files are mapped, a stream and memory are copied");
}

Status inspect(const MappedFile& mapped, StateInput* input, StateFile* file, StateInfo* info) noexcept {
    if (Status status = file->read_header(input); !status.ok()) return status;
    if (Status status = file->read_table(input, file->config().max_tokens); !status.ok()) return status;
    if (Status status = fill_info(*file, info); !status.ok()) return status;
    return count_tokens(*file, mapped, &info->n_tokens);
}

}  // namespace

Status load_state(const char* path, const CacheConfig& config, const LoadOptions& options, Executor& caller,
                  std::unique_ptr<Cache>* out, std::size_t* n_extra) noexcept {
    CallExecutor executor(caller);
    if (Status status = executor.check(); !status.ok()) return status;
    if (Status status = check_arguments(config, options, path, out); !status.ok()) return status;
    if (options.loading == StateLoading::copy) {
        InputFile file;
        if (Status status = file.open(path); !status.ok()) return status;
        FileStream stream(&file);
        return load_stream(&stream, file.n_bytes(), config, options, executor, out, n_extra);
    }
    MappedFile mapped;
    if (Status status = MappedFile::map(path, &mapped); !status.ok()) return status;
    StateInput input(mapped.bytes(), mapped.n_bytes(), config.allocator);
    return load(&input, &mapped, config, options, executor, out, n_extra);
}

Status load_state(const ByteSource& source, const CacheConfig& config, const LoadOptions& options,
                  Executor& caller, std::unique_ptr<Cache>* out, std::size_t* n_extra) noexcept {
    CallExecutor executor(caller);
    if (Status status = executor.check(); !status.ok()) return status;
    if (source.read == nullptr) return Status::error(Code::invalid_argument, "a source without read");
    if (Status status = check_arguments(config, options, &source, out); !status.ok()) return status;
    if (Status status = check_copy(options); !status.ok()) return status;
    CallbackStream stream(source);
    return load_stream(&stream, StateInput::unknown, config, options, executor, out, n_extra);
}

Status load_state(const void* bytes, std::size_t n_bytes, const CacheConfig& config,
                  const LoadOptions& options, Executor& caller, std::unique_ptr<Cache>* out,
                  std::size_t* n_extra) noexcept {
    CallExecutor executor(caller);
    if (Status status = executor.check(); !status.ok()) return status;
    if (Status status = check_arguments(config, options, bytes, out); !status.ok()) return status;
    if (Status status = check_copy(options); !status.ok()) return status;
    MemoryStream stream(bytes, n_bytes);
    return load_stream(&stream, n_bytes, config, options, executor, out, n_extra);
}

Status inspect_state(const char* path, StateInfo* out) noexcept {
    if (out == nullptr) return Status::error(Code::invalid_argument, "out is null");
    MappedFile mapped;
    if (Status status = MappedFile::map(path, &mapped); !status.ok()) return status;
    StateInput input(mapped.bytes(), mapped.n_bytes(), default_allocator());
    StateFile file;
    StateInfo info;
    if (Status status = inspect(mapped, &input, &file, &info); !status.ok()) return status;
    *out = std::move(info);
    return {};
}

Status verify_state(const char* path, Executor& caller, StateInfo* out) noexcept {
    CallExecutor executor(caller);
    if (Status status = executor.check(); !status.ok()) return status;
    if (out == nullptr) return Status::error(Code::invalid_argument, "out is null");
    MappedFile mapped;
    if (Status status = MappedFile::map(path, &mapped); !status.ok()) return status;
    StateInput input(mapped.bytes(), mapped.n_bytes(), default_allocator());
    StateFile file;
    StateInfo info;
    if (Status status = inspect(mapped, &input, &file, &info); !status.ok()) return status;
    if (Status status = check_state(file, &input, file.config(), executor); !status.ok()) return status;
    *out = std::move(info);
    return {};
}

}  // namespace gearkv
