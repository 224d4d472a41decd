// Matrix products of the forward pass, spread over an executor.
#pragma once

#include <atomic>
#include <memory>

#include "decoder/network/floats.hpp"
#include "decoder/network/integer.hpp"
#include "decoder/network/linear.hpp"
#include "decoder/network/model.hpp"
#include "gearkv/executor.hpp"

namespace gearkv {

// y[t][r] = sum_c w[r][c] x[t][c], or += with accumulate. Rows of x and y follow one another without gaps.
struct Product {
    const Weight* w = nullptr;
    const float* x = nullptr;  // [n_tokens, w->n_cols]
    float* y = nullptr;        // [n_tokens, w->n_rows]
    bool accumulate = false;
};

// Quantised weights are multiplied in integers, with vectors rounded to 8-bit codes once for all neighbouring
// products that share them, or in floats; other weights always in floats.
//
// Results do not depend on the executor. Those in integers do not depend on n_tokens either, nor do those in
// floats without a BLAS: a token's result has the same bits alone and within a chunk.
class ProductEngine {
  public:
    // All products in floats. `executor` is borrowed. May throw std::bad_alloc.
    ProductEngine(const LinearKernels& kernels, Executor& executor);
    // Products of quantised weights in integers, with vectors of at most n_entries entries together. All
    // products in floats when `integer` is null.
    ProductEngine(const LinearKernels& kernels, const IntegerKernels* integer, std::size_t n_entries,
                  Executor& executor);

    // Runs independent products over the same number of tokens. Allocates nothing.
    void multiply(const Product* products, std::size_t n_products, std::size_t n_tokens) noexcept;

    // While set, no product depends on n_tokens, whatever the build.
    void avoid_blas(bool avoid) noexcept { avoids_blas_ = avoid; }

    const LinearKernels& kernels() const noexcept { return kernels_; }
    // Of working memory.
    std::uint64_t n_bytes() const noexcept {
        return panels_.size() * sizeof(float) + n_panels_ * sizeof(taken_[0]) + n_codes_ * sizeof(CodeBlock);
    }

  private:
    bool in_integers(const Weight& w) const noexcept;
    std::size_t rows_per_task(const Weight& w, std::size_t n_tokens) const noexcept;
    std::size_t count_tasks(const Weight& w, std::size_t n_tokens) const noexcept;
    using Arrange = void (*)(CodeBlock* blocks, std::size_t n_blocks);
    Arrange arrangement(const Weight& w) const noexcept;
    void round_vectors(const float* x, std::size_t n_cols, std::size_t n_tokens, Arrange arrange) noexcept;
    void multiply_shared(const Product* products, std::size_t n_products, std::size_t n_tokens) noexcept;
    void multiply_codes(const Product& product, std::size_t first_row, std::size_t n_rows,
                        std::size_t n_tokens) noexcept;
    void multiply_rows(const Product& product, std::size_t first_row, std::size_t n_rows,
                       std::size_t n_tokens) noexcept;
    void multiply_panel(const Product& product, std::size_t first_row, std::size_t n_rows,
                        std::size_t n_tokens, float* panel) noexcept;
    std::size_t take_panel() noexcept;

    const LinearKernels& kernels_;
    const IntegerKernels* integer_;  // null: none
    Executor& executor_;
    bool uses_blas_;
    bool avoids_blas_ = false;
    std::size_t n_panels_;                        // one for each thread that may run a task
    std::unique_ptr<std::atomic<bool>[]> taken_;  // [n_panels]
    Floats panels_;                               // [n_panels, panel_rows, column_block]
    std::size_t n_codes_;
    std::unique_ptr<CodeBlock[]> codes_;  // [n_tokens, n_cols / code_block] of the products at hand
};

}  // namespace gearkv
