#pragma once
// Copies by Hopper's copy engine from boxes of an array (tensor_map.hpp) to shared memory, one
// thread for all, and the barriers in shared memory that tell of their arrival; also to all blocks
// of a cluster at once. Device code only, where AIRMOE_HAS_WGMMA (wgmma.cuh).

#include <cstdint>

#include <cuda.h>

#include "comm/base/cuda/wgmma.cuh"

namespace airmoe::cuda {

#if defined(AIRMOE_HAS_WGMMA)

/// A barrier of 8 bytes at shared address `barrier`, complete whenever `count` have arrived and the
/// bytes they announced have come.
__device__ __forceinline__ void start_barrier(uint32_t barrier, uint32_t count) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;\n" ::"r"(barrier), "r"(count) : "memory");
}
/// After the last start_barrier(), before a cluster's barrier.
__device__ __forceinline__ void publish_barriers() {
  asm volatile("fence.mbarrier_init.release.cluster;\n" ::: "memory");
}
/// Arrives, with so many bytes on their way.
__device__ __forceinline__ void expect_bytes(uint32_t barrier, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;\n" ::"r"(barrier), "r"(bytes)
               : "memory");
}
/// Arrives at a barrier of this block.
__device__ __forceinline__ void arrive(uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];\n" ::"r"(barrier) : "memory");
}
/// Arrives at the same barrier of block `rank` of the cluster.
__device__ __forceinline__ void arrive_at(uint32_t barrier, uint32_t rank) {
  asm volatile(
      "{\n.reg .b32 remote;\nmapa.shared::cluster.u32 remote, %0, %1;\n"
      "mbarrier.arrive.shared::cluster.b64 _, [remote];\n}\n" ::"r"(barrier),
      "r"(rank)
      : "memory");
}
/// Waits for a completion: the first has parity 0, the next 1, then 0 again.
__device__ __forceinline__ void await_barrier(uint32_t barrier, uint32_t parity) {
  asm volatile(
      "{\n.reg .pred done;\nagain:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@!done bra again;\n}\n" ::"r"(barrier),
      "r"(parity)
      : "memory");
}

__device__ __forceinline__ uint32_t rank_in_cluster() {
  uint32_t rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;\n" : "=r"(rank));
  return rank;
}
/// All threads of all blocks of a cluster.
__device__ __forceinline__ void synchronize_cluster() {
  asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;\n" ::
                   : "memory");
}

/// Brings the box at (x, y); its bytes arrive at `barrier`.
__device__ __forceinline__ void copy_box(uint32_t shared, const CUtensorMap& map, int x, int y,
                                         uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes "
      "[%0], [%1, {%3, %4}], [%2];\n" ::"r"(shared),
      "l"(&map), "r"(barrier), "r"(x), "r"(y)
      : "memory");
}
/// Brings the box at (x, 0, 0, 0, w) to the same place of every block of the cluster in `blocks`,
/// and its bytes to the same barrier.
__device__ __forceinline__ void copy_box_to(uint16_t blocks, uint32_t shared,
                                            const CUtensorMap& map, int x, int w,
                                            uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.tensor.5d.shared::cluster.global.mbarrier::complete_tx::bytes"
      ".multicast::cluster [%0], [%1, {%3, %5, %5, %5, %4}], [%2], %6;\n" ::"r"(shared),
      "l"(&map), "r"(barrier), "r"(x), "r"(w), "r"(0), "h"(blocks)
      : "memory");
}

/// Brings the box at (x, y) to the same place of every block of the cluster in `blocks`, and its
/// bytes to the same barrier.
__device__ __forceinline__ void copy_flat_box_to(uint16_t blocks, uint32_t shared,
                                                 const CUtensorMap& map, int x, int y,
                                                 uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes"
      ".multicast::cluster [%0], [%1, {%3, %4}], [%2], %5;\n" ::"r"(shared),
      "l"(&map), "r"(barrier), "r"(x), "r"(y), "h"(blocks)
      : "memory");
}

/// Brings `bytes`, a multiple of 16, from and to multiples of 16; they arrive at `barrier`.
__device__ __forceinline__ void copy_bytes(uint32_t shared, const void* global, uint32_t bytes,
                                           uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];\n" ::
          "r"(shared),
      "l"(global), "r"(bytes), "r"(barrier)
      : "memory");
}

/// A place in a ring of kStages and the parity of its pass.
template <int kStages>
struct Ring {
  int stage = 0;
  uint32_t parity = 0;
  __device__ __forceinline__ void advance() {
    if (++stage == kStages) stage = 0, parity ^= 1;
  }
};

/// A warp group gives registers back, or takes what others gave.
template <int kRegisters>
__device__ __forceinline__ void keep_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;\n" ::"n"(kRegisters));
}
template <int kRegisters>
__device__ __forceinline__ void take_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;\n" ::"n"(kRegisters));
}

#endif

}  // namespace airmoe::cuda
