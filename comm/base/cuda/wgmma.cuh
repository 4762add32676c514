#pragma once
// Warp-group products of Hopper (wgmma, sm_90a only): 128 threads multiply [64, 16] by [16, n] in
// bf16 with fp32 sums, the second operand from shared memory, while they do something else. Device
// code only; AIRMOE_HAS_WGMMA tells whether this compilation has them.
//
// Sums are as C of mma_bf16: of warp w, rows 16 w + lane / 4 (+ 8), d[n] the columns 8 n...
// Operands in registers are as A of mma_bf16. Tiles in shared memory have rows of 64 elements, in
// the order of airmoe::cuda::swizzled<8>, and begin at multiples of 1,024 bytes.

#include <cstdint>

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define AIRMOE_HAS_WGMMA 1
#endif

namespace airmoe::cuda {

#if defined(AIRMOE_HAS_WGMMA)

/// What wgmma needs to know of a tile from address `tile` on: eight rows are 1,024 bytes, in the
/// 128-byte swizzle. Advancing by 16 columns adds 2, by 16 rows adds 128.
__device__ __forceinline__ uint64_t describe_tile(uint32_t tile) {
  constexpr uint64_t kLeading = uint64_t{1} << 16;  // not used with this swizzle
  constexpr uint64_t kStride = uint64_t{1024 >> 4} << 32;
  constexpr uint64_t kSwizzle128 = uint64_t{1} << 62;
  return kSwizzle128 | kStride | kLeading | ((tile & 0x3ffff) >> 4);
}

/// Before the first product of a row of them: registers and shared memory written so far are seen.
__device__ __forceinline__ void begin_products() {
  asm volatile("wgmma.fence.sync.aligned;\n" ::: "memory");
}
/// Closes the group of products begun since the last one.
__device__ __forceinline__ void commit_products() {
  asm volatile("wgmma.commit_group.sync.aligned;\n" ::: "memory");
}
/// Waits until at most kPending groups are unfinished.
template <int kPending>
__device__ __forceinline__ void wait_products() {
  asm volatile("wgmma.wait_group.sync.aligned %0;\n" ::"n"(kPending) : "memory");
}
/// What this thread has written to shared memory, or brought there by cp.async, comes before what
/// wgmma and the copy engine do there; before the barrier.
__device__ __forceinline__ void publish_copies() {
  asm volatile("fence.proxy.async.shared::cta;\n" ::: "memory");
}
/// Keeps the compiler from moving what uses the sums over the wait for them.
template <int kTiles>
__device__ __forceinline__ void pin(float (&d)[kTiles][4]) {
#pragma unroll
  for (int n = 0; n < kTiles; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) asm volatile("" : "+f"(d[n][i])::"memory");
  }
}

#define AIRMOE_WGMMA_1(mode, d) mode((d)[0]), mode((d)[1]), mode((d)[2]), mode((d)[3])
#define AIRMOE_WGMMA_4(mode, d, n)                                                            \
  AIRMOE_WGMMA_1(mode, d[n]), AIRMOE_WGMMA_1(mode, d[n + 1]), AIRMOE_WGMMA_1(mode, d[n + 2]), \
      AIRMOE_WGMMA_1(mode, d[n + 3])
#define AIRMOE_WGMMA_SUMS_32(mode, d) AIRMOE_WGMMA_4(mode, d, 0)
#define AIRMOE_WGMMA_SUMS_64(mode, d) AIRMOE_WGMMA_4(mode, d, 0), AIRMOE_WGMMA_4(mode, d, 4)
#define AIRMOE_WGMMA_SUMS_128(mode, d) \
  AIRMOE_WGMMA_SUMS_64(mode, d), AIRMOE_WGMMA_4(mode, d, 8), AIRMOE_WGMMA_4(mode, d, 12)
#define AIRMOE_WGMMA_LIST_32 "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15"
#define AIRMOE_WGMMA_LIST_64                                                      \
  AIRMOE_WGMMA_LIST_32                                                            \
  ", %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, " \
  "%31"
#define AIRMOE_WGMMA_LIST_128                                                     \
  AIRMOE_WGMMA_LIST_64                                                            \
  ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, " \
  "%47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define AIRMOE_WGMMA(n, adds)                                                           \
  "{\n.reg .pred p;\nsetp.ne.b32 p, " adds ", 0;\nwgmma.mma_async.sync.aligned.m64n" #n \
  "k16.f32.bf16.bf16 {" AIRMOE_WGMMA_LIST_##n "}, "

