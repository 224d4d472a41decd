// Queries as rows are read.
#pragma once

#include "codec/rows.hpp"
#include "gearkv/cache.hpp"

namespace gearkv {

// Queries take the place of tokens.
inline Rows query_rows(const Queries& queries) noexcept {
    return {queries.data, queries.query_stride, queries.head_stride, queries.type, queries.channel_stride};
}

}  // namespace gearkv
