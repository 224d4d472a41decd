// Attention over one layer of one cache or of many: what is asked for is checked, cut into tasks, and put
// together.
#include <algorithm>
#include <atomic>
#include <bit>
#include <new>

#include "attention/select.hpp"
#include "cache/attend_check.hpp"
#include "cache/impl.hpp"
#include "cache/query_rows.hpp"
#include "executor/call.hpp"

namespace gearkv {
namespace {

// What one cache of a call does. It is cut into tasks (head, row group, part of the tokens); groups and parts
// follow from the shapes alone, so that results depend neither on the executor nor on the other caches.
struct Job {
    CacheAccess::Impl* cache;
    LayerStream* layer;
    LayerDims dims;
    HeadDims head_dims;
    Queries queries;  // within the window of the layer
    OutRows out;
    KvRun* runs;
    std::uint64_t n_runs, n_tokens, n_tiles;
    std::uint64_t n_groups, n_parts;
    std::uint64_t most_parts;  // of the longest sequence, so that later calls need no more room
    std::uint64_t first_task;  // of the call's
    float* parts;              // [task] of part_floats, with more than one part
    // Where not all is read, of every unit: the tiles that are, and the first of every part.
    std::uint64_t* chosen;       // [unit][chosen_words]
    std::uint64_t* part_starts;  // [unit][n_parts + 1]
    SelectResult* found;         // [unit]
    PieceRun pieces;             // of the layer's compression

