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

// Vectors that a task of integer products goes through before it returns to its first row: their codes stay
// in the second cache beside the rows, or come from the third in their order. (Of 8,192 columns 64 vectors take
// .85 of the time they take with half as much, of 2,048 columns the same.)
constexpr std::size_t codes_bytes = 512 * 1024;

std::size_t tokens_at_once(std::size_t n_cols) {
    const std::size_t n = codes_bytes / (n_cols / code_block * sizeof(CodeBlock)) / 8 * 8;
    return std::max<std::size_t>(n, 8);
}

}  // namespace

ProductEngine::ProductEngine(const LinearKernels& kernels, Executor& executor)
    : ProductEngine(kernels, nullptr, 0, executor) {}

ProductEngine::ProductEngine(const LinearKernels& kernels, const IntegerKernels* integer,
                             std::size_t n_entries, Executor& executor)
    : kernels_(kernels),
      integer_(integer),
      executor_(executor),
      uses_blas_(may_use_blas(kernels.level) && prepare_blas()),
      n_panels_(std::max(executor.n_threads(), 1u)),
      taken_(new std::atomic<bool>[n_panels_]()),
      panels_(n_panels_ * panel_rows * column_block),
      n_codes_(integer == nullptr ? 0 : n_entries / code_block),
      codes_(n_codes_ == 0 ? nullptr : new CodeBlock[n_codes_]) {}

bool ProductEngine::in_integers(const Weight& w) const noexcept {
    return integer_ != nullptr && integer_->multiply[static_cast<std::size_t>(w.type)] != nullptr;
}

std::size_t ProductEngine::rows_per_task(const Weight& w, std::size_t n_tokens) const noexcept {
    if (n_tokens >= panel_tokens) return panel_rows;
    const std::size_t rows = task_weights / w.n_cols / 8 * 8;
    return std::max<std::size_t>(rows, 8);
}

std::size_t ProductEngine::count_tasks(const Weight& w, std::size_t n_tokens) const noexcept {
    const std::size_t rows = rows_per_task(w, n_tokens);
    return (w.n_rows + rows - 1) / rows;
}

void ProductEngine::multiply(const Product* products, std::size_t n_products, std::size_t n_tokens) noexcept {
    while (n_products > 0) {
        std::size_t n = 1;
        while (n < n_products && products[n].x == products->x &&
               products[n].w->n_cols == products->w->n_cols &&
               arrangement(*products[n].w) == arrangement(*products->w))
            n++;
        multiply_shared(products, n, n_tokens);
        products += n;
        n_products -= n;
    }
}

// Products of the same vectors, arranged alike.
void ProductEngine::multiply_shared(const Product* products, std::size_t n_products,
                                    std::size_t n_tokens) noexcept {
    std::size_t n_tasks = 0;
    bool any_codes = false;
    for (std::size_t i = 0; i < n_products; i++) {
        n_tasks += count_tasks(*products[i].w, n_tokens);
        any_codes |= in_integers(*products[i].w);
    }
    if (any_codes) {
        round_vectors(products->x, products->w->n_cols, n_tokens, arrangement(*products->w));
    }
    parallel_for(executor_, n_tasks, [&](std::size_t task) {
        const Product* product = products;
        for (std::size_t n; task >= (n = count_tasks(*product->w, n_tokens)); product++) {
            task -= n;
        }
        const std::size_t rows = rows_per_task(*product->w, n_tokens);
        const std::size_t first = task * rows;
        const std::size_t n_rows = std::min(rows, product->w->n_rows - first);
        if (in_integers(*product->w)) {
            multiply_codes(*product, first, n_rows, n_tokens);
        } else {
            multiply_rows(*product, first, n_rows, n_tokens);
        }
    });
}

ProductEngine::Arrange ProductEngine::arrangement(const Weight& w) const noexcept {
    return integer_ == nullptr ? nullptr : integer_->arrange[static_cast<std::size_t>(w.type)];
}

void ProductEngine::round_vectors(const float* x, std::size_t n_cols, std::size_t n_tokens,
                                  Arrange arrange) noexcept {
    constexpr std::size_t tokens_per_task = 8;
    const std::size_t n_blocks = n_cols / code_block;
    parallel_for(executor_, (n_tokens + tokens_per_task - 1) / tokens_per_task, [&](std::size_t task) {
        const std::size_t first = task * tokens_per_task, n = std::min(tokens_per_task, n_tokens - first);
        CodeBlock* codes = codes_.get() + first * n_blocks;
        integer_->round(codes, x + first * n_cols, n * n_blocks);
        if (arrange != nullptr) arrange(codes, n * n_blocks);
    });
}

void ProductEngine::multiply_codes(const Product& product, std::size_t first_row, std::size_t n_rows,
                                   std::size_t n_tokens) noexcept {
    const Weight& w = *product.w;
    IntegerArgs args;
    args.y_stride = w.n_rows;
    args.w = w.data + first_row * w.row_bytes;
    args.row_bytes = w.row_bytes;
    args.x_stride = w.n_cols / code_block;
    args.n_rows = n_rows;
    args.n_cols = w.n_cols;
    args.accumulate = product.accumulate;
    const std::size_t step = tokens_at_once(w.n_cols);
    for (std::size_t first = 0; first < n_tokens; first += step) {
        args.y = product.y + first * w.n_rows + first_row;
        args.x = codes_.get() + first * args.x_stride;
        args.n_tokens = std::min(step, n_tokens - first);
        integer_->multiply[static_cast<std::size_t>(w.type)](args);
    }
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
        if (uses_blas_ && !avoids_blas_ && n_tokens >= blas_tokens) {
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
