// Sessions for C.
#include <new>

#include "decoder/c/convert.hpp"
#include "gearkv/fit.hpp"

using namespace gearkv;
using namespace gearkv::c;

namespace {

// The caller's wish to stop, which forks of a session share.
struct Interruption {
    int (*wanted)(void* context);
    void* context;
    static bool asked(void* self) {
        const auto* mine = static_cast<const Interruption*>(self);
        return mine->wanted(mine->context) != 0;
    }
};

}  // namespace

// A session, the note it was loaded with, and what it asks whether to stop.
struct gearkv_session {
    std::shared_ptr<Interruption> interruption;
    std::unique_ptr<Session> session;
    std::size_t n_vocab = 0;
    std::string note;
};

namespace {

Status check_session(const gearkv_session* session) noexcept {
    return session == nullptr ? null_argument("session") : Status();
}

// All but the SPEC, which may be null for who chooses one.
Status take_session(const gearkv_session_config* in, std::shared_ptr<Interruption>* interruption,
                    SessionConfig* out, const char** spec) {
    gearkv_session_config taken;
    gearkv_session_config_init(&taken, sizeof(taken));
    if (Status status = take(in, "config", &taken); !status.ok()) return status;
    if (!is_level(taken.level)) {
        return Status::error(Code::unknown_level, "level %u, expected one of gearkv_level",
                             static_cast<unsigned>(taken.level));
    }
    *spec = taken.spec;
    out->n_ctx = taken.n_ctx;
    out->chunk = taken.chunk;
    out->seed = taken.seed;
    out->rollback_tokens = taken.rollback_tokens;
    out->error_every = taken.error_every;
    out->workspace = c::cpp(taken.workspace);
    out->max_cache_bytes = taken.max_cache_bytes;
    out->soft_cache_bytes = taken.soft_cache_bytes;
    out->level = static_cast<Level>(taken.level);
    out->float_products = taken.float_products != 0;
    if (taken.mass != 0.0f) out->mass = taken.mass;
    if (taken.most_share != 0.0f) out->most_share = taken.most_share;
    out->negligible = taken.negligible;
    if (taken.interrupt != nullptr) {
        *interruption =
            std::make_shared<Interruption>(Interruption{taken.interrupt, taken.interrupt_context});
        out->interrupt = {Interruption::asked, interruption->get()};
    }
    return {};
}

Status take_session_and_spec(const gearkv_session_config* in, std::shared_ptr<Interruption>* interruption,
                             SessionConfig* out) {
    const char* spec = nullptr;
    if (Status status = take_session(in, interruption, out, &spec); !status.ok()) return status;
    if (spec == nullptr) return Status::error(Code::bad_spec, "spec is null, expected a SPEC such as gear-4");
    return parse_spec(spec, &out->spec);
}

// What makes a session gets the handle whose parts it is to fill.
template <class Make>
gearkv_code make_session(const gearkv_model* model, const gearkv_session_config* config, gearkv_session** out,
                         gearkv_error* error, const Make& make) noexcept {
    return answer(error, [&]() -> Status {
        if (model == nullptr) return null_argument("model");
        if (out == nullptr) return null_argument("out");
        auto handle = std::make_unique<gearkv_session>();
        SessionConfig taken;
        if (Status status = take_session_and_spec(config, &handle->interruption, &taken); !status.ok())
            return status;
        handle->n_vocab = model->model->params().n_vocab;
        if (Status status = make(taken, handle.get()); !status.ok()) return status;
        *out = handle.release();
        return {};
    });
}

// What a session is loaded from is what `load` knows of.
template <class Load>
gearkv_code load_session(const gearkv_model* model, const gearkv_session_config* config,
                         const gearkv_session_load_options* options, gearkv_session** out,
                         gearkv_error* error, const Load& load) noexcept {
    return make_session(model, config, out, error, [&](const SessionConfig& taken, gearkv_session* handle) {
        gearkv_session_load_options how = {};
        if (Status status = take_options(options, &how); !status.ok()) return status;
        if (how.loading != GEARKV_LOAD_COPY && how.loading != GEARKV_LOAD_MAP) {
            return Status::error(Code::invalid_argument,
                                 "loading %d, expected GEARKV_LOAD_COPY or GEARKV_LOAD_MAP",
                                 static_cast<int>(how.loading));
        }
        const StateLoading loading = how.loading == GEARKV_LOAD_MAP ? StateLoading::map : StateLoading::copy;
        return load(taken, loading, LoadedAttachments{c::cpp(how.sampler), &handle->note}, &handle->session);
    });
}

Status take_save(const gearkv_session* session, const gearkv_session_save_options* options,
                 SessionAttachments* out) noexcept {
    if (Status status = check_session(session); !status.ok()) return status;
    gearkv_session_save_options taken = {};
    if (Status status = take_options(options, &taken); !status.ok()) return status;
    out->sampler = c::cpp(taken.sampler);
    if (taken.n_tokens > 0) out->n_tokens = taken.n_tokens;
    return take_text(static_cast<const char*>(taken.note), taken.n_note, "note", &out->note);
}

// Room for the logits of n_tokens tokens. Errors: invalid_argument, wrong_size.
Status check_logits(const gearkv_session& session, std::size_t n_tokens, const float* logits,
                    std::size_t n_floats) noexcept {
    if (logits == nullptr) return null_argument("all_logits");
    if (n_tokens <= n_floats / session.n_vocab) return {};
    return Status::error(Code::wrong_size, "room for %zu logits, expected those of %zu tokens, %zu each",
                         n_floats, n_tokens, session.n_vocab);
}

}  // namespace