    std::uint64_t n_units() const noexcept { return dims.n_kv_heads * n_groups; }
    std::uint64_t n_tasks() const noexcept { return n_units() * n_parts; }
    bool selects() const noexcept {
        return queries.mass < 1.0f || queries.most_share < 1.0f || queries.ranges != nullptr;
    }
};

// ---- rows ----

// Row `row` of the rows that share a KV head.
struct RowPlace {
    std::size_t query, head;
};
RowPlace place_of(const Job& job, std::uint32_t kv_head, std::uint64_t row) {
    const std::uint32_t n_shared = job.queries.n_heads / job.dims.n_kv_heads;
    return {row / n_shared, kv_head * std::size_t{n_shared} + row % n_shared};
}

// Whether outputs are written where they belong at once.
bool is_direct(const OutRows& out) {
    return out.type == ElementType::f32 && out.channel_stride == 1;
}
void add_row(const Job& job, const AttendScratch& scratch, const RowPlace& at, RowGroup* rows) {
    const Queries& queries = job.queries;
    const std::uint32_t key_dim = job.dims.key_dim;
    const std::uint32_t i = rows->n_rows++;
    const std::size_t query = at.query, head = at.head;
    rows->query[i] = row_floats(job.cache->context.kernels->codec, query_rows(queries), query, head, key_dim,
                                scratch.keys.given + i * std::size_t{key_dim});
    if (job.head_dims.latent) {
        const std::uint32_t dim = job.dims.value_dim;
        rows->latent[i] = row_floats(job.cache->context.kernels->codec, latent_rows(queries), query, head,
                                     dim, scratch.latents.given + i * std::size_t{dim});
    }
    rows->out[i] = is_direct(job.out) ? static_cast<float*>(job.out.data) + query * job.out.token_stride +
                                            head * job.out.head_stride
                                      : scratch.out + i * scratch.out_stride;
    rows->visible[i] = queries.causal ? job.n_tokens - (queries.n_queries - 1 - query) : job.n_tokens;
    if (queries.window > 0 && rows->visible[i] > queries.window)
        rows->first[i] = rows->visible[i] - queries.window;
    if (queries.slopes != nullptr) rows->slope[i] = queries.slopes[head];
    if (queries.mask != nullptr)
        rows->mask[i] = queries.mask + query * queries.mask_query_stride + head * queries.mask_head_stride;
    if (queries.sinks != nullptr) rows->sink[i] = queries.sinks[head];
    rows->soft_cap = queries.soft_cap;
    rows->negligible = queries.negligible;
    rows->has_sinks = queries.sinks != nullptr;
}

// Unit `unit`: a KV head, and a group of its rows.
std::uint32_t head_of(const Job& job, std::uint64_t unit) {
    return static_cast<std::uint32_t>(unit / job.n_groups);
}
// Calls take(place) for the rows of the group.
template <class Take>
void for_each_row(const Job& job, std::uint64_t unit, const Take& take) {
    const std::uint64_t n_rows =
        std::uint64_t{job.queries.n_queries} * (job.queries.n_heads / job.dims.n_kv_heads);
    const std::uint64_t first = unit % job.n_groups * max_rows;
    for (std::uint64_t row = first; row < n_rows && row < first + max_rows; ++row)
        take(place_of(job, head_of(job, unit), row));
}
RowGroup rows_of(const Job& job, const AttendScratch& scratch, std::uint64_t unit) {
    RowGroup rows = {};
    for_each_row(job, unit, [&](const RowPlace& at) { add_row(job, scratch, at, &rows); });
    if (job.queries.ranges != nullptr) {
        const std::uint32_t head = head_of(job, unit);
        const std::size_t first = head == 0 ? 0 : job.queries.range_ends[head - 1];
        rows.ranges = job.queries.ranges + first;
        rows.n_ranges = job.queries.range_ends[head] - first;
    }
    if (job.selects()) rows.chosen = job.chosen + unit * chosen_words(job.n_tiles);
    return rows;
}
// The other outputs, from the scratch.
void write_rows(const Job& job, const RowGroup& rows, std::uint64_t unit) {
    if (is_direct(job.out)) return;
    std::uint32_t i = 0;
    for_each_row(job, unit, [&](const RowPlace& at) {
        put_row(job.cache->context.kernels->codec, job.out, at.query, at.head, job.dims.value_dim,
                ElementType::f32, rows.out[i++]);
    });
}

// Checks one request, and lays out what it will do as far as it needs no memory. Errors: of attend.
Status begin_job(std::uint32_t layer, const AttendRequest& request, Executor& executor, Job* job) {
    CacheAccess::Impl& cache = CacheAccess::of(*request.cache);
    if (Status status = cache.check_keys(layer); !status.ok()) return status;
    if (request.out == nullptr) return Status::error(Code::invalid_argument, "out is null");
    const CacheConfig& config = cache.context.config;
    const Queries queries = within_window(config, layer, request.queries);
    const std::uint64_t n_tokens = cache.n_tokens(layer);
    if (Status status = check_queries(cache.context, layer, queries, n_tokens, request.out, request.n_floats);
        !status.ok())
        return status;
    if (cache.layers[layer]->wants(queries)) {
        if (Status status = cache.own(layer); !status.ok()) return status;
    }
    LayerStream* stream = cache.layers[layer];
    if (Status status = check_held(stream->tokens().shape(), queries, layer); !status.ok()) return status;
    if (Status status = stream->check_blocks(executor); !status.ok()) return status;
    new (job) Job;
    job->cache = &cache;
    job->layer = stream;
    job->dims = config.dims_of(layer);
    job->head_dims = head_dims(config, job->dims);
    job->queries = queries;
    job->out = output_rows(queries, job->dims.value_dim, request.out, request.n_floats);
    job->n_runs = stream->tokens().n_runs();
    job->n_tokens = n_tokens;
    job->n_groups =
        ceil_div(std::uint64_t{queries.n_queries} * (queries.n_heads / job->dims.n_kv_heads), max_rows);
    job->n_parts = parts_of(n_tokens, job->n_units());
    job->most_parts = parts_of(config.max_tokens, job->n_units());
    return {};
}

// ---- one call ----

// What is wrong with one request of a batch.
Status of_request(std::size_t i, const Status& status) {
    return Status::error(status.code(), "request %zu: %s", i, status.message());
}

// The jobs of a call, and the working memory they share.
class Call {
  public:
    Call(std::uint32_t layer, Job* jobs, std::size_t n_jobs, Executor& executor)
        : layer_(layer),
          jobs_(jobs),
          n_jobs_(n_jobs),
          executor_(executor),
          cache_(*jobs[0].cache),
          work_(cache_.working),
          memory_(cache_.work_memory()) {}

