#include <cstring>
#include <new>

#include "cache/check.hpp"
#include "executor/call.hpp"
#include "file/xxh64.hpp"
#include "state/state_file.hpp"

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

// Fills a new cache from a file.
class Loader {
  public:
    Loader(StateFile* file, const LoadOptions& options, Cache* cache) noexcept
        : file_(file), options_(options), impl_(CacheAccess::of(*cache)), cache_(cache) {}
    ~Loader() {
        if (owner_ != nullptr) owner_->drop_user();
    }

    // After check_file.
    Status load() noexcept {
        if (Status status = create_owner(); !status.ok()) return status;
        StateReader reader(*file_, cache_->config(), true);
        for (std::uint32_t i = 0; i < file_->header().n_layers; ++i) {
            StateLayerSections sections;
            if (Status status = reader.read_layer(i, &sections); !status.ok()) return status;
            if (Status status = load_layer(i, sections); !status.ok()) return status;
        }
        impl_.rates.set_done((file_->header().flags & 1) != 0);
        impl_.has_stepped = impl_.n_tokens(impl_.longest_layer()) > 0;  // as between two steps
        return {};
    }

    // After load: the mapping stays as long as its blocks.
    void keep_file() noexcept {
        if (options_.loading == StateLoading::map) owner_->file = file_->release();
    }

  private:
    // The owner of mapped blocks, and their checks when these come later.
    Status create_owner() noexcept {
        const Allocator& allocator = cache_->config().allocator;
        const bool later = options_.checking == StateChecking::on_first_use;
        const std::uint64_t n_checks = later ? file_->header().n_sections / 2 : 0;
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
        for (std::uint64_t i = 0; i < sections.n_blocks; ++i) {
            if (!push_block(&stream, memory, sections.block(i))) return no_memory(layer);
        }
        const StateLayer& found = sections.layer;
        // Those without the flag may be of an earlier version, which did not tell why tokens are missing.
        const bool is_left = (found.flags & 4) != 0 || window_of(impl_.context.config, layer) > 0;
        const LayerShape shape = {found.n_sinks, found.n_forgotten, found.n_closed, found.n_buffered,
                                  is_left ? found.n_forgotten : 0};
        if (Status status = impl_.check_window(layer, shape, "file"); !status.ok()) return status;
        const LayerProgress progress = {found.exact_from, found.pending_tokens, found.pending_appended,
                                        (found.flags & 2) != 0, (found.flags & 1) != 0};
        if (!stream.restore(&impl_.context, shape, progress, sections.sinks, sections.buffer))
            return no_memory(layer);
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

    bool push_block(LayerStream* stream, const Memory& memory, const StateBlock& found) noexcept {
        ClosedBlock block;
        const BlockTable& table = stream->tokens().blocks();
        if (found.repeats) {
            block = table[table.size() - 1];
            block.owner->add_user();
        } else if (options_.loading == StateLoading::map) {
            block.owner = owner_;
            block.owner->add_user();
            block.key = file_->bytes(*found.key);
            block.value = file_->bytes(*found.value);
            block.is_mapped = true;
        } else {
            NewBlock copy;
            if (!take_block(memory, found.key->n_bytes, found.value->n_bytes, &copy)) return false;
            std::memcpy(copy.key, file_->bytes(*found.key), found.key->n_bytes);
            std::memcpy(copy.value, file_->bytes(*found.value), found.value->n_bytes);
            block.owner = copy.owner;
            block.key = copy.key;
            block.value = copy.value;
        }
        if (!found.repeats && options_.checking == StateChecking::on_first_use) {
            block.check = checks_++;
            block.check->key_checksum = found.key->checksum;
            block.check->value_checksum = found.value->checksum;
        }
        block.first = found.key->first;
        block.n_tokens = found.key->n_tokens;
        block.shift = found.key->shift;
        stream->mutable_blocks()->push(block);
        return true;
    }

    Status no_memory(std::uint32_t layer) const noexcept {
        return memory_error(impl_.context, "for the tokens of layer %u of the file", layer);
    }

    StateFile* file_;
    const LoadOptions& options_;
    CacheAccess::Impl& impl_;
    Cache* cache_;
    MappedBlocks* owner_ = nullptr;
    BlockCheck* checks_ = nullptr;  // the next free one
};

void fill_info(const StateFile& file, StateInfo* out) noexcept {
    StateInfo info;
    const StateHeader& header = file.header();
    info.version = header.version;
    info.n_bytes = header.n_bytes;
    info.config = file.config();
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
    *out = info;
}

// The largest count of a layer's section, whose checksum is right.
Status count_tokens(const StateFile& file, std::uint64_t* out) noexcept {
    *out = 0;
    const StateHeader& header = file.header();
    for (std::uint32_t i = 0; i < header.n_sections; ++i) {
        const StateSection& section = file.sections()[i];
        if (section.kind != static_cast<std::uint32_t>(StateKind::layer)) continue;
        StateLayer layer;
        if (section.n_bytes != sizeof(layer) || section.offset > header.n_bytes - sizeof(layer))
            return Status::error(Code::corrupt_state, "section %u lies outside of the file", i);
        std::memcpy(&layer, file.bytes(section), sizeof(layer));
        if (xxh64(&layer, sizeof(layer)) != section.checksum)
            return Status::error(Code::damaged, "wrong checksum of section %u, a layer", i);
        *out = std::max(*out, layer.n_sinks + layer.n_forgotten + layer.n_closed + layer.n_buffered);
    }
    return {};
}

Status open_and_inspect(const char* path, StateFile* file, StateInfo* info) noexcept {
    if (Status status = StateFile::open(path, file); !status.ok()) return status;
    fill_info(*file, info);
    return count_tokens(*file, &info->n_tokens);
}

}  // namespace