Session* gearkv::c::session_of(gearkv_session* session) noexcept {
    return session == nullptr ? nullptr : session->session.get();
}

void gearkv_session_config_init(gearkv_session_config* config, size_t struct_size) {
    if (config == nullptr || struct_size < sizeof(size_t)) return;
    gearkv_session_config mine = {};
    mine.chunk = SessionConfig().chunk;
    config->struct_size = struct_size;
    give(mine, config);
}

gearkv_code gearkv_session_create(const gearkv_model* model, const gearkv_session_config* config,
                                  gearkv_executor* executor, gearkv_session** out, gearkv_error* error) {
    return make_session(model, config, out, error, [&](const SessionConfig& taken, gearkv_session* handle) {
        return Session::create(model->model, taken, c::cpp(executor), &handle->session);
    });
}

void gearkv_session_destroy(gearkv_session* session) {
    delete session;
}

gearkv_code gearkv_session_prefill(gearkv_session* session, const gearkv_token* tokens, size_t n_tokens,
                                   float* all_logits, size_t n_floats, gearkv_error* error) {
    if (Status status = check_session(session); !status.ok()) return report(status, error);
    if (all_logits == nullptr) return report(session->session->prefill(tokens, n_tokens), error);
    Status status = check_logits(*session, n_tokens, all_logits, n_floats);
    if (status.ok()) status = session->session->prefill(tokens, n_tokens, all_logits);
    return report(status, error);
}

gearkv_code gearkv_session_sync(gearkv_session* session, const gearkv_token* tokens, size_t n_tokens,
                                uint64_t* n_reused, gearkv_error* error) {
    if (Status status = check_session(session); !status.ok()) return report(status, error);
    return report(session->session->sync(tokens, n_tokens, n_reused), error);
}

gearkv_code gearkv_session_decode(gearkv_session* session, gearkv_token token, gearkv_error* error) {
    if (Status status = check_session(session); !status.ok()) return report(status, error);
    return report(session->session->decode(token), error);
}

gearkv_code gearkv_session_decode_draft(gearkv_session* session, const gearkv_token* tokens, size_t n_tokens,
                                        float* all_logits, size_t n_floats, gearkv_error* error) {
    Status status = check_session(session);
    if (status.ok()) status = check_logits(*session, n_tokens, all_logits, n_floats);
    if (status.ok()) status = session->session->decode(tokens, n_tokens, all_logits);
    return report(status, error);
}

gearkv_code gearkv_session_decode_batch(gearkv_decode_request* requests, size_t n_requests,
                                        gearkv_error* error) {
    return answer(error, [&]() -> Status {
        if (requests == nullptr && n_requests > 0) return null_argument("requests");
        // A batch that is refused writes no status, so that this one stays.
        const Status unwritten = Status::error(Code::invalid_argument, "not fed");
        std::vector<DecodeRequest> taken(n_requests);
        for (std::size_t i = 0; i < n_requests; ++i) {
            taken[i].session = requests[i].session == nullptr ? nullptr : requests[i].session->session.get();
            taken[i].token = requests[i].token;
            taken[i].status = unwritten;
        }
        Status status = Session::decode_batch(taken.data(), n_requests);
        for (std::size_t i = 0; i < n_requests; ++i) {
            if (std::strcmp(taken[i].status.message(), unwritten.message()) != 0)
                (void)report(taken[i].status, &requests[i].error);
        }
        return status;
    });
}

const float* gearkv_session_logits(const gearkv_session* session) {
    return session == nullptr ? nullptr : session->session->logits();
}