    // Takes what memory it needs. Errors: out_of_memory, over_budget.
    Status prepare() noexcept {
        if (Status status = place_tasks(); !status.ok()) return status;
        if (Status status = list_runs(); !status.ok()) return status;
        if (Status status = set_turns(); !status.ok()) return status;
        if (Status status = place_selections(); !status.ok()) return status;
        for (std::size_t i = 0; i < n_jobs_; ++i) {
            const Job& job = jobs_[i];
            CacheContext& context = job.cache->context;
            if (job.layer->wants(job.queries) && !job.layer->keep(&context, job.queries)) {
                const Status status = memory_error(context, "to keep what queries of layer %u tell", layer_);
                return n_jobs_ == 1 ? status : of_request(i, status);
            }
            if (job.cache->rates.waits()) {
                Status status = job.cache->rates.keep(&context, layer_, job.queries, job.n_tokens);
                if (!status.ok()) return n_jobs_ == 1 ? status : of_request(i, status);
            }
            if (!context.errors.keep(*context.kernels, context.memory(), layer_, job.dims, job.queries)) {
                const Status status = memory_error(context, "to keep a query of layer %u", layer_);
                return n_jobs_ == 1 ? status : of_request(i, status);
            }
        }
        place_pieces();
        return {};
    }

    void run() noexcept {
        if (n_choices_ > 0) choose();
        // Compression first: a piece takes longer than a head of a short context.
        std::size_t next = 0;
        run_round(&next, n_slots_);
        while (next < n_jobs_)
            run_round(&next, 0);
        for (std::size_t i = 0; i < n_jobs_; ++i)
            merge(jobs_[i]);
    }

  private:
    Status place_tasks() noexcept {
        std::uint64_t n_most = 0, n_part_floats = 0;
        for (std::size_t i = 0; i < n_jobs_; ++i) {
            Job& job = jobs_[i];
            job.first_task = n_tasks_;
            n_tasks_ += job.n_tasks();
            n_most += job.n_units() * job.most_parts;
            if (job.most_parts > 1) n_part_floats += job.n_units() * job.most_parts * part_stride(job);
            slot_bytes_ = std::max(slot_bytes_, job.cache->slot_bytes);
        }
        n_slots_ = std::min<std::uint64_t>(n_tasks_, executor_.n_threads());
        const std::uint64_t slots_bytes =
            slot_bytes_ * std::min<std::uint64_t>(n_most, executor_.n_threads());
        if (!work_.attend.ensure(memory_, slots_bytes + n_part_floats * sizeof(float))) {
            return memory_error(cache_.context, "for the scratch of %llu attention tasks",
                                static_cast<unsigned long long>(n_tasks_));
        }
        auto* parts =
            reinterpret_cast<float*>(static_cast<unsigned char*>(work_.attend.data()) + slots_bytes);
        for (std::size_t i = 0; i < n_jobs_; ++i) {
            Job& job = jobs_[i];
            job.parts = parts;
            if (job.n_parts > 1) parts += job.n_tasks() * part_stride(job);
        }
        return {};
    }

    Status list_runs() noexcept {
        std::uint64_t n_runs = 0;
        for (std::size_t i = 0; i < n_jobs_; ++i)
            n_runs += jobs_[i].n_runs;
        if (!work_.reserve_runs(memory_, n_runs)) {
            return memory_error(cache_.context, "to list the %llu runs of layer %u",
                                static_cast<unsigned long long>(n_runs), layer_);
        }
        KvRun* runs = work_.runs;
        for (std::size_t i = 0; i < n_jobs_; ++i) {
            Job& job = jobs_[i];
            job.runs = runs;
            job.layer->tokens().list_runs(runs);
            leave_unseen(job);
            job.n_tiles = count_tiles(runs, job.n_runs);
            runs += job.n_runs;
        }
        return {};
    }

