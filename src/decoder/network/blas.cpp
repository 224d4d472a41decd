#include "decoder/network/blas.hpp"

#ifdef GEARKV_HAVE_OPENBLAS
#include <cblas.h>
#include <sys/resource.h>
#endif

namespace gearkv {

#ifdef GEARKV_HAVE_OPENBLAS

namespace {

// OpenBLAS takes some 32 MiB for each thread that calls it, and where it cannot have them it tries for ever.
bool memory_is_limited() noexcept {
    for (const auto what : {RLIMIT_AS, RLIMIT_DATA}) {
        rlimit limit;
        if (getrlimit(what, &limit) == 0 && limit.rlim_cur != RLIM_INFINITY) return true;
    }
    return false;
}

}  // namespace

bool prepare_blas() noexcept {
    if (memory_is_limited()) return false;
    openblas_set_num_threads(1);
    return true;
}

void multiply_blas(const LinearArgs& args) noexcept {
    cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, static_cast<blasint>(args.n_tokens),
                static_cast<blasint>(args.n_rows), static_cast<blasint>(args.n_cols), 1.0f, args.x,
                static_cast<blasint>(args.x_stride), reinterpret_cast<const float*>(args.w),
                static_cast<blasint>(args.row_bytes / sizeof(float)), args.accumulate ? 1.0f : 0.0f, args.y,
                static_cast<blasint>(args.y_stride));
}

#else

bool prepare_blas() noexcept {
    return false;
}
void multiply_blas(const LinearArgs&) noexcept {}

#endif

}  // namespace gearkv
