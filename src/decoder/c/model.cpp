// Models and vocabularies for C.
#include <new>

#include "decoder/c/convert.hpp"

using namespace gearkv;
using namespace gearkv::c;

namespace {

Status check_model(const gearkv_model* model) noexcept {
    return model == nullptr ? null_argument("model") : Status();
}

Status check_tokenizer(const gearkv_tokenizer* tokenizer) noexcept {
    return tokenizer == nullptr ? null_argument("tokenizer") : Status();
}

DecodeOptions cpp(const gearkv_decode_options& options) noexcept {
    return {options.special != 0, options.continues == 0};
}

}  // namespace

// Characters of a stream, and what the last call gave.
struct gearkv_text_stream {
    TextStream stream;
    std::string text;
};

gearkv_code gearkv_model_load(const char* path, const gearkv_model_options* options, gearkv_model** out,
                              gearkv_error* error) {
    return answer(error, [&]() -> Status {
        if (out == nullptr) return null_argument("out");
        gearkv_model_options taken = {};
        if (Status status = take_options(options, &taken); !status.ok()) return status;
        auto handle = std::make_unique<gearkv_model>();
        if (Status status = Model::load(path, &handle->model, {taken.pre}); !status.ok()) return status;
        handle->tokenizer.tokenizer = handle->model->shared_tokenizer();
        *out = handle.release();
        return {};
    });
}

void gearkv_model_destroy(gearkv_model* model) {
    delete model;
}

gearkv_code gearkv_model_get_params(const gearkv_model* model, gearkv_model_params* out,
                                    gearkv_error* error) {
    if (Status status = check_model(model); !status.ok()) return report(status, error);
    if (Status status = check_output(out, "out"); !status.ok()) return report(status, error);
    const ModelParams& params = model->model->params();
    gearkv_model_params given = {};
    given.family = params.family;
    given.n_parameters = params.n_parameters;
    given.n_vocab = params.n_vocab;
    given.n_embd = params.n_embd;
    given.n_layers = params.n_layers;
    given.n_heads = params.n_heads;
    given.n_kv_heads = params.n_kv_heads;
    given.head_dim = params.head_dim;
    given.n_ff = params.n_ff;
    given.n_ctx = params.n_ctx;
    given.rope_dim = params.rope_dim;
    given.rope_base = params.rope_base;
    given.norm_eps = params.norm_eps;
    given.windows = params.windows.empty() ? nullptr : params.windows.data();
    give(given, out);
    return report({}, error);
}

size_t gearkv_model_n_tensors(const gearkv_model* model) {
    return model == nullptr ? 0 : model->model->tensors().size();
}

gearkv_code gearkv_model_get_tensor(const gearkv_model* model, size_t index, gearkv_tensor_info* out,
                                    gearkv_error* error) {
    if (Status status = check_model(model); !status.ok()) return report(status, error);
    if (Status status = check_output(out, "out"); !status.ok()) return report(status, error);
    const std::vector<TensorInfo>& tensors = model->model->tensors();
    if (index >= tensors.size())
        return report(Status::error(Code::invalid_argument, "tensor %zu of %zu", index, tensors.size()),
                      error);
    const TensorInfo& tensor = tensors[index];
    give({sizeof(gearkv_tensor_info), tensor.name.c_str(), tensor.type.c_str(), tensor.shape.data(),
          tensor.shape.size(), tensor.n_bytes},
         out);
    return report({}, error);
}

size_t gearkv_model_n_metadata(const gearkv_model* model) {
    return model == nullptr ? 0 : model->model->metadata().size();
}

gearkv_code gearkv_model_get_metadata(const gearkv_model* model, size_t index, const char** key,
                                      const char** value, gearkv_error* error) {
    if (Status status = check_model(model); !status.ok()) return report(status, error);
    if (key == nullptr) return report(null_argument("key"), error);
    if (value == nullptr) return report(null_argument("value"), error);
    const auto& metadata = model->model->metadata();
    if (index >= metadata.size())
        return report(Status::error(Code::invalid_argument, "entry %zu of %zu", index, metadata.size()),
                      error);
    *key = metadata[index].first.c_str();
    *value = metadata[index].second.c_str();
    return report({}, error);
}