    // What no query of a job sees becomes a gap, whether a window has given it back yet or not: how the rest
    // is cut into parts does not depend on that.
    static void leave_unseen(const Job& job) noexcept {
        const Queries& queries = job.queries;
        const std::uint64_t first = first_seen(
            queries.causal ? job.n_tokens - (queries.n_queries - 1) : job.n_tokens, queries.window);
        std::uint64_t end = 0;
        for (std::size_t i = 0; i < job.n_runs; ++i) {
            const std::uint32_t n_shown = job.runs[i].n_tokens - job.runs[i].n_hidden;
            end += n_shown;
            if (end > first) return;
            job.runs[i] = gap_run(n_shown);
        }
    }

    // For the runs whose keys have moved.
    Status set_turns() noexcept {
        const auto differs = [](const Job& job, std::size_t i) {
            return job.runs[i].shift != 0 && (i == 0 || job.runs[i].shift != job.runs[i - 1].shift);
        };
        std::uint64_t n_floats = 0;
        for (std::size_t at = 0; at < n_jobs_; ++at) {
            for (std::size_t i = 0; i < jobs_[at].n_runs; ++i)
                n_floats += differs(jobs_[at], i) ? turn_floats(jobs_[at]) : 0;
        }
        if (n_floats == 0) return {};
        if (!work_.turns.ensure(memory_, n_floats * sizeof(float)))
            return memory_error(cache_.context, "for the rotations of layer %u", layer_);
        auto* next = static_cast<float*>(work_.turns.data());
        for (std::size_t at = 0; at < n_jobs_; ++at) {
            const Job& job = jobs_[at];
            const RopeConfig& rope = job.layer->rope(job.cache->context);
            for (std::size_t i = 0; i < job.n_runs && rope.n_pairs > 0; ++i) {
                KvRun& run = job.runs[i];
                if (run.shift == 0) continue;
                if (differs(job, i)) {
                    run.turn =
                        make_rotation(rope.frequencies, rope.n_pairs, rope.interleaved, -run.shift, next);
                    next += turn_floats(job);
                } else {
                    run.turn = job.runs[i - 1].turn;
                }
            }
        }
        return {};
    }
    // For the jobs that do not read everything.
    Status place_selections() noexcept {
        std::uint64_t n_words = 0, most_tiles = 0;
        for (std::size_t i = 0; i < n_jobs_; ++i) {
            const Job& job = jobs_[i];
            if (!job.selects()) continue;
            n_choices_ += job.n_units();
            n_words += job.n_units() * (chosen_words(job.n_tiles) + job.n_parts + 1 + result_words);
            most_tiles = std::max(most_tiles, job.n_tiles);
        }
        if (n_choices_ == 0) return {};
        room_bytes_ = select_scratch_bytes(most_tiles);
        n_choosers_ = std::min<std::uint64_t>(n_choices_, n_slots_);
        const std::uint64_t n_bytes = n_choosers_ * room_bytes_ + n_words * sizeof(std::uint64_t);
        if (!work_.select.ensure(memory_, n_bytes))
            return memory_error(cache_.context, "to select what %llu heads read",
                                static_cast<unsigned long long>(n_choices_));
        auto* next = reinterpret_cast<std::uint64_t*>(static_cast<unsigned char*>(work_.select.data()) +
                                                      n_choosers_ * room_bytes_);
        const auto take = [&next](std::uint64_t n) {
            std::uint64_t* at = next;
            next += n;
            return at;
        };
        for (std::size_t i = 0; i < n_jobs_; ++i) {
            Job& job = jobs_[i];
            if (!job.selects()) continue;
            job.chosen = take(job.n_units() * chosen_words(job.n_tiles));
            job.part_starts = take(job.n_units() * (job.n_parts + 1));
            job.found = reinterpret_cast<SelectResult*>(take(job.n_units() * result_words));
            CacheContext& context = job.cache->context;
            if (context.selections != nullptr) continue;
            const std::uint64_t n_layers = context.config.n_layers;
            void* place = context.memory().take(n_layers * sizeof(SelectionTally), Use::table);
            if (place == nullptr)
                return memory_error(context, "to count what is read of %llu layers",
                                    static_cast<unsigned long long>(n_layers));
            context.selections = new (place) SelectionTally[n_layers];
        }
        return {};
    }
    static constexpr std::uint64_t result_words = sizeof(SelectResult) / sizeof(std::uint64_t);
    static_assert(sizeof(SelectResult) % sizeof(std::uint64_t) == 0);

