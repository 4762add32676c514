// Causal attention in bf16: a block has a tile of query rows and walks over the keys up to its last
// row, with a running maximum and sum per row.

#include "comm/base/cuda/wgmma.hpp"
#include "scheduler/cuda/src/attention_softmax.cuh"

namespace airmoe::scheduler::cuda::attention {
namespace {

constexpr int kKeys = 64;  // per step

template <int kDim, int kTiles>
__global__ __launch_bounds__(kThreads, kTiles == 1 ? 3 : 2) void forward_kernel(Inputs<Bf16> in,
                                                                                Bf16* out,
                                                                                float* log_sum) {
  constexpr int kRows = kWarps * kTiles * 16;
  constexpr int kRowBytes = kDim * 2;
  constexpr bool kKept = kDim <= 64;
  extern __shared__ __align__(128) unsigned char shared[];
  const uint32_t q_tile = shared_address(shared);
  const auto k_tile = [&](int stage) { return q_tile + (kRows + 2 * stage * kKeys) * kRowBytes; };
  const auto v_tile = [&](int stage) { return k_tile(stage) + kKeys * kRowBytes; };

  const int sequence = blockIdx.x / in.heads, head = blockIdx.x % in.heads;
  const int begin = (gridDim.y - 1 - blockIdx.y) * kRows;  // long rows of keys start first
  const int64_t first = static_cast<int64_t>(sequence) * in.context;
  const Bf16* k = in.k + first * in.ld_k + head / in.group * in.head_dim;
  const Bf16* v = in.v + first * in.ld_v + head / in.group * in.head_dim;
  const auto load_keys = [&](int step) {
    const int key = step * kKeys;
    load_tile<kDim, kKeys>(k_tile(step % 2), k + key * in.ld_k, in.ld_k, in.context - key,
                           in.head_dim);
    load_tile<kDim, kKeys>(v_tile(step % 2), v + key * in.ld_v, in.ld_v, in.context - key,
                           in.head_dim);
    airmoe::cuda::commit_copies();
  };

  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int own = warp * kTiles * 16;  // first row of this warp in the tile
  const int steps = (min(begin + kRows, in.context) + kKeys - 1) / kKeys;
  const float factor = in.scale * kLog2E;
  OwnRows<kDim, kTiles, kKept> q;
  RunningRow rows[kTiles][2];
  float sums[kTiles][kDim / 8][4] = {};

  load_tile<kDim, kRows>(q_tile, in.q + (first + begin) * in.ld_q + head * in.head_dim, in.ld_q,
                         in.context - begin, in.head_dim);
  load_keys(0);
  for (int step = 0; step < steps; ++step) {
    airmoe::cuda::wait_copies<0>();
    __syncthreads();
    if (step + 1 < steps) load_keys(step + 1);
    if (step == 0) q.load(q_tile, own);
    const int key = step * kKeys;
    if (key > begin + own + kTiles * 16 - 1) continue;
    float products[kTiles][kKeys / 8][4];
    q.template multiply<kKeys / 8>(products, k_tile(step % 2), 0);
    const bool hidden = key + kKeys - 1 > begin + own;
#pragma unroll
    for (int m = 0; m < kTiles; ++m) {
      if (hidden) mask(products[m], key + 2 * (lane % 4), begin + own + 16 * m + lane / 4);
      float shrink[2];
      advance(products[m], rows[m], shrink, factor);
      rescale(sums[m], shrink);
    }
#pragma unroll
    for (int part = 0; part < kKeys / 32; ++part) {
      uint32_t probabilities[kTiles][2][4];
#pragma unroll
      for (int m = 0; m < kTiles; ++m) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const int n = 4 * part + 2 * i;
          as_a(probabilities[m][i], products[m][n], products[m][n + 1]);
        }
      }
      multiply_rows<kDim>(sums, probabilities, v_tile(step % 2), 32 * part);
    }
  }

#pragma unroll
  for (int m = 0; m < kTiles; ++m) {
    finish_rows(sums[m], rows[m], in.scale, log_sum + static_cast<int64_t>(blockIdx.x) * in.context,
                begin + own + 16 * m + lane / 4, in.context);
  }
  const int64_t ld_out = static_cast<int64_t>(in.heads) * in.head_dim;
  store_rows<kDim>(sums, 1.0f, shared, own, out + (first + begin) * ld_out + head * in.head_dim,
                   ld_out, in.context - begin, in.head_dim);
}

template <int kDim, int kTiles>
void launch_tiles(const Inputs<Bf16>& in, int64_t sequences, Bf16* out, float* log_sum,
                  cudaStream_t stream) {
  constexpr int kRows = kWarps * kTiles * 16;
  constexpr int kBytes = (kRows + 4 * kKeys) * kDim * 2;
  const auto kernel = forward_kernel<kDim, kTiles>;
  AIRMOE_CUDA(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes));
  const dim3 grid(static_cast<unsigned>(sequences * in.heads), (in.context + kRows - 1) / kRows);
  kernel<<<grid, kThreads, kBytes, stream>>>(in, out, log_sum);
  AIRMOE_CUDA_LAUNCHED();
}

/// Two rows of 16 per warp read each key half as often; small batches need the blocks more. A row's
/// sums are the same either way.
template <int kDim>
void launch(const Inputs<Bf16>& in, int64_t sequences, Bf16* out, float* log_sum,
            cudaStream_t stream) {
  constexpr int64_t kFewBlocks = 528;  // twice what an H100 runs at a time
  const int64_t blocks = sequences * in.heads * ((in.context + 127) / 128);
  if (blocks < kFewBlocks) {
    launch_tiles<kDim, 1>(in, sequences, out, log_sum, stream);
  } else {
    launch_tiles<kDim, 2>(in, sequences, out, log_sum, stream);
  }
}

}  // namespace

template <>
void launch_forward(const Inputs<Bf16>& in, int64_t sequences, Bf16* out, float* log_sum,
                    int* tickets, cudaStream_t stream) {
  if (in.head_dim > 16 && airmoe::cuda::has_wgmma()) {
    return launch_forward_wgmma(in, sequences, out, log_sum, tickets, stream);
  }
  if (in.head_dim <= 16) return launch<16>(in, sequences, out, log_sum, stream);
  if (in.head_dim <= 32) return launch<32>(in, sequences, out, log_sum, stream);
  if (in.head_dim <= 64) return launch<64>(in, sequences, out, log_sum, stream);
  launch<128>(in, sequences, out, log_sum, stream);
}

}  // namespace airmoe::scheduler::cuda::attention
