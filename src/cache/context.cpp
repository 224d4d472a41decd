#include "cache/context.hpp"

#include <cstdarg>
#include <cstdio>

namespace gearkv {

Status memory_error(const CacheContext& context, const char* format, ...) noexcept {
    char what[160];
    va_list arguments;
    va_start(arguments, format);
    std::vsnprintf(what, sizeof(what), format, arguments);
    va_end(arguments);
    const MemoryLedger& ledger = context.ledger;
    if (!ledger.over_limit()) return Status::error(Code::out_of_memory, "no memory %s", what);
    return Status::error(Code::over_budget, "no memory %s: %llu bytes are held and max_bytes is %llu", what,
                         static_cast<unsigned long long>(ledger.total()),
                         static_cast<unsigned long long>(ledger.max_bytes()));
}

}  // namespace gearkv
