#include "cache/query_squares.hpp"

#include <cmath>
#include <cstring>

#include "cache/query_rows.hpp"

namespace gearkv {
namespace {

// Of the mean square: a channel that no query was loud in yet may be met by others.
constexpr double least_share = 1e-3;

}  // namespace

// ---- memory ----

bool QuerySquares::resize(const Memory& memory, std::uint64_t capacity) noexcept {
    if (capacity == capacity_) return true;
    auto* rows = static_cast<SquareRow*>(memory.take(capacity * row_bytes(), Use::table));
    if (rows == nullptr) return false;
    auto* levels = reinterpret_cast<float*>(rows + capacity);
    if (n_rows_ > 0) {
        std::memcpy(rows, rows_, n_rows_ * sizeof(SquareRow));
        std::memcpy(levels, levels_, n_rows_ * n_channels() * sizeof(float));
    }
    memory.give_back(rows_, capacity_ * row_bytes(), Use::table);
    rows_ = rows;
    levels_ = levels;
    capacity_ = capacity;
    return true;
}

bool QuerySquares::reserve(const Memory& memory, std::uint64_t n) noexcept {
    if (sum_ == nullptr) {
        sum_ = static_cast<double*>(memory.take(sum_bytes(), Use::table));
        if (sum_ == nullptr) return false;
        weights_ = reinterpret_cast<float*>(sum_ + n_channels());
        std::fill_n(sum_, n_channels(), 0.0);
    }
    return n_rows_ + n <= capacity_ || resize(memory, n_rows_ + std::max(n, least_rows));
}

bool QuerySquares::copy(const Memory& memory, const QuerySquares& other) noexcept {
    return other.is_empty() ||
           restore(memory, other.sum_, other.n_summed_, other.rows_, other.levels_, other.n_rows_);
}

bool QuerySquares::restore(const Memory& memory, const double* sum, std::uint64_t n_summed,
                           const SquareRow* rows, const float* levels, std::uint64_t n_rows) noexcept {
    if (!reserve(memory, n_rows)) return false;
    std::memcpy(sum_, sum, n_channels() * sizeof(double));
    n_summed_ = n_summed;
    n_rows_ = n_rows;
    if (n_rows == 0) return true;
    std::memcpy(rows_, rows, n_rows * sizeof(SquareRow));
    std::memcpy(levels_, levels, n_rows * n_channels() * sizeof(float));
    return true;
}

void QuerySquares::destroy(const Memory& memory) noexcept {
    memory.give_back(rows_, capacity_ * row_bytes(), Use::table);
    memory.give_back(sum_, sum_bytes(), Use::table);
    rows_ = nullptr;
    levels_ = weights_ = nullptr;
    sum_ = nullptr;
    n_rows_ = capacity_ = n_summed_ = 0;
}

// ---- rows ----

std::uint64_t QuerySquares::find(std::uint64_t token) const noexcept {
    const auto before = [](const SquareRow& row, std::uint64_t at) { return row.token < at; };
    return static_cast<std::uint64_t>(std::lower_bound(rows_, rows_ + n_rows_, token, before) - rows_);
}

std::uint64_t QuerySquares::n_missing(std::uint64_t first, std::uint64_t end) const noexcept {
    std::uint64_t n = 0, row = n_rows_ == 0 || rows_[n_rows_ - 1].token < first ? n_rows_ : find(first);
    for (std::uint64_t token = next_kept(first); token < end; token = next_kept(token + 1)) {
        while (row < n_rows_ && rows_[row].token < token)
            ++row;
        n += row == n_rows_ || rows_[row].token != token;
    }
    return n;
}

void QuerySquares::keep(const CodecKernels& kernels, const Queries& queries, std::uint64_t first,
                        std::uint64_t n_tokens) noexcept {
    const std::uint32_t n_shared = queries.n_heads / n_heads_;
    float line[max_dim];
    double squares[max_dim];  // which no float overflows
    for (std::uint64_t token = next_kept(first); token < n_tokens; token = next_kept(token + 1)) {
        const std::uint64_t row = find(token);
        if (row < n_rows_ && rows_[row].token == token) continue;
        std::memmove(rows_ + row + 1, rows_ + row, (n_rows_ - row) * sizeof(SquareRow));
        float* levels = levels_ + row * n_channels();
        std::memmove(levels + n_channels(), levels, (n_rows_ - row) * n_channels() * sizeof(float));
        ++n_rows_;
        rows_[row] = {token, n_tokens, stride_at(token)};
        const std::size_t query = static_cast<std::size_t>(queries.n_queries - (n_tokens - token));
        for (std::uint32_t head = 0; head < n_heads_; ++head) {
            std::fill_n(squares, dim_, 0.0);
            for (std::uint32_t i = 0; i < n_shared; ++i) {
                const float* x =
                    row_floats(kernels, query_rows(queries), query, head * n_shared + i, dim_, line);
                for (std::uint32_t c = 0; c < dim_; ++c)
                    squares[c] += static_cast<double>(x[c]) * x[c];
            }
            for (std::uint32_t c = 0; c < dim_; ++c)
                levels[head * dim_ + c] = static_cast<float>(std::sqrt(squares[c] / n_shared));
        }
    }
}

bool QuerySquares::truncate(std::uint64_t n_tokens) noexcept {
    std::uint64_t n = 0;
    for (std::uint64_t row = 0; row < n_rows_; ++row) {
        if (rows_[row].token >= n_tokens || rows_[row].seen > n_tokens) continue;
        if (n < row) {
            rows_[n] = rows_[row];
            std::copy_n(levels_ + row * n_channels(), n_channels(), levels_ + n * n_channels());
        }
        ++n;
    }
    const bool is_less = n < n_rows_;
    n_rows_ = n;
    return is_less;
}

void QuerySquares::remove(std::uint64_t first, std::uint64_t n_removed) noexcept {
    std::uint64_t n = 0;
    for (std::uint64_t row = 0; row < n_rows_; ++row) {
        SquareRow moved = rows_[row];
        if (moved.token >= first && moved.token < first + n_removed) continue;
        if (moved.token >= first) moved.token -= n_removed;
        moved.seen = std::max(moved.seen - std::min(moved.seen, n_removed), moved.token + 1);
        if (n < row) std::copy_n(levels_ + row * n_channels(), n_channels(), levels_ + n * n_channels());
        rows_[n++] = moved;
    }
    n_rows_ = n;
}

// ---- sums ----

void QuerySquares::add(double* sum, std::uint64_t row) const noexcept {
    const double weight = static_cast<double>(rows_[row].weight);
    const float* levels = levels_ + row * n_channels();
    for (std::uint64_t c = 0; c < n_channels(); ++c)
        sum[c] += weight * (static_cast<double>(levels[c]) * levels[c]);
}

void QuerySquares::fold(const Memory& memory, std::uint64_t end) noexcept {
    std::uint64_t n = 0;
    for (; n < n_rows_ && rows_[n].token < end; ++n) {
        add(sum_, n);
        n_summed_ += rows_[n].weight;
    }
    if (n == 0) return;
    n_rows_ -= n;
    std::memmove(rows_, rows_ + n, n_rows_ * sizeof(SquareRow));
    std::memmove(levels_, levels_ + n * n_channels(), n_rows_ * n_channels() * sizeof(float));
    // Of a long prompt little is left. When memory is short it stays as it is.
    const std::uint64_t wanted = std::max(n_rows_, least_rows);
    if (wanted <= capacity_ / 2) (void)resize(memory, wanted);
}

bool QuerySquares::weigh(std::uint64_t end, float* out) const noexcept {
    if (n_summed_ == 0 && (n_rows_ == 0 || rows_[0].token >= end)) return false;
    double sum[max_dim];
    for (std::uint32_t head = 0; head < n_heads_; ++head) {
        std::copy_n(sum_ + head * dim_, dim_, sum);
        for (std::uint64_t row = 0; row < n_rows_ && rows_[row].token < end; ++row) {
            const double weight = static_cast<double>(rows_[row].weight);
            const float* levels = levels_ + row * n_channels() + head * dim_;
            for (std::uint32_t c = 0; c < dim_; ++c)
                sum[c] += weight * (static_cast<double>(levels[c]) * levels[c]);
        }
        double mean = 0.0;
        for (std::uint32_t c = 0; c < dim_; ++c)
            mean += sum[c] / dim_;
        for (std::uint32_t c = 0; c < dim_; ++c) {
            // To the power of 3/4: few queries say too much of single channels.
            const double root = std::sqrt(mean > 0.0 ? std::max(sum[c] / mean, least_share) : 1.0);
            out[head * dim_ + c] = static_cast<float>(root * std::sqrt(root));
        }
    }
    return true;
}

}  // namespace gearkv
