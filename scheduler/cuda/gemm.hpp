#pragma once
// Matrix products on a device by cuBLASLt: row-major, fp32 sums, one cached algorithm per shape.

#include <cstdint>
#include <memory>

#include "comm/base/cuda/device.hpp"

namespace airmoe::scheduler::cuda {

enum class Op : uint8_t { none, transpose };

/// One shape of product: c[m, n] = op(a) op(b) + beta c, with op(a) [m, k] and op(b) [k, n].
struct GemmShape {
  Op op_a = Op::none, op_b = Op::none;
  int64_t m = 0, n = 0, k = 0;
  int64_t ld_a = 0, ld_b = 0, ld_c = 0;  ///< elements between rows as stored
  float beta = 0;                        ///< 0 or 1

  auto operator<=>(const GemmShape&) const = default;
};

/// Deterministic: the algorithm is cuBLASLt's first proposal for the shape, the same in every run
/// on the same device and library. fp32 products are true fp32 (no TF32). One object per stream:
/// calls share a workspace of 32 MiB.
class Gemm {
 public:
  /// The first one in a process loads cuBLASLt; Error(ExitCode::config) where it is not to be
  /// found.
  Gemm();
  ~Gemm();
  Gemm(const Gemm&) = delete;
  Gemm& operator=(const Gemm&) = delete;

  /// Local, asynchronous. A, C: (float, float), (__nv_bfloat16, __nv_bfloat16) or (__nv_bfloat16,
  /// float); sums are fp32. Pointers are 16-byte aligned, ld_* multiples of 8. Nothing happens
  /// where m or n is 0; with k = 0 c must not need changing (beta = 1). The first call with a shape
  /// asks for an algorithm on the host.
  template <class A, class C>
  void multiply(const GemmShape& shape, const A* a, const A* b, C* c, cudaStream_t stream);

 private:
  struct Plans;
  std::unique_ptr<Plans> plans_;
};

/// y = x w^T. Shapes: x [n, in], w [out, in], y [n, out], rows of y `ld_y` apart.
template <class T>
void linear_forward(Gemm& gemm, int64_t n, int64_t in, int64_t out, const T* x, const T* w, T* y,
                    int64_t ld_y, cudaStream_t stream) {
  gemm.multiply({Op::none, Op::transpose, n, out, in, in, in, ld_y, 0}, x, w, y, stream);
}
/// d_x = d_y w, overwritten.
template <class T>
void linear_backward_input(Gemm& gemm, int64_t n, int64_t in, int64_t out, const T* d_y,
                           int64_t ld_y, const T* w, T* d_x, cudaStream_t stream) {
  gemm.multiply({Op::none, Op::none, n, in, out, ld_y, in, in, 0}, d_y, w, d_x, stream);
}
/// d_w += d_y^T x, in fp32.
template <class T>
void linear_backward_weight(Gemm& gemm, int64_t n, int64_t in, int64_t out, const T* d_y,
                            int64_t ld_y, const T* x, float* d_w, cudaStream_t stream) {
  gemm.multiply({Op::transpose, Op::none, out, in, n, ld_y, in, in, 1}, d_y, x, d_w, stream);
}

}  // namespace airmoe::scheduler::cuda
