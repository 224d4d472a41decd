// Reference of the loops around the searches for outliers and trellis codes.
#pragma once

#include "format/trellis.hpp"
#include "kernels/kernels.hpp"

namespace gearkv {
namespace {

void group_ends(float* high, float* low, std::size_t n_groups, const float* x, std::size_t stride,
                std::size_t n) {
    for (std::size_t i = 0; i < n; ++i) {
        for (std::size_t lane = 0; lane < lane_tile; ++lane) {
            const float v = x[i * stride + lane];
            const std::size_t at = i % n_groups * lane_tile + lane;
            if (v > high[at]) high[at] = v;
            if (v < low[at]) low[at] = v;
        }
    }
}

void find_reaching(std::uint16_t* reaching, const float* x, std::size_t stride, std::size_t n,
                   const float* high, const float* low) {
    for (std::size_t i = 0; i < n; ++i) {
        std::uint32_t bits = 0;
        for (std::size_t lane = 0; lane < lane_tile; ++lane) {
            const float v = x[i * stride + lane];
            if (v >= high[lane] || v <= low[lane]) bits |= 1u << lane;
        }
        reaching[i] = static_cast<std::uint16_t>(bits);
    }
}

void column_moments(float* sum, float* square, const float* x, std::size_t row_stride, std::size_t n_rows,
                    std::size_t n_cols, const float* row_factor) {
    for (std::size_t c = 0; c < n_cols; ++c) {
        sum[c] = square[c] = 0.0f;
        for (std::size_t r = 0; r < n_rows; ++r) {
            const float u = row_factor[r] * x[r * row_stride + c];
            sum[c] += u;
            square[c] += u * u;
        }
    }
}

void row_squares(float* square, const float* x, std::size_t row_stride, std::size_t n_rows,
                 std::size_t n_cols, const float* column_factor) {
    for (std::size_t r = 0; r < n_rows; ++r) {
        float part[lane_tile] = {};
        for (std::size_t c = 0; c < n_cols; ++c) {
            const float u = column_factor[c] * x[r * row_stride + c];
            part[c % lane_tile] += u * u;
        }
        for (std::size_t half = lane_tile / 2; half > 0; half /= 2) {
            for (std::size_t i = 0; i < half; ++i)
                part[i] += part[i + half];
        }
        square[r] = part[0];
    }
}

void rotate_rows(float* x, std::size_t row_stride, std::size_t n_rows, std::size_t n_cols) {
    for (std::size_t r = 0; r < n_rows; ++r)
        rotate_head(x + r * row_stride, static_cast<std::uint32_t>(n_cols));
}

void order_row(float* out, const float* x, const std::uint16_t* order, const float* shift,
               std::size_t n_cols) {
    for (std::size_t i = 0; i < n_cols; ++i)
        out[i] = x[order[i]] - shift[i];
}

void fill_panel(float* out, const Panel& panel, const float* shift, const float* factor) {
    for (std::size_t t = 0; t < section_tokens; ++t) {
        for (std::size_t lane = 0; lane < lane_tile; ++lane) {
            out[t * lane_tile + lane] =
                (panel.x[t * panel.stride + lane] + shift[lane]) * (panel.token_factor[t] * factor[lane]);
        }
    }
}

void sum_panel(float* level, float* along, float* square, const Panel& panel, const std::int8_t* chosen) {
    for (std::size_t lane = 0; lane < lane_tile; ++lane) {
        level[lane] = along[lane] = square[lane] = 0.0f;
        for (std::size_t t = 0; t < section_tokens; ++t) {
            const float u = static_cast<float>(chosen[t * lane_tile + lane]) * panel.token_factor[t];
            level[lane] += u;
            along[lane] += u * panel.x[t * panel.stride + lane];
            square[lane] += u * u;
        }
    }
}

void cube_errors(float* error, const float* x, const std::int8_t* chosen, const float* factor) {
    for (std::size_t lane = 0; lane < lane_tile; ++lane) {
        error[lane] = 0.0f;
        for (std::size_t t = 0; t < section_tokens; ++t) {
            const float d = x[t * lane_tile + lane] - static_cast<float>(chosen[t * lane_tile + lane]);
            const float e = (d < 0.0f ? -d : d) * factor[lane];
            error[lane] += e * e * e;
        }
    }
}

void gather_bits(std::uint8_t* bytes, const std::uint8_t* codes, std::uint32_t bit) {
    for (std::size_t i = 0; i < section_tokens / 8 * lane_tile; ++i)
        bytes[i] = 0;
    for (std::size_t t = 0; t < section_tokens; ++t) {
        for (std::size_t lane = 0; lane < lane_tile; ++lane) {
            std::uint8_t& byte = bytes[t / 8 * lane_tile + lane];
            byte = static_cast<std::uint8_t>(byte | (codes[t * lane_tile + lane] >> bit & 1) << t % 8);
        }
    }
}

}  // namespace
}  // namespace gearkv
