#pragma once
// Row-major single-precision matrix products on the CBLAS library.

#include <cstdint>
#include <string>

#include "comm/base/matrix_view.hpp"

namespace airmoe::blas {

enum class Op : uint8_t { none, transpose };

/// c = alpha * op(a) * op(b) + beta * c. Shapes after op: a [m, k], b [k, n], c [m, n].
/// Local; one thread; throws Error when shapes disagree. m, n or k may be zero.
void gemm(Op op_a, Op op_b, float alpha, ConstMatrix a, ConstMatrix b, float beta, Matrix c);

/// Name and version of the library and of the kernels it picked for this processor.
std::string description();

/// Call first thing in main(), before MPI_Init. OpenBLAS builds older than the processor fall back
/// to SSE kernels (measured 4 times slower); when that is seen, this sets OPENBLAS_CORETYPE and
/// starts the program again with it (on x86-64, once). No restart when OPENBLAS_CORETYPE is already
/// set or the library is not OpenBLAS. Also limits OpenBLAS or BLIS to `threads` threads.
void prepare_process(char** argv, int threads = 1);

}  // namespace airmoe::blas