    // A round of its own: parts are cut when it is known what they have to read.
    void choose() noexcept {
        parallel_for(executor_, n_choosers_, [&](std::size_t slot) {
            auto* slot_memory = static_cast<unsigned char*>(work_.attend.data()) + slot * slot_bytes_;
            void* room = static_cast<unsigned char*>(work_.select.data()) + slot * room_bytes_;
            std::uint64_t at;
            while ((at = next_choice_.fetch_add(1, std::memory_order_relaxed)) < n_choices_) {
                const Job* job = jobs_;
                for (; !job->selects() || at >= job->n_units(); ++job)
                    at -= job->selects() ? job->n_units() : 0;
                choose_tiles(*job, at, slot_memory, room);
            }
        });
        for (std::size_t i = 0; i < n_jobs_; ++i) {
            const Job& job = jobs_[i];
            if (!job.selects()) continue;
            SelectionTally& tally = job.cache->context.selections[layer_];
            for (std::uint64_t unit = 0; unit < job.n_units(); ++unit) {
                ++tally.n;
                tally.share += job.found[unit].share;
                tally.mass += job.found[unit].mass;
            }
        }
    }
    static void choose_tiles(const Job& job, std::uint64_t unit, void* slot_memory, void* room) noexcept {
        const AttendScratch scratch = place_attend_scratch(slot_memory, job.head_dims);
        const RowGroup rows = rows_of(job, scratch, unit);
        std::uint64_t* chosen = job.chosen + unit * chosen_words(job.n_tiles);
        const RowPass pass = {*job.cache->context.kernels, scratch, rows.n_rows, head_of(job, unit),
                              job.head_dims};
        SelectResult found;
        if (job.queries.ranges != nullptr) {
            found = list_tiles(rows, job.runs, job.n_runs, chosen);
        } else {
            found = select_tiles(pass, rows, job.runs, job.n_runs, job.queries.scale,
                                 {job.queries.mass, job.queries.most_share}, room, chosen);
        }
        new (&job.found[unit]) SelectResult(found);
        cut_parts(job, chosen, job.part_starts + unit * (job.n_parts + 1));
    }
    // So that all parts read as many tiles; as without a selection when all are chosen.
    static void cut_parts(const Job& job, const std::uint64_t* chosen, std::uint64_t* starts) noexcept {
        std::uint64_t n = 0;
        for (std::uint64_t i = 0; i < chosen_words(job.n_tiles); ++i)
            n += static_cast<std::uint64_t>(std::popcount(chosen[i]));
        std::uint64_t part = 1, n_before = 0;
        starts[0] = 0;
        for (std::uint64_t tile = 0; tile < job.n_tiles; ++tile) {
            if (!is_chosen(chosen, tile)) continue;
            while (part < job.n_parts && n * part / job.n_parts == n_before)
                starts[part++] = tile;
            ++n_before;
        }
        while (part <= job.n_parts)
            starts[part++] = job.n_tiles;
    }

    static std::uint64_t turn_floats(const Job& job) noexcept {
        return 2 * std::uint64_t{job.layer->rope(job.cache->context).n_pairs};
    }
    static std::size_t part_stride(const Job& job) noexcept { return part_floats(job.dims.value_dim); }