gearkv_code gearkv_model_fingerprint(const gearkv_model* model, uint8_t* out, gearkv_error* error) {
    if (Status status = check_model(model); !status.ok()) return report(status, error);
    if (out == nullptr) return report(null_argument("out"), error);
    const ModelFingerprint fingerprint = model->model->fingerprint();
    static_assert(sizeof(fingerprint.bytes) == GEARKV_FINGERPRINT_SIZE);
    std::memcpy(out, fingerprint.bytes, sizeof(fingerprint.bytes));
    return report({}, error);
}

const gearkv_tokenizer* gearkv_model_tokenizer(const gearkv_model* model) {
    return model == nullptr ? nullptr : &model->tokenizer;
}

gearkv_code gearkv_tokenizer_load(const char* path, const gearkv_model_options* options,
                                  gearkv_tokenizer** out, gearkv_error* error) {
    return answer(error, [&]() -> Status {
        if (out == nullptr) return null_argument("out");
        gearkv_model_options taken = {};
        if (Status status = take_options(options, &taken); !status.ok()) return status;
        auto handle = std::make_unique<gearkv_tokenizer>();
        if (Status status = Tokenizer::load(path, {taken.pre}, &handle->tokenizer); !status.ok())
            return status;
        *out = handle.release();
        return {};
    });
}

void gearkv_tokenizer_destroy(gearkv_tokenizer* tokenizer) {
    delete tokenizer;
}

const char* gearkv_split_rule_names(void) {
    return split_rule_names();
}

gearkv_code gearkv_tokenizer_get_info(const gearkv_tokenizer* tokenizer, gearkv_tokenizer_info* out,
                                      gearkv_error* error) {
    if (Status status = check_tokenizer(tokenizer); !status.ok()) return report(status, error);
    if (Status status = check_output(out, "out"); !status.ok()) return report(status, error);
    const Tokenizer& found = *tokenizer->tokenizer;
    gearkv_tokenizer_info given = {};
    given.n_vocab = found.n_vocab();
    given.bos = found.bos();
    given.eos = found.eos();
    given.unknown = found.unknown();
    given.adds_bos = found.adds_bos();
    given.adds_eos = found.adds_eos();
    given.kind = found.kind();
    given.pre = found.pre();
    given.note = found.note();
    given.chat_template = found.chat_template().empty() ? "" : found.chat_template().data();
    given.n_chat_template = found.chat_template().size();
    given.end_of_generation = found.end_of_generation().data();
    given.n_end_of_generation = found.end_of_generation().size();
    given.suppressed = found.suppressed().data();
    given.n_suppressed = found.suppressed().size();
    give(given, out);
    return report({}, error);
}

gearkv_code gearkv_tokenizer_encode(const gearkv_tokenizer* tokenizer, const char* text, size_t n_bytes,
                                    const gearkv_encode_options* options, gearkv_token* out, size_t n_room,
                                    size_t* n_tokens, gearkv_error* error) {
    return answer(error, [&]() -> Status {
        if (Status status = check_tokenizer(tokenizer); !status.ok()) return status;
        std::string_view taken_text;
        if (Status status = take_text(text, n_bytes, "text", &taken_text); !status.ok()) return status;
        gearkv_encode_options taken = {};
        if (Status status = take_options(options, &taken); !status.ok()) return status;
        std::vector<Token> tokens;
        const EncodeOptions how = {taken.no_special == 0, taken.parse_special != 0};
        if (Status status = tokenizer->tokenizer->encode(taken_text, how, &tokens); !status.ok())
            return status;
        return give_all(tokens.data(), tokens.size(), out, n_room, n_tokens, "tokens");
    });
}

