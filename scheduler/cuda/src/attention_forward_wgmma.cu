// Causal attention in bf16 on Hopper, heads of up to 64 columns: a warp group has 64 query rows.
// While its tensor cores multiply one step's probabilities with the values, it computes the softmax
// of the next.

#include "comm/base/cuda/wgmma.cuh"
#include "scheduler/cuda/src/attention_softmax.cuh"
#include "scheduler/cuda/src/block_order.hpp"

namespace airmoe::scheduler::cuda::attention {
namespace {

#if defined(AIRMOE_HAS_WGMMA)
using airmoe::cuda::add_rows;
using airmoe::cuda::begin_products;
using airmoe::cuda::multiply_tiles;
using airmoe::cuda::pin;
using airmoe::cuda::publish_copies;
using airmoe::cuda::wait_products;
#endif

constexpr int kDim = 64;
constexpr int kRows = 64;
constexpr int kKeys = 64;   // per step
constexpr int kStages = 3;  // steps in shared memory: values of the last, keys of this, the next
constexpr int kTileBytes = kKeys * kDim * 2;
constexpr int kBytes = (1 + 2 * kStages) * kTileBytes + 1024;  // tiles begin at multiples of 1,024

__global__ __launch_bounds__(kThreads, 3) void forward_kernel(Inputs<Bf16> in, BlockOrder order,
                                                              Bf16* out, float* log_sum) {
#if defined(AIRMOE_HAS_WGMMA)
  extern __shared__ __align__(1024) unsigned char shared[];
  const uint32_t padding = -shared_address(shared) % 1024;
  const uint32_t q_tile = shared_address(shared) + padding;
  const auto k_tile = [&](int step) { return q_tile + (1 + 2 * (step % kStages)) * kTileBytes; };
  const auto v_tile = [&](int step) { return k_tile(step) + kTileBytes; };

  const auto [column, level] = order.place_of(blockIdx.x);
  const int sequence = column / in.heads, head = column % in.heads;
  const int begin = (order.levels - 1 - level) * kRows;  // long rows of keys start first
  const int64_t first = static_cast<int64_t>(sequence) * in.context;
  const Bf16* k = in.k + first * in.ld_k + head / in.group * in.head_dim;
  const Bf16* v = in.v + first * in.ld_v + head / in.group * in.head_dim;
  const int steps = begin / kKeys + 1;
  const auto load_keys = [&](int step) {
    const int key = step * kKeys;
    load_tile<kDim, kKeys>(k_tile(step), k + key * in.ld_k, in.ld_k, in.context - key, in.head_dim);
    load_tile<kDim, kKeys>(v_tile(step), v + key * in.ld_v, in.ld_v, in.context - key, in.head_dim);
    airmoe::cuda::commit_copies();
  };
  // The keys of `step` are there, and every warp has left those of step - 2.
  const auto await_keys = [&](int step) {
    airmoe::cuda::wait_copies<0>();
    publish_copies();
    __syncthreads();
    if (step + 1 < steps) load_keys(step + 1);
  };

  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int row = begin + 16 * warp + lane / 4;
  const float factor = in.scale * kLog2E;
  RunningRow rows[2];
  float sums[kDim / 8][4] = {}, products[kKeys / 8][4], shrink[2];
  uint32_t q[kDim / 16][4], probabilities[kKeys / 16][4];
  const auto pack = [&] {
#pragma unroll
    for (int i = 0; i < kKeys / 16; ++i) {
      as_a(probabilities[i], products[2 * i], products[2 * i + 1]);
    }
  };

  load_tile<kDim, kRows>(q_tile, in.q + (first + begin) * in.ld_q + head * in.head_dim, in.ld_q,
                         in.context - begin, in.head_dim);
  load_keys(0);
  await_keys(0);
#pragma unroll
  for (int i = 0; i < kDim / 16; ++i) load_a<kDim>(q[i], q_tile, 16 * warp, i);
  begin_products();
  multiply_tiles(products, q, k_tile(0));
  wait_products<0>();
  pin(products);
  if (steps == 1) mask(products, 2 * (lane % 4), row);
  advance(products, rows, shrink, factor);
  pack();
  for (int step = 1; step < steps; ++step) {
    await_keys(step);
    pin(sums);
    begin_products();
    multiply_tiles(products, q, k_tile(step));
    add_rows(sums, probabilities, v_tile(step - 1));
    wait_products<1>();
    pin(products);
    if (step + 1 == steps) mask(products, step * kKeys + 2 * (lane % 4), row);
    advance(products, rows, shrink, factor);
    wait_products<0>();
    pin(sums);
    rescale(sums, shrink);
    pack();
  }
  pin(sums);
  begin_products();
  add_rows(sums, probabilities, v_tile(steps - 1));
  wait_products<0>();
  pin(sums);

  finish_rows(sums, rows, in.scale, log_sum + static_cast<int64_t>(column) * in.context, row,
              in.context);
  const int64_t ld_out = static_cast<int64_t>(in.heads) * in.head_dim;
  float all[1][kDim / 8][4];
#pragma unroll
  for (int n = 0; n < kDim / 8; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) all[0][n][i] = sums[n][i];
  }
  store_rows<kDim>(all, 1.0f, shared + padding, 16 * warp,
                   out + (first + begin) * ld_out + head * in.head_dim, ld_out, in.context - begin,
                   in.head_dim);
#endif
}

}  // namespace

void launch_forward_wgmma(const Inputs<Bf16>& in, int64_t sequences, Bf16* out, float* log_sum,
                          cudaStream_t stream) {
  AIRMOE_CUDA(
      cudaFuncSetAttribute(forward_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes));
  const BlockOrder order(sequences * in.heads, (in.context + kRows - 1) / kRows);
  forward_kernel<<<order.blocks(), kThreads, kBytes, stream>>>(in, order, out, log_sum);
  AIRMOE_CUDA_LAUNCHED();
}

}  // namespace airmoe::scheduler::cuda::attention