    // Pieces that are due. Caches of a workspace compress in the same scratch, so that only one of them can
    // at a time; for as many more as there are threads there is more of it, if there is memory.
    void place_pieces() noexcept {
        std::size_t n_due = 0;
        std::uint64_t most_bytes = 0;
        for (std::size_t i = 0; i < n_jobs_; ++i) {
            Job& job = jobs_[i];
            job.pieces = job.layer->due_pieces(job.cache->context);
            if (job.pieces.n == 0) continue;
            ++n_due;
            most_bytes = std::max(most_bytes, compress_scratch_bytes(job.pieces.task.header));
        }
        n_at_once_ = std::min<std::size_t>(n_due, executor_.n_threads());
        if (n_at_once_ < 2) return;
        piece_bytes_ = round_up(most_bytes, block_alignment);
        if (!work_.batch.ensure(memory_, (n_at_once_ - 1) * piece_bytes_)) n_at_once_ = 1;
    }

    // The due pieces of some caches from *next on, beside n_slots slots of heads.
    void run_round(std::size_t* next, std::size_t n_slots) noexcept {
        const std::size_t first = *next;
        std::size_t n_caches = 0, n_pieces = 0, end = first;
        for (; end < n_jobs_; ++end) {
            PieceRun& pieces = jobs_[end].pieces;
            if (pieces.n == 0) continue;
            if (n_caches == std::max<std::size_t>(n_at_once_, 1)) break;
            if (n_caches > 0 && pieces.scratch == work_.compress.data()) {
                pieces.scratch =
                    static_cast<unsigned char*>(work_.batch.data()) + (n_caches - 1) * piece_bytes_;
            }
            ++n_caches;
            n_pieces += pieces.n;
        }
        parallel_for(executor_, n_pieces + n_slots, [&](std::size_t index) {
            if (index >= n_pieces) {
                attend_slot(index - n_pieces);
                return;
            }
            std::size_t i = first;
            for (; index >= jobs_[i].pieces.n; ++i)
                index -= jobs_[i].pieces.n;
            run_group(jobs_[i].pieces, static_cast<std::uint32_t>(index), serial_executor());
        });
        for (std::size_t i = first; i < end; ++i)
            jobs_[i].layer->note_done(jobs_[i].pieces);
        *next = end;
    }

    // Slots take tasks as they come, in their order: heads of a sequence lie side by side in memory.
    void attend_slot(std::uint64_t slot) noexcept {
        auto* slot_memory = static_cast<unsigned char*>(work_.attend.data()) + slot * slot_bytes_;
        const Job* job = jobs_;
        std::uint64_t at;
        while ((at = next_task_.fetch_add(1, std::memory_order_relaxed)) < n_tasks_) {
            while (at - job->first_task >= job->n_tasks())
                ++job;
            const AttendScratch scratch = place_attend_scratch(slot_memory, job->head_dims);
            const std::uint64_t task = at - job->first_task;
            const std::uint64_t unit = task / job->n_parts, part = task % job->n_parts;
            TileRange range = {job->n_tiles * part / job->n_parts, job->n_tiles * (part + 1) / job->n_parts,
                               part};
            if (job->selects()) {
                const std::uint64_t* starts = job->part_starts + unit * (job->n_parts + 1) + part;
                range = {starts[0], starts[1], part};
            }
            const RowGroup rows = rows_of(*job, scratch, unit);
            attend_rows(*job->cache->context.kernels, scratch, rows, job->runs, job->n_runs,
                        head_of(*job, unit), job->head_dims, job->queries.scale, range,
                        job->n_parts > 1 ? job->parts + task * part_stride(*job) : nullptr);
            if (job->n_parts == 1) write_rows(*job, rows, unit);
        }
    }

