#pragma once
// Tensor-core tiles in bf16 with fp32 sums (mma.sync m16n8k16, sm_80 and later), and the loads that
// feed them: ldmatrix from shared memory, cp.async into it. Device code only.
//
// Fragments of one warp, lane = 4 * group + quad (group 0..7, quad 0..3):
//   A [16, 16] row-major: a[0] = (group, 2 quad..), a[1] = (group + 8, 2 quad..),
//                         a[2] = (group, 2 quad + 8..), a[3] = (group + 8, 2 quad + 8..)
//   B [16, 8] column-major (n, k contiguous): b[0] = (k = 2 quad.., n = group), b[1] = k + 8
//   C [16, 8]: c[0], c[1] = (group, 2 quad..), c[2], c[3] = (group + 8, 2 quad..)
// Each 32-bit register holds two bf16, the lower index in the lower half.

#include <cstdint>

#include <cuda_bf16.h>

namespace airmoe::cuda {

__device__ __forceinline__ uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

/// c += a * b
__device__ __forceinline__ void mma_bf16(float (&c)[4], const uint32_t (&a)[4],
                                         const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, "
      "{%8,%9}, {%0,%1,%2,%3};\n"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

/// Four 8x8 matrices of 16-bit elements; lane i gives the address of row i % 8 of matrix i / 8
/// (16-byte aligned). Register j then holds, of matrix j, elements (lane / 4, 2 (lane % 4)..).
__device__ __forceinline__ void load_matrix_x4(uint32_t (&r)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];\n"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
}
/// The same, each matrix transposed.
__device__ __forceinline__ void load_matrix_x4_transposed(uint32_t (&r)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];\n"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
}

/// Copies 16 bytes from global to shared memory (both 16-byte aligned), past the first-level cache.
/// `valid` false writes zeros and reads nothing.
__device__ __forceinline__ void copy_async_16(uint32_t shared, const void* global,
                                              bool valid = true) {
  const int bytes = valid ? 16 : 0;
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(shared), "l"(global),
               "r"(bytes)
               : "memory");
}
/// Closes the group of copies that this thread has issued since the last one.
__device__ __forceinline__ void commit_copies() {
  asm volatile("cp.async.commit_group;\n" ::: "memory");
}
/// Waits until at most `kPending` of this thread's groups are unfinished. A barrier must follow
/// before other threads read what arrived.
template <int kPending>
__device__ __forceinline__ void wait_copies() {
  asm volatile("cp.async.wait_group %0;\n" ::"n"(kPending) : "memory");
}

/// Two floats as bf16, `low` in the lower half.
__device__ __forceinline__ uint32_t pack_bf16(float low, float high) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  return *reinterpret_cast<const uint32_t*>(&pair);
}

/// Byte offset of 16-byte segment `segment` of row `row` in a tile whose rows have kSegments of
/// them, a multiple of 8: spreads the same segment of eight consecutive rows over all banks, so
/// that ldmatrix and 16-byte stores have no conflicts.
template <int kSegments>
__device__ __forceinline__ uint32_t swizzled(uint32_t row, uint32_t segment) {
  static_assert(kSegments % 8 == 0);
  return (row * kSegments + (segment ^ (row & 7))) * 16;
}

}  // namespace airmoe::cuda