size_t gearkv_look_up_draft(const gearkv_token* tokens, size_t n_tokens, size_t n_match, size_t n_draft,
                            gearkv_token* draft) {
    if (tokens == nullptr || draft == nullptr) return 0;
    return look_up_draft(tokens, n_tokens, n_match, n_draft, draft);
}

gearkv_code gearkv_session_truncate(gearkv_session* session, uint64_t n_tokens, int* lossless,
                                    gearkv_error* error) {
    if (Status status = check_session(session); !status.ok()) return report(status, error);
    bool exact = false;
    const Status status = session->session->truncate(n_tokens, &exact);
    if (status.ok() && lossless != nullptr) *lossless = exact;
    return report(status, error);
}

gearkv_code gearkv_session_remove(gearkv_session* session, uint64_t first, uint64_t n_tokens, int* anew,
                                  gearkv_error* error) {
    if (Status status = check_session(session); !status.ok()) return report(status, error);
    bool computed = false;
    const Status status = session->session->remove(first, n_tokens, &computed);
    if (status.ok() && anew != nullptr) *anew = computed;
    return report(status, error);
}

gearkv_code gearkv_session_fork(const gearkv_session* session, gearkv_executor* executor,
                                gearkv_session** out, gearkv_error* error) {
    return answer(error, [&]() -> Status {
        if (Status status = check_session(session); !status.ok()) return status;
        if (out == nullptr) return null_argument("out");
        auto handle = std::make_unique<gearkv_session>();
        handle->interruption = session->interruption;
        handle->n_vocab = session->n_vocab;
        handle->note = session->note;
        if (Status status = session->session->fork(c::cpp(executor), &handle->session); !status.ok())
            return status;
        *out = handle.release();
        return {};
    });
}

void gearkv_session_reset(gearkv_session* session) {
    if (session != nullptr) session->session->reset();
}

const gearkv_token* gearkv_session_tokens(const gearkv_session* session, size_t* n_tokens) {
    if (n_tokens != nullptr) *n_tokens = session == nullptr ? 0 : session->session->tokens().size();
    return session == nullptr ? nullptr : session->session->tokens().data();
}

uint32_t gearkv_session_n_ctx(const gearkv_session* session) {
    return session == nullptr ? 0 : session->session->n_ctx();
}

const gearkv_cache* gearkv_session_cache(const gearkv_session* session) {
    return session == nullptr ? nullptr : reinterpret_cast<const gearkv_cache*>(&session->session->cache());
}

gearkv_code gearkv_session_save(const gearkv_session* session, const char* path,
                                const gearkv_session_save_options* options, gearkv_error* warning,
                                gearkv_error* error) {
    SessionAttachments taken;
    if (Status status = take_save(session, options, &taken); !status.ok()) return report(status, error);
    if (path == nullptr) return report(null_argument("path"), error);
    Status beside;
    const Status status = session->session->save(path, taken, &beside);
    if (status.ok()) (void)report(beside, warning);
    return report(status, error);
}

gearkv_code gearkv_session_check_save(const gearkv_session* session, const char* path, gearkv_error* error) {
    if (Status status = check_session(session); !status.ok()) return report(status, error);
    if (path == nullptr) return report(null_argument("path"), error);
    return report(session->session->check_save(path), error);
}

gearkv_code gearkv_session_saved_bytes(const gearkv_session* session,
                                       const gearkv_session_save_options* options, uint64_t* out,
                                       gearkv_error* error) {
    SessionAttachments taken;
    if (Status status = take_save(session, options, &taken); !status.ok()) return report(status, error);
    if (out == nullptr) return report(null_argument("out"), error);
    return report(session->session->saved_bytes(out, taken), error);
}

gearkv_code gearkv_session_save_to_memory(const gearkv_session* session, void* to, size_t n_room,
                                          const gearkv_session_save_options* options, size_t* n_written,
                                          gearkv_error* error) {
    SessionAttachments taken;
    if (Status status = take_save(session, options, &taken); !status.ok()) return report(status, error);
    if (to == nullptr) return report(null_argument("to"), error);
    return report(session->session->save(to, n_room, taken, n_written), error);
}

gearkv_code gearkv_session_save_through(const gearkv_session* session, gearkv_write write, void* context,
                                        const gearkv_session_save_options* options, gearkv_error* error) {
    SessionAttachments taken;
    if (Status status = take_save(session, options, &taken); !status.ok()) return report(status, error);
    if (write == nullptr) return report(null_argument("write"), error);
    Writer writer = {write, context};
    return report(session->session->save(ByteSink{write_through, &writer}, taken), error);
}

