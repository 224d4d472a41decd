#include "decoder/network/product.hpp"

#include <algorithm>
#include <thread>

#include "decoder/network/blas.hpp"

namespace gearkv {
namespace {

// With this many vectors or more, weights are expanded to float once for all of them.
constexpr std::size_t panel_tokens = 8;
constexpr std::size_t panel_rows = 128;

// With this many vectors or more, panels go to the BLAS of the build, if it has one. It is there for
// processors that OpenBLAS knows better than our levels do; on x86 it is no gain (4096 x 4096 F16 weights,
// 512 vectors, one AVX-512 thread: OpenBLAS 83, our kernels 94 GFLOP/s; the bundled model: 10,900 and 11,300
// tokens a second).
constexpr std::size_t blas_tokens = 32;

// Weights of one task of a product with few vectors: enough to outweigh the hand-over to a thread.
constexpr std::size_t task_weights = 65536;

// A BLAS chooses its own instructions, so a level that is not the machine's best one would not get what it
// asks for; and scalar is the reference.
bool may_use_blas(Level level) {
    Level levels[n_levels];
    const std::size_t n = available_levels(levels);
    return level != Level::scalar && n > 0 && levels[n - 1] == level;
}

std::size_t rows_per_task(const Weight& w, std::size_t n_tokens) {
    if (n_tokens >= panel_tokens) return panel_rows;
    const std::size_t rows = task_weights / w.n_cols / 8 * 8;
    return std::max<std::size_t>(rows, 8);
}

std::size_t count_tasks(const Weight& w, std::size_t n_tokens) {
    const std::size_t rows = rows_per_task(w, n_tokens);
    return (w.n_rows + rows - 1) / rows;
}

}  // namespace

ProductEngine::ProductEngine(const LinearKernels& kernels, Executor& executor)
    : kernels_(kernels),
      executor_(executor),
      uses_blas_(may_use_blas(kernels.level) && prepare_blas()),
      n_panels_(std::max(executor.n_threads(), 1u)),
      taken_(new std::atomic<bool>[n_panels_]()),
      panels_(n_panels_ * panel_rows * column_block) {}

void ProductEngine::multiply(const Product* products, std::size_t n_products, std::size_t n_tokens) noexcept {
    std::size_t n_tasks = 0;
    for (std::size_t i = 0; i < n_products; i++) {
        n_tasks += count_tasks(*products[i].w, n_tokens);
    }
    parallel_for(executor_, n_tasks, [&](std::size_t task) {
        const Product* product = products;
        for (std::size_t n; task >= (n = count_tasks(*product->w, n_tokens)); product++) {
            task -= n;
        }
        const std::size_t rows = rows_per_task(*product->w, n_tokens);
        const std::size_t first = task * rows;
        multiply_rows(*product, first, std::min(rows, product->w->n_rows - first), n_tokens);
    });
}

void ProductEngine::multiply_rows(const Product& product, std::size_t first_row, std::size_t n_rows,
                                  std::size_t n_tokens) noexcept {
    const Weight& w = *product.w;
    if (n_tokens >= panel_tokens) {
        const std::size_t panel = take_panel();
        multiply_panel(product, first_row, n_rows, n_tokens,
                       panels_.data() + panel * panel_rows * column_block);
        taken_[panel].store(false, std::memory_order_release);
        return;
    }
    LinearArgs args;
    args.y = product.y + first_row;
    args.y_stride = w.n_rows;
    args.w = w.data + first_row * w.row_bytes;
    args.row_bytes = w.row_bytes;
    args.x = product.x;
    args.x_stride = w.n_cols;
    args.n_rows = n_rows;
    args.n_cols = w.n_cols;
    args.n_tokens = n_tokens;
    args.accumulate = product.accumulate;
    kernels_.multiply[static_cast<std::size_t>(w.type)](args);
}

void ProductEngine::multiply_panel(const Product& product, std::size_t first_row, std::size_t n_rows,
                                   std::size_t n_tokens, float* panel) noexcept {
    const Weight& w = *product.w;
    for (std::size_t first = 0; first < w.n_cols; first += column_block) {
        const std::size_t n_cols = std::min(column_block, w.n_cols - first);
        for (std::size_t r = 0; r < n_rows; r++) {
            kernels_.expand[static_cast<std::size_t>(w.type)](
                panel + r * n_cols, w.data + (first_row + r) * w.row_bytes, first, n_cols);
        }
        LinearArgs args;
        args.y = product.y + first_row;
        args.y_stride = w.n_rows;
        args.w = reinterpret_cast<const std::uint8_t*>(panel);
        args.row_bytes = n_cols * sizeof(float);
        args.x = product.x + first;
        args.x_stride = w.n_cols;
        args.n_rows = n_rows;
        args.n_cols = n_cols;
        args.n_tokens = n_tokens;
        args.accumulate = product.accumulate || first > 0;
        if (uses_blas_ && n_tokens >= blas_tokens) {
            multiply_blas(args);
        } else {
            kernels_.multiply[static_cast<std::size_t>(WeightType::f32)](args);
        }
    }
}

// An executor runs no more tasks at once than it has threads, so a panel is free.
std::size_t ProductEngine::take_panel() noexcept {
    for (;;) {
        for (std::size_t i = 0; i < n_panels_; i++) {
            if (!taken_[i].exchange(true, std::memory_order_acquire)) return i;
        }
        std::this_thread::yield();
    }
}

}  // namespace gearkv
