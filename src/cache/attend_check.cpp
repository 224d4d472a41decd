#include "cache/attend_check.hpp"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <limits>
#include <utility>

#include "cache/query_rows.hpp"
#include "cache/rules.hpp"

namespace gearkv {
namespace {

Status check_rules(const Queries& queries, std::uint64_t n_tokens) {
    if (!std::isfinite(queries.soft_cap) || queries.soft_cap < 0.0f) {
        return Status::error(Code::invalid_argument, "soft_cap %g, expected finite and not negative",
                             static_cast<double>(queries.soft_cap));
    }
    if (!(queries.negligible >= 0.0f && queries.negligible < 1.0f)) {
        return Status::error(Code::invalid_argument, "negligible %g, expected at least 0 and below 1",
                             static_cast<double>(queries.negligible));
    }
    for (const auto& [name, share] :
         {std::pair("mass", queries.mass), std::pair("most_share", queries.most_share)}) {
        if (!(share > 0.0f && share <= 1.0f)) {
            return Status::error(Code::invalid_argument, "%s %g, expected above 0 and at most 1", name,
                                 static_cast<double>(share));
        }
    }
    constexpr float infinity = std::numeric_limits<float>::infinity();
    for (std::uint32_t head = 0; head < queries.n_heads; ++head) {
        if (queries.slopes != nullptr && !std::isfinite(queries.slopes[head])) {
            return Status::error(Code::non_finite, "slope of head %u is %g, expected finite", head,
                                 static_cast<double>(queries.slopes[head]));
        }
        if (queries.sinks != nullptr && !(queries.sinks[head] < infinity)) {
            return Status::error(Code::non_finite, "sink of head %u is %g, expected finite or -Inf", head,
                                 static_cast<double>(queries.sinks[head]));
        }
    }
    if (queries.mask == nullptr) return {};
    for (std::size_t i = 0; i < queries.n_queries; ++i) {
        for (std::size_t head = 0; head < queries.n_heads; ++head) {
            if (head > 0 && queries.mask_head_stride == 0) break;
            const float* mask =
                queries.mask + i * queries.mask_query_stride + head * queries.mask_head_stride;
            const auto is_bad = [](float x) { return !(x < infinity); };
            const float* bad = std::find_if(mask, mask + n_tokens, is_bad);
            if (bad != mask + n_tokens) {
                return Status::error(Code::non_finite,
                                     "mask of query %zu, head %zu, token %td is %g, expected finite or -Inf",
                                     i, head, bad - mask, static_cast<double>(*bad));
            }
        }
    }
    return {};
}

Status check_ranges(const Queries& queries, std::uint32_t n_kv_heads, std::uint64_t n_tokens) {
    if (queries.ranges == nullptr && queries.range_ends == nullptr) return {};
    if (queries.ranges == nullptr || queries.range_ends == nullptr)
        return Status::error(Code::invalid_argument, "ranges and range_ends, expected both or none of them");
    if (queries.mass < 1.0f || queries.most_share < 1.0f) {
        return Status::error(Code::invalid_argument,
                             "ranges along with mass %g and most_share %g, expected 1 for both",
                             static_cast<double>(queries.mass), static_cast<double>(queries.most_share));
    }
    std::size_t i = 0;
    for (std::uint32_t head = 0; head < n_kv_heads; ++head) {
        if (queries.range_ends[head] < i) {
            return Status::error(Code::invalid_argument,
                                 "range_ends of KV head %u is %zu, expected %zu or more", head,
                                 queries.range_ends[head], i);
        }
        std::uint64_t least = 0;
        for (; i < queries.range_ends[head]; ++i) {
            const TokenRange& range = queries.ranges[i];
            if (range.first < least || range.first >= range.end || range.end > n_tokens) {
                return Status::error(
                    Code::invalid_argument,
                    "range %zu of KV head %u is [%llu, %llu), expected one within [%llu, %llu)", i, head,
                    static_cast<unsigned long long>(range.first), static_cast<unsigned long long>(range.end),
                    static_cast<unsigned long long>(least), static_cast<unsigned long long>(n_tokens));
            }
            least = range.end;
        }
    }
    return {};
}

}  // namespace

Queries within_window(const CacheConfig& config, std::uint32_t layer, const Queries& asked) noexcept {
    Queries queries = asked;
    const std::uint64_t window = window_of(config, layer);
    if (window > 0) queries.window = asked.window == 0 ? window : std::min(asked.window, window);
    return queries;
}

Status check_queries(const CacheContext& context, std::uint32_t layer, const Queries& queries,
                     std::uint64_t n_tokens, void* out, std::size_t n_floats) noexcept {
    const LayerDims dims = context.config.dims_of(layer);
    const bool latent = context.config.latent;
    if (Status status = check_layout(query_rows(queries), "queries"); !status.ok()) return status;
    if (latent != (queries.latents != nullptr)) {
        return Status::error(Code::invalid_argument, "%s latents in queries of a cache %s",
                             latent ? "no" : "there are", latent ? "of latents" : "without any");
    }
    if (queries.n_heads == 0 || queries.n_heads % dims.n_kv_heads != 0) {
        return Status::error(Code::wrong_size,
                             "%u query heads, expected a multiple of the %u KV heads of layer %u",
                             queries.n_heads, dims.n_kv_heads, layer);
    }
    if (queries.n_queries == 0) return Status::error(Code::wrong_size, "0 queries, expected at least 1");
    if (n_tokens == 0) return Status::error(Code::wrong_size, "the layer holds no tokens to attend");
    if (queries.causal && queries.n_queries > n_tokens) {
        return Status::error(Code::wrong_size,
                             "%u causal queries over %llu tokens, expected no more queries than tokens",
                             queries.n_queries, static_cast<unsigned long long>(n_tokens));
    }
    if (!std::isfinite(queries.scale) || queries.scale == 0.0f) {
        return Status::error(Code::invalid_argument, "scale %g, expected finite and not 0",
                             static_cast<double>(queries.scale));
    }
    char name[32];
    std::snprintf(name, sizeof(name), "outputs of layer %u", layer);
    if (Status status = check_room(output_rows(queries, dims.value_dim, out, n_floats), queries.n_queries,
                                   queries.n_heads, dims.value_dim, name);
        !status.ok())
        return status;
    for (std::size_t i = 0; i < queries.n_queries; ++i) {
        for (std::size_t head = 0; head < queries.n_heads; ++head) {
            float most = 0.0f;
            const auto look = [&](const Rows& rows, std::uint32_t dim) {
                for_each_part(rows, one_row(i, head, dim),
                              [&](std::size_t, std::size_t, std::size_t, const void* part, std::size_t n) {
                                  const float largest = max_abs(context.kernels->codec, rows.type, part, n);
                                  most = std::isfinite(most) ? std::max(most, largest) : most;
                              });
            };
            look(query_rows(queries), dims.key_dim);
            if (latent) look(latent_rows(queries), dims.value_dim);
            if (!std::isfinite(most)) {
                return Status::error(Code::non_finite,
                                     "query %zu, head %zu holds NaN or Inf, expected finite", i, head);
            }
        }
    }
    if (Status status = check_ranges(queries, dims.n_kv_heads, n_tokens); !status.ok()) return status;
    return check_rules(queries, n_tokens);
}

Status check_held(const LayerShape& shape, const Queries& queries, std::uint32_t layer) noexcept {
    const std::uint64_t n_tokens = shape.n_tokens();
    const std::uint64_t end = queries.causal ? n_tokens - (queries.n_queries - 1) : n_tokens;
    const std::uint64_t first = first_seen(end, queries.window);
    if (!shape.lacks(first, end)) return {};
    return Status::error(
        Code::forgotten,
        "the first of %u queries sees tokens %llu to %llu of layer %u, those from %llu to %llu "
        "were given back",
        queries.n_queries, static_cast<unsigned long long>(first), static_cast<unsigned long long>(end - 1),
        layer, static_cast<unsigned long long>(shape.n_sinks),
        static_cast<unsigned long long>(shape.left_end() - 1));
}

}  // namespace gearkv
