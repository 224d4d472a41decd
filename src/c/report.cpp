// Codes and texts for C. The shared library of the decoder has this file too.
#include "c/convert.hpp"

namespace gearkv::c {

gearkv_code plain(Code code) noexcept {
    switch (code) {
        case Code::ok:
            return GEARKV_OK;
        case Code::invalid_argument:
            return GEARKV_INVALID_ARGUMENT;
        case Code::bad_spec:
            return GEARKV_BAD_SPEC;
        case Code::wrong_size:
            return GEARKV_WRONG_SIZE;
        case Code::non_finite:
            return GEARKV_NON_FINITE;
        case Code::not_representable:
            return GEARKV_NOT_REPRESENTABLE;
        case Code::capacity_exceeded:
            return GEARKV_CAPACITY_EXCEEDED;
        case Code::out_of_memory:
            return GEARKV_OUT_OF_MEMORY;
        case Code::over_budget:
            return GEARKV_OVER_BUDGET;
        case Code::forgotten:
            return GEARKV_FORGOTTEN;
        case Code::unknown_level:
            return GEARKV_UNKNOWN_LEVEL;
        case Code::unavailable_level:
            return GEARKV_UNAVAILABLE_LEVEL;
        case Code::unavailable_spec:
            return GEARKV_UNAVAILABLE_SPEC;
        case Code::bad_block:
            return GEARKV_BAD_BLOCK;
        case Code::not_a_state:
            return GEARKV_NOT_A_STATE;
        case Code::other_byte_order:
            return GEARKV_OTHER_BYTE_ORDER;
        case Code::other_codec:
            return GEARKV_OTHER_CODEC;
        case Code::other_model:
            return GEARKV_OTHER_MODEL;
        case Code::damaged:
            return GEARKV_DAMAGED;
        case Code::corrupt_state:
            return GEARKV_CORRUPT_STATE;
        case Code::thread_failure:
            return GEARKV_THREAD_FAILURE;
        case Code::interrupted:
            return GEARKV_INTERRUPTED;
        case Code::io_error:
            return GEARKV_IO_ERROR;
        case Code::protected_file:
            return GEARKV_PROTECTED_FILE;
        case Code::write_failed:
            return GEARKV_WRITE_FAILED;
        case Code::read_failed:
            return GEARKV_READ_FAILED;
        case Code::other_rope:
            return GEARKV_OTHER_ROPE;
        case Code::no_keys:
            return GEARKV_NO_KEYS;
        case Code::bad_version:
            return GEARKV_BAD_VERSION;
        case Code::truncated:
            return GEARKV_TRUNCATED;
        case Code::not_a_model:
            return GEARKV_NOT_A_MODEL;
        case Code::corrupt_model:
            return GEARKV_CORRUPT_MODEL;
        case Code::missing_key:
            return GEARKV_MISSING_KEY;
        case Code::bad_metadata:
            return GEARKV_BAD_METADATA;
        case Code::unsupported_model:
            return GEARKV_UNSUPPORTED_MODEL;
        case Code::missing_tensor:
            return GEARKV_MISSING_TENSOR;
        case Code::shape_mismatch:
            return GEARKV_SHAPE_MISMATCH;
        case Code::bad_tokenizer:
            return GEARKV_BAD_TOKENIZER;
        case Code::empty_prompt:
            return GEARKV_EMPTY_PROMPT;
        case Code::prompt_too_long:
            return GEARKV_PROMPT_TOO_LONG;
        case Code::context_full:
            return GEARKV_CONTEXT_FULL;
        case Code::bad_token:
            return GEARKV_BAD_TOKEN;
        case Code::unknown_template:
            return GEARKV_UNKNOWN_TEMPLATE;
        case Code::bad_conversation:
            return GEARKV_BAD_CONVERSATION;
    }
    return GEARKV_DECODER_ERROR;
}

gearkv_code report(const Status& status, gearkv_error* error) noexcept {
    const gearkv_code code = plain(status.code());
    if (error == nullptr) return code;
    error->code = code;
    std::strncpy(error->message, status.message(), GEARKV_MESSAGE_SIZE - 1);
    error->message[GEARKV_MESSAGE_SIZE - 1] = '\0';
    return code;
}

}  // namespace gearkv::c
