// Backward of causal attention in bf16 on Hopper: tiles of queries and tiles of keys in one grid,
// as in attention_backward_bf16.cu. A block has kGroups warp groups of 64 rows each of such a tile,
// which share the rows of the other kind that a producer brings into a ring of stages. Blocks stay
// and take tile after tile; nothing is added atomically.

#include "scheduler/cuda/src/attention_backward_group.cuh"

namespace airmoe::scheduler::cuda::attention {
namespace {

template <class P>
__global__ __launch_bounds__(P::kThreads, 1) void backward_kernel(
    const __grid_constant__ BackwardMatrices matrices, const __grid_constant__ Inputs<Bf16> in,
    const __grid_constant__ Gradients<Bf16> g, BlockOrder order) {
#if defined(AIRMOE_HAS_WGMMA)
  extern __shared__ __align__(1024) unsigned char shared[];
  const Shared<P> at(shared);
  if (threadIdx.x == 0) {
    airmoe::cuda::start_barrier(at.own_there(), 1);
    airmoe::cuda::start_barrier(at.own_free(), P::kGroups);
    for (int stage = 0; stage < P::kStages; ++stage) {
      airmoe::cuda::start_barrier(at.there(stage), 1);
      airmoe::cuda::start_barrier(at.free(stage), 4 * P::kGroups);
    }
    airmoe::cuda::publish_barriers();
  }
  __syncthreads();
  if (group_of_thread() == P::kGroups) {
    airmoe::cuda::keep_registers<P::kProducerRegisters>();
    if (threadIdx.x % kGroupThreads == 0) produce<P>(matrices, in, g, order, at);
  } else {
    airmoe::cuda::take_registers<P::kRegisters>();
    Group<P> group(matrices, in, g, at);
    for (uint32_t parity = 0;; parity ^= 1) {
      airmoe::cuda::await_barrier(at.own_there(), parity);
      const int tile = __shfl_sync(~0u, at.ticket(), 0);
      if (tile < 0) break;
      const Work<P> work(in, g.parts, order, tile);
      if (work.of_keys) {
        group.keys(work);
      } else {
        group.queries(work);
      }
    }
  }
#endif
}

template <class P>
void launch(const Inputs<Bf16>& in, int64_t sequences, const Gradients<Bf16>& g,
            cudaStream_t stream) {
  const auto kernel = backward_kernel<P>;
  AIRMOE_CUDA(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, P::kBytes));
  const auto map = [&](const Bf16* data, int64_t ld, int heads) {
    return map_of_heads<P::kDim>(data, ld, sequences, in.context, heads, in.head_dim);
  };
  const BackwardMatrices matrices{
      map(in.q, in.ld_q, in.heads),
      map(in.k, in.ld_k, in.kv_heads),
      map(in.v, in.ld_v, in.kv_heads),
      map(g.d_out, static_cast<int64_t>(in.heads) * in.head_dim, in.heads),
      map(g.d_q, g.ld_dq, in.heads),
      map(g.d_k, g.ld_dk, in.kv_heads),
      map(g.d_v, g.ld_dv, in.kv_heads)};
  const int64_t parts = sequences * in.kv_heads * g.parts;
  // With one query head per tile of keys, tiles are even, and few at a time keep more in the cache.
  const int group_tiles = in.group == g.parts ? 256 : BlockOrder::kGroupTiles;
  const BlockOrder order(parts + sequences * in.heads, (in.context + P::kRows - 1) / P::kRows,
                         group_tiles);
  const int blocks = std::min(order.tiles(), airmoe::cuda::device_properties().multiprocessors);
  kernel<<<static_cast<unsigned>(blocks), P::kThreads, P::kBytes, stream>>>(matrices, in, g, order);
  AIRMOE_CUDA_LAUNCHED();
}

}  // namespace

void launch_backward_wgmma(const Inputs<Bf16>& in, int64_t sequences, const Gradients<Bf16>& g,
                           cudaStream_t stream) {
  if (in.head_dim <= 32) {
    launch<BackwardPlan<32, 6>>(in, sequences, g, stream);
  } else if (in.head_dim <= 64) {
    launch<BackwardPlan<64, 4>>(in, sequences, g, stream);
  } else {
    launch<BackwardPlan<128, 4>>(in, sequences, g, stream);
  }
}

}  // namespace airmoe::scheduler::cuda::attention