gearkv_code gearkv_session_load(const char* path, const gearkv_model* model,
                                const gearkv_session_config* config,
                                const gearkv_session_load_options* options, gearkv_executor* executor,
                                gearkv_session** out, gearkv_error* error) {
    if (path == nullptr) return report(null_argument("path"), error);
    return load_session(model, config, options, out, error,
                        [&](const SessionConfig& taken, StateLoading loading,
                            const LoadedAttachments& attached, std::unique_ptr<Session>* session) {
                            return Session::load(path, model->model, taken, loading, c::cpp(executor),
                                                 session, attached);
                        });
}

gearkv_code gearkv_session_load_from_memory(const void* bytes, size_t n_bytes, const gearkv_model* model,
                                            const gearkv_session_config* config,
                                            const gearkv_session_load_options* options,
                                            gearkv_executor* executor, gearkv_session** out,
                                            gearkv_error* error) {
    if (bytes == nullptr) return report(null_argument("bytes"), error);
    return load_session(model, config, options, out, error,
                        [&](const SessionConfig& taken, StateLoading, const LoadedAttachments& attached,
                            std::unique_ptr<Session>* session) {
                            return Session::load(bytes, n_bytes, model->model, taken, c::cpp(executor),
                                                 session, attached);
                        });
}

gearkv_code gearkv_session_load_through(gearkv_read read, void* context, const gearkv_model* model,
                                        const gearkv_session_config* config,
                                        const gearkv_session_load_options* options, gearkv_executor* executor,
                                        gearkv_session** out, gearkv_error* error) {
    if (read == nullptr) return report(null_argument("read"), error);
    Reader reader = {read, context};
    return load_session(model, config, options, out, error,
                        [&](const SessionConfig& taken, StateLoading, const LoadedAttachments& attached,
                            std::unique_ptr<Session>* session) {
                            return Session::load(ByteSource{read_through, &reader}, model->model, taken,
                                                 c::cpp(executor), session, attached);
                        });
}

const void* gearkv_session_note(const gearkv_session* session, size_t* n_bytes) {
    const bool has_one = session != nullptr && !session->note.empty();
    if (n_bytes != nullptr) *n_bytes = has_one ? session->note.size() : 0;
    return has_one ? session->note.data() : nullptr;
}

gearkv_code gearkv_get_session_bytes(const gearkv_model* model, const gearkv_session_config* config,
                                     gearkv_executor* executor, gearkv_session_bytes* out,
                                     gearkv_error* error) {
    return answer(error, [&]() -> Status {
        if (model == nullptr) return null_argument("model");
        if (Status status = check_output(out, "out"); !status.ok()) return status;
        std::shared_ptr<Interruption> interruption;
        SessionConfig taken;
        if (Status status = take_session_and_spec(config, &interruption, &taken); !status.ok()) return status;
        SessionBytes bytes;
        if (Status status = session_bytes(*model->model, taken, c::cpp(executor), &bytes); !status.ok())
            return status;
        give({sizeof(gearkv_session_bytes), bytes.weights, bytes.cache, bytes.scratch}, out);
        return {};
    });
}

gearkv_code gearkv_fit_session(const gearkv_model* model, const gearkv_session_config* config,
                               uint64_t max_bytes, uint64_t other_bytes, gearkv_executor* executor,
                               gearkv_fit* out, gearkv_error* error) {
    return answer(error, [&]() -> Status {
        if (model == nullptr) return null_argument("model");
        if (Status status = check_output(out, "out"); !status.ok()) return status;
        std::shared_ptr<Interruption> interruption;
        FitRequest request;
        const char* spec = nullptr;
        if (Status status = take_session(config, &interruption, &request.session, &spec); !status.ok())
            return status;
        request.max_bytes = max_bytes;
        request.other_bytes = other_bytes;
        if (spec != nullptr) request.spec = spec;
        request.n_ctx = request.session.n_ctx;
        Fit fit;
        if (Status status = fit_session(*model->model, request, c::cpp(executor), &fit); !status.ok())
            return status;
        gearkv_fit given = {};
        if (fit.choice.spec.size() >= sizeof(given.spec)) {
            return Status::error(Code::wrong_size, "a SPEC of %zu characters, expected at most %zu",
                                 fit.choice.spec.size(), sizeof(given.spec) - 1);
        }
        given.fits = fit.fits;
        given.n_ctx = fit.choice.n_ctx;
        given.chunk = fit.choice.chunk;
        given.weights = fit.choice.bytes.weights;
        given.cache = fit.choice.bytes.cache;
        given.scratch = fit.choice.bytes.scratch;
        std::strncpy(given.spec, fit.choice.spec.c_str(), sizeof(given.spec) - 1);
        std::strncpy(given.reason, fit.reason.c_str(), sizeof(given.reason) - 1);
        give(given, out);
        return {};
    });
}