    void merge(const Job& job) noexcept {
        if (job.n_parts == 1) return;
        const std::size_t stride = part_stride(job);
        const AttendScratch scratch = place_attend_scratch(work_.attend.data(), job.head_dims);
        for (std::uint64_t unit = 0; unit < job.n_units(); ++unit) {
            const RowGroup rows = rows_of(job, scratch, unit);
            merge_parts(rows, job.parts + unit * job.n_parts * stride, stride, job.n_parts,
                        job.dims.value_dim);
            write_rows(job, rows, unit);
        }
    }

    std::uint32_t layer_;
    Job* jobs_;
    std::size_t n_jobs_;
    Executor& executor_;
    CacheAccess::Impl& cache_;  // the first
    WorkMemory& work_;
    const Memory memory_;
    std::uint64_t n_tasks_ = 0, n_slots_ = 0, slot_bytes_ = 0;
    std::atomic<std::uint64_t> next_task_{0}, next_choice_{0};
    std::uint64_t n_choices_ = 0, n_choosers_ = 0, room_bytes_ = 0;
    std::size_t n_at_once_ = 0;  // caches whose pieces may run at the same time
    std::uint64_t piece_bytes_ = 0;
};

}  // namespace

Status Cache::attend(std::uint32_t layer, const Queries& queries, void* out, std::size_t n_floats,
                     Executor& caller) noexcept {
    CallExecutor executor(caller);
    if (Status status = executor.check(); !status.ok()) return status;
    Job job;
    const AttendRequest request = {this, queries, out, n_floats};
    if (Status status = begin_job(layer, request, executor, &job); !status.ok()) return status;
    Call call(layer, &job, 1, executor);
    Status status = call.prepare();
    if (status.ok()) call.run();
    if (status.ok()) impl_->close_prompt(layer, queries.n_queries, executor);
    return status;
}

Status Cache::attend_batch(std::uint32_t layer, const AttendRequest* requests, std::size_t n_requests,
                           Executor& caller) noexcept {
    CallExecutor executor(caller);
    if (Status status = executor.check(); !status.ok()) return status;
    if (n_requests == 0) return {};
    if (requests == nullptr) return Status::error(Code::invalid_argument, "requests are null");
    for (std::size_t i = 0; i < n_requests; ++i) {
        if (requests[i].cache == nullptr)
            return Status::error(Code::invalid_argument, "cache of request %zu is null", i);
        const Cache::Impl& cache = *requests[i].cache->impl_;
        if (n_requests > 1 &&
            (cache.workspace == nullptr || cache.workspace != requests[0].cache->impl_->workspace)) {
            return Status::error(Code::invalid_argument,
                                 "request %zu has %s workspace, expected one for all caches of a batch", i,
                                 cache.workspace == nullptr ? "no" : "another");
        }
    }
    Cache::Impl& first = *requests[0].cache->impl_;
    if (!first.working.jobs.ensure(first.work_memory(), n_requests * sizeof(Job)))
        return memory_error(first.context, "for a batch of %zu requests", n_requests);
    auto* jobs = static_cast<Job*>(first.working.jobs.data());
    // Marked, so that a cache is not taken twice.
    Status status;
    std::size_t n_marked = 0;
    for (; status.ok() && n_marked < n_requests; ++n_marked) {
        Cache::Impl& cache = *requests[n_marked].cache->impl_;
        if (cache.is_taken) {
            status = Status::error(Code::invalid_argument,
                                   "request %zu is of a cache that is in the batch before", n_marked);
            break;
        }
        cache.is_taken = true;
        status = begin_job(layer, requests[n_marked], executor, &jobs[n_marked]);
        if (!status.ok()) status = of_request(n_marked, status);
    }
    for (std::size_t i = 0; i < n_marked; ++i)
        requests[i].cache->impl_->is_taken = false;
    if (!status.ok()) return status;
    Call call(layer, jobs, n_requests, executor);
    status = call.prepare();
    if (status.ok()) call.run();
    for (std::size_t i = 0; status.ok() && i < n_requests; ++i)
        requests[i].cache->impl_->close_prompt(layer, requests[i].queries.n_queries, executor);
    return status;
}

}  // namespace gearkv
