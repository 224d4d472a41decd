#include "gearkv/status.hpp"

#include <cstdarg>
#include <cstdio>

namespace gearkv {

const char* code_name(Code code) noexcept {
    switch (code) {
        case Code::ok:
            return "ok";
        case Code::invalid_argument:
            return "invalid_argument";
        case Code::bad_spec:
            return "bad_spec";
        case Code::wrong_size:
            return "wrong_size";
        case Code::non_finite:
            return "non_finite";
        case Code::not_representable:
            return "not_representable";
        case Code::capacity_exceeded:
            return "capacity_exceeded";
        case Code::out_of_memory:
            return "out_of_memory";
        case Code::over_budget:
            return "over_budget";
        case Code::forgotten:
            return "forgotten";
        case Code::unknown_level:
            return "unknown_level";
        case Code::unavailable_level:
            return "unavailable_level";
        case Code::unavailable_spec:
            return "unavailable_spec";
        case Code::bad_block:
            return "bad_block";
        case Code::not_a_state:
            return "not_a_state";
        case Code::other_byte_order:
            return "other_byte_order";
        case Code::other_codec:
            return "other_codec";
        case Code::other_model:
            return "other_model";
        case Code::other_rope:
            return "other_rope";
        case Code::no_keys:
            return "no_keys";
        case Code::damaged:
            return "damaged";
        case Code::corrupt_state:
            return "corrupt_state";
        case Code::thread_failure:
            return "thread_failure";
        case Code::interrupted:
            return "interrupted";
        case Code::io_error:
            return "io_error";
        case Code::not_a_model:
            return "not_a_model";
        case Code::protected_file:
            return "protected_file";
        case Code::write_failed:
            return "write_failed";
        case Code::read_failed:
            return "read_failed";
        case Code::bad_version:
            return "bad_version";
        case Code::truncated:
            return "truncated";
        case Code::corrupt_model:
            return "corrupt_model";
        case Code::missing_key:
            return "missing_key";
        case Code::bad_metadata:
            return "bad_metadata";
        case Code::unsupported_model:
            return "unsupported_model";
        case Code::missing_tensor:
            return "missing_tensor";
        case Code::shape_mismatch:
            return "shape_mismatch";
        case Code::bad_tokenizer:
            return "bad_tokenizer";
        case Code::empty_prompt:
            return "empty_prompt";
        case Code::prompt_too_long:
            return "prompt_too_long";
        case Code::context_full:
            return "context_full";
        case Code::bad_token:
            return "bad_token";
        case Code::unknown_template:
            return "unknown_template";
        case Code::bad_conversation:
            return "bad_conversation";
    }
    return "?";
}

Status Status::error(Code code, const char* format, ...) noexcept {
    Status status;
    status.code_ = code;
    va_list arguments;
    va_start(arguments, format);
    std::vsnprintf(status.message_, sizeof(status.message_), format, arguments);
    va_end(arguments);
    return status;
}

}  // namespace gearkv
