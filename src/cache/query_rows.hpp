// Queries as rows are read, and outputs as rows are written.
#pragma once

#include "codec/rows.hpp"
#include "gearkv/cache.hpp"

namespace gearkv {

// Queries take the place of tokens.
inline Rows query_rows(const Queries& queries) noexcept {
    return {queries.data, queries.query_stride, queries.head_stride, queries.type, queries.channel_stride};
}

inline Rows latent_rows(const Queries& queries) noexcept {
    Rows rows = query_rows(queries);
    rows.data = queries.latents;
    return rows;
}

inline OutRows output_rows(const Queries& queries, std::uint32_t value_dim, void* out,
                           std::size_t n_elements) noexcept {
    const std::size_t head = queries.out_head_stride == 0 ? value_dim : queries.out_head_stride;
    const std::size_t query =
        queries.out_query_stride == 0 ? std::size_t{queries.n_heads} * value_dim : queries.out_query_stride;
    return {out, n_elements, query, head, queries.out_type, queries.out_channel_stride};
}

}  // namespace gearkv
