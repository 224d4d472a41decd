// What attend refuses before anything is done.
#pragma once

#include "cache/context.hpp"
#include "cache/tokens.hpp"

namespace gearkv {

// What is asked, with the window of the layer, or a smaller one that was asked for.
Queries within_window(const CacheConfig& config, std::uint32_t layer, const Queries& asked) noexcept;
// Errors: of Cache::attend, about the queries and the room for their output.
Status check_queries(const CacheContext& context, std::uint32_t layer, const Queries& queries,
                     std::uint64_t n_tokens, void* out, std::size_t n_floats) noexcept;
// Whether all that the first query sees is there, of what a window left. Errors: forgotten.
Status check_held(const LayerShape& shape, const Queries& queries, std::uint32_t layer) noexcept;

}  // namespace gearkv