gearkv_code gearkv_tokenizer_encode_pieces(const gearkv_tokenizer* tokenizer, const gearkv_text_piece* pieces,
                                           size_t n_pieces, const gearkv_encode_options* options,
                                           gearkv_token* out, size_t n_room, size_t* n_tokens,
                                           gearkv_error* error) {
    return answer(error, [&]() -> Status {
        if (Status status = check_tokenizer(tokenizer); !status.ok()) return status;
        if (pieces == nullptr && n_pieces > 0) return null_argument("pieces");
        gearkv_encode_options taken = {};
        if (Status status = take_options(options, &taken); !status.ok()) return status;
        std::vector<TextPiece> parts(n_pieces);
        for (std::size_t i = 0; i < n_pieces; ++i) {
            if (Status status = take_text(pieces[i].text, pieces[i].n_bytes, "text", &parts[i].text);
                !status.ok())
                return status;
            parts[i].parse_special = pieces[i].parse_special != 0;
        }
        std::vector<Token> tokens;
        if (Status status =
                tokenizer->tokenizer->encode(parts.data(), n_pieces, taken.no_special == 0, &tokens);
            !status.ok())
            return status;
        return give_all(tokens.data(), tokens.size(), out, n_room, n_tokens, "tokens");
    });
}

gearkv_code gearkv_tokenizer_decode(const gearkv_tokenizer* tokenizer, const gearkv_token* tokens,
                                    size_t n_tokens, const gearkv_decode_options* options, char* out,
                                    size_t n_room, size_t* n_bytes, gearkv_error* error) {
    return answer(error, [&]() -> Status {
        if (Status status = check_tokenizer(tokenizer); !status.ok()) return status;
        gearkv_decode_options taken = {};
        if (Status status = take_options(options, &taken); !status.ok()) return status;
        std::string text;
        if (Status status = tokenizer->tokenizer->decode(tokens, n_tokens, cpp(taken), &text); !status.ok())
            return status;
        return give_text(text, out, n_room, n_bytes);
    });
}

const char* gearkv_tokenizer_token_text(const gearkv_tokenizer* tokenizer, gearkv_token token,
                                        size_t* n_bytes) {
    const std::string_view text =
        tokenizer == nullptr ? std::string_view() : tokenizer->tokenizer->text(token);
    if (n_bytes != nullptr) *n_bytes = text.size();
    return text.data();
}

gearkv_token_type gearkv_tokenizer_token_type(const gearkv_tokenizer* tokenizer, gearkv_token token) {
    if (tokenizer == nullptr) return GEARKV_TOKEN_UNUSED;
    return static_cast<gearkv_token_type>(tokenizer->tokenizer->type(token));
}

gearkv_token gearkv_tokenizer_find(const gearkv_tokenizer* tokenizer, const char* text, size_t n_bytes) {
    std::string_view taken;
    if (tokenizer == nullptr || !take_text(text, n_bytes, "text", &taken).ok()) return -1;
    return tokenizer->tokenizer->find(taken);
}

int gearkv_tokenizer_ends_generation(const gearkv_tokenizer* tokenizer, gearkv_token token) {
    return tokenizer != nullptr && tokenizer->tokenizer->is_end_of_generation(token);
}

gearkv_code gearkv_text_stream_create(const gearkv_tokenizer* tokenizer, const gearkv_decode_options* options,
                                      gearkv_text_stream** out, gearkv_error* error) {
    return answer(error, [&]() -> Status {
        if (Status status = check_tokenizer(tokenizer); !status.ok()) return status;
        if (out == nullptr) return null_argument("out");
        gearkv_decode_options taken = {};
        if (Status status = take_options(options, &taken); !status.ok()) return status;
        *out = new gearkv_text_stream{TextStream(tokenizer->tokenizer, cpp(taken)), {}};
        return {};
    });
}

void gearkv_text_stream_destroy(gearkv_text_stream* stream) {
    delete stream;
}

gearkv_code gearkv_text_stream_push(gearkv_text_stream* stream, gearkv_token token, const char** text,
                                    size_t* n_bytes, gearkv_error* error) {
    return take_step(stream, "stream", text, n_bytes, "n_bytes", error,
                     [&](std::string* shown) { return stream->stream.push(token, shown); });
}

gearkv_code gearkv_text_stream_flush(gearkv_text_stream* stream, const char** text, size_t* n_bytes,
                                     gearkv_error* error) {
    return take_step(stream, "stream", text, n_bytes, "n_bytes", error,
                     [&](std::string* shown) { return stream->stream.flush(shown); });
}
