#include <algorithm>

#include <cuda_bf16.h>

#include "scheduler/cuda/gradient_norm.hpp"
#include "scheduler/cuda/src/vector8.cuh"

namespace airmoe::scheduler::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kBlocks = 1024;  // most partial sums of a range

__device__ double block_sum(double x) {
  __shared__ double of_warp[kWarp];
  x = warp_sum(x);
  if (threadIdx.x % kWarp == 0) of_warp[threadIdx.x / kWarp] = x;
  __syncthreads();
  const int lane = threadIdx.x % kWarp;
  return warp_sum(lane < static_cast<int>(blockDim.x) / kWarp ? of_warp[lane] : 0.0);
}

/// Block b has tiles b, b + gridDim.x, ...
__global__ void __launch_bounds__(kThreads)
    square_sums_kernel(const ParameterTile* __restrict__ tiles, int count, int32_t number,
                       const float* __restrict__ gradient, double* __restrict__ partial) {
  constexpr int kQuads = 4;  // loads under way at once
  double sum = 0.0;
  for (int t = static_cast<int>(blockIdx.x); t < count; t += static_cast<int>(gridDim.x)) {
    const ParameterTile tile = tiles[t];
    const int64_t end = tile.begin + tile.count;
    for (int64_t base = tile.begin + threadIdx.x * 4; base < end; base += kQuads * kThreads * 4) {
      float4 v[kQuads];
#pragma unroll
      for (int q = 0; q < kQuads; ++q) {
        const int64_t i = base + q * kThreads * 4;
        v[q] = i < end && tile.has_gradient(i, number)
                   ? *reinterpret_cast<const float4*>(gradient + i)
                   : float4{};
      }
#pragma unroll
      for (const float4& x : v) {
        const double a = x.x, b = x.y, c = x.z, d = x.w;
        sum += a * a + b * b + (c * c + d * d);
      }
    }
  }
  sum = block_sum(sum);
  if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}

__global__ void __launch_bounds__(kBlocks)
    add_partial_kernel(const double* __restrict__ partial, int replicated, int by_expert,
                       GradientSquares* squares) {
  const int i = threadIdx.x;
  const double first = block_sum(i < replicated ? partial[i] : 0.0);
  __syncthreads();
  const double second = block_sum(i < by_expert ? partial[replicated + i] : 0.0);
  if (i == 0) *squares = {first, second};
}

__global__ void clip_kernel(const GradientSquares* squares, const double* loss, double clip,
                            ClipState* state) {
  const double norm = sqrt(squares->replicated + squares->by_expert);
  const bool finite = isfinite(norm) && (loss == nullptr || isfinite(*loss));
  state->norm = norm;
  state->factor = clip > 0 && norm > clip ? static_cast<float>(clip / norm) : 1.0f;
  state->skip = finite ? 0 : 1;
}

int64_t blocks_for(int64_t tiles) {
  return std::min(kBlocks, tiles);
}

void square_sums(const ParameterTile* tiles, int64_t count, int32_t number, const float* gradient,
                 double* partial, cudaStream_t stream) {
  if (count == 0) return;
  square_sums_kernel<<<static_cast<unsigned>(blocks_for(count)), kThreads, 0, stream>>>(
      tiles, static_cast<int>(count), number, gradient, partial);
  AIRMOE_CUDA_LAUNCHED();
}

}  // namespace

template <class T>
void gradient_norm(DeviceParameters<T>& parameters, GradientSquares* squares,
                   GradientNormWorkspace& workspace, cudaStream_t stream) {
  const ParameterTiles& tiles = parameters.tiles(stream);
  const int32_t number = parameters.history().next();
  const int64_t first = blocks_for(tiles.replicated), second = blocks_for(tiles.by_expert);
  workspace.partial.ensure(2 * kBlocks);
  double* partial = workspace.partial.data();
  square_sums(tiles.tile.data(), tiles.replicated, number, parameters.gradients(), partial, stream);
  square_sums(tiles.tile.data() + tiles.replicated, tiles.by_expert, number, parameters.gradients(),
              partial + first, stream);
  add_partial_kernel<<<1, kBlocks, 0, stream>>>(partial, static_cast<int>(first),
                                                static_cast<int>(second), squares);
  AIRMOE_CUDA_LAUNCHED();
}

void clip_by_norm(const GradientSquares* squares, const double* loss, double clip, ClipState* state,
                  cudaStream_t stream) {
  clip_kernel<<<1, 1, 0, stream>>>(squares, loss, clip, state);
  AIRMOE_CUDA_LAUNCHED();
}

template void gradient_norm(DeviceParameters<float>&, GradientSquares*, GradientNormWorkspace&,
                            cudaStream_t);
template void gradient_norm(DeviceParameters<__nv_bfloat16>&, GradientSquares*,
                            GradientNormWorkspace&, cudaStream_t);

}  // namespace airmoe::scheduler::cuda