/// multiply_async of sums [64, n]: d = a b, or d += a b, begun; a in registers or, as rows of a
/// tile, in shared memory. kColumns: b's k are the tile's rows and its n the columns; otherwise n
/// are the rows. o0..o5: the numbers of the operands after the sums.
#define AIRMOE_WGMMA_FUNCTIONS(n, o0, o1, o2, o3, o4, o5)                                        \
  template <bool kColumns, bool kAdds>                                                           \
  __device__ __forceinline__ void multiply_async(float(&d)[n / 8][4], const uint32_t(&a)[4],     \
                                                 uint64_t b) {                                   \
    if constexpr (kAdds) {                                                                       \
      asm volatile(AIRMOE_WGMMA(n, "1") "{%" #o0 ", %" #o1 ", %" #o2 ", %" #o3 "}, %" #o4        \
                                        ", p, 1, 1, %" #o5 ";\n}\n"                              \
                   : AIRMOE_WGMMA_SUMS_##n("+f", d)                                              \
                   : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "n"(kColumns ? 1 : 0)); \
    } else {                                                                                     \
      asm volatile(AIRMOE_WGMMA(n, "0") "{%" #o0 ", %" #o1 ", %" #o2 ", %" #o3 "}, %" #o4        \
                                        ", p, 1, 1, %" #o5 ";\n}\n"                              \
                   : AIRMOE_WGMMA_SUMS_##n("=f", d)                                              \
                   : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "n"(kColumns ? 1 : 0)); \
    }                                                                                            \
  }                                                                                              \
  template <bool kColumns, bool kAdds>                                                           \
  __device__ __forceinline__ void multiply_async(float(&d)[n / 8][4], uint64_t a, uint64_t b) {  \
    if constexpr (kAdds) {                                                                       \
      asm volatile(AIRMOE_WGMMA(n, "1") "%" #o0 ", %" #o1 ", p, 1, 1, 0, %" #o2 ";\n}\n"         \
                   : AIRMOE_WGMMA_SUMS_##n("+f", d)                                              \
                   : "l"(a), "l"(b), "n"(kColumns ? 1 : 0));                                     \
    } else {                                                                                     \
      asm volatile(AIRMOE_WGMMA(n, "0") "%" #o0 ", %" #o1 ", p, 1, 1, 0, %" #o2 ";\n}\n"         \
                   : AIRMOE_WGMMA_SUMS_##n("=f", d)                                              \
                   : "l"(a), "l"(b), "n"(kColumns ? 1 : 0));                                     \
    }                                                                                            \
  }
AIRMOE_WGMMA_FUNCTIONS(32, 16, 17, 18, 19, 20, 21)
AIRMOE_WGMMA_FUNCTIONS(64, 32, 33, 34, 35, 36, 37)
AIRMOE_WGMMA_FUNCTIONS(128, 64, 65, 66, 67, 68, 69)

#define AIRMOE_WGMMA_EIGHT(d, n)                                                              \
  AIRMOE_WGMMA_1("+f", d[n]), AIRMOE_WGMMA_1("+f", d[n + 1]), AIRMOE_WGMMA_1("+f", d[n + 2]), \
      AIRMOE_WGMMA_1("+f", d[n + 3]), AIRMOE_WGMMA_1("+f", d[n + 4]),                         \
      AIRMOE_WGMMA_1("+f", d[n + 5]), AIRMOE_WGMMA_1("+f", d[n + 6]),                         \
      AIRMOE_WGMMA_1("+f", d[n + 7])

/// d = a b, or d += a b if `adds`, begun: 64 rows of a tile times the transposed 128 or 256 rows of
/// another, 16 columns of each.
__device__ __forceinline__ void multiply_async(float (&d)[16][4], uint64_t a, uint64_t b,
                                               bool adds) {
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.b32 p, %66, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 "
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, "
      "%19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, "
      "%36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, "
      "%53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, %64, %65, p, 1, 1, 0, 0;\n}\n"
      : AIRMOE_WGMMA_EIGHT(d, 0), AIRMOE_WGMMA_EIGHT(d, 8)
      : "l"(a), "l"(b), "r"(adds ? 1 : 0));
}
__device__ __forceinline__ void multiply_async(float (&d)[32][4], uint64_t a, uint64_t b,
                                               bool adds) {
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.b32 p, %130, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n256k16.f32.bf16.bf16 "
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, "
      "%19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, "
      "%36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, "
      "%53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, %64, %65, %66, %67, %68, %69, "
      "%70, %71, %72, %73, %74, %75, %76, %77, %78, %79, %80, %81, %82, %83, %84, %85, %86, "
      "%87, %88, %89, %90, %91, %92, %93, %94, %95, %96, %97, %98, %99, %100, %101, %102, "
      "%103, %104, %105, %106, %107, %108, %109, %110, %111, %112, %113, %114, %115, %116, "
      "%117, %118, %119, %120, %121, %122, %123, %124, %125, %126, "
      "%127}, %128, %129, p, 1, 1, 0, 0;\n}\n"
      : AIRMOE_WGMMA_EIGHT(d, 0), AIRMOE_WGMMA_EIGHT(d, 8), AIRMOE_WGMMA_EIGHT(d, 16),
        AIRMOE_WGMMA_EIGHT(d, 24)
      : "l"(a), "l"(b), "r"(adds ? 1 : 0));
}

#undef AIRMOE_WGMMA_EIGHT
#undef AIRMOE_WGMMA_FUNCTIONS
#undef AIRMOE_WGMMA
#undef AIRMOE_WGMMA_LIST_32
#undef AIRMOE_WGMMA_LIST_64
#undef AIRMOE_WGMMA_LIST_128
#undef AIRMOE_WGMMA_SUMS_32
#undef AIRMOE_WGMMA_SUMS_64
#undef AIRMOE_WGMMA_SUMS_128
#undef AIRMOE_WGMMA_4
#undef AIRMOE_WGMMA_1

#endif

}  // namespace airmoe::cuda