Status load_state(const char* path, const CacheConfig& config, const LoadOptions& options, Executor& caller,
                  std::unique_ptr<Cache>* out, std::size_t* n_extra) noexcept {
    CallExecutor executor(caller);
    if (Status status = executor.check(); !status.ok()) return status;
    if (out == nullptr || (options.extra == nullptr && options.extra_capacity > 0))
        return Status::error(Code::invalid_argument, "%s is null", out == nullptr ? "out" : "extra");
    if (Status status = check_config(config); !status.ok()) return status;
    StateFile file;
    if (Status status = StateFile::open(path, &file); !status.ok()) return status;
    if (Status status = match_config(file, config, options.model); !status.ok()) return status;
    CacheConfig own = config;
    own.seed = file.config().seed;
    own.spread_tokens = file.config().spread_tokens;
    LoadOptions all_copied = options;
    if (options.loading == StateLoading::copy) all_copied.checking = StateChecking::all;
    const StateSection* extra = nullptr;
    if (Status status = check_file(file, own, all_copied.checking, executor, &extra); !status.ok())
        return status;
    const std::uint64_t extra_bytes = extra == nullptr ? 0 : extra->n_bytes;
    if (options.extra_capacity > 0 && extra_bytes > options.extra_capacity) {
        return Status::error(Code::wrong_size, "%llu extra bytes, there is room for %zu",
                             static_cast<unsigned long long>(extra_bytes), options.extra_capacity);
    }
    std::unique_ptr<Cache> cache;
    if (Status status = Cache::create(own, &cache); !status.ok()) return status;
    Loader loader(&file, all_copied, cache.get());
    if (Status status = loader.load(); !status.ok()) return status;
    if (options.extra_capacity > 0 && extra != nullptr)
        std::memcpy(options.extra, file.bytes(*extra), extra_bytes);
    if (n_extra != nullptr) *n_extra = static_cast<std::size_t>(extra_bytes);
    loader.keep_file();
    *out = std::move(cache);
    return {};
}

Status inspect_state(const char* path, StateInfo* out) noexcept {
    if (out == nullptr) return Status::error(Code::invalid_argument, "out is null");
    StateFile file;
    StateInfo info;
    if (Status status = open_and_inspect(path, &file, &info); !status.ok()) return status;
    *out = info;
    return {};
}

Status verify_state(const char* path, Executor& caller, StateInfo* out) noexcept {
    CallExecutor executor(caller);
    if (Status status = executor.check(); !status.ok()) return status;
    if (out == nullptr) return Status::error(Code::invalid_argument, "out is null");
    StateFile file;
    StateInfo info;
    if (Status status = open_and_inspect(path, &file, &info); !status.ok()) return status;
    const StateSection* extra = nullptr;
    Status status = check_file(file, file.config(), StateChecking::all, executor, &extra);
    if (!status.ok()) return status;
    *out = info;
    return {};
}

}  // namespace gearkv
