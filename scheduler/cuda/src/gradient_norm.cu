#include <algorithm>

#include <cuda_bf16.h>

#include "scheduler/cuda/gradient_norm.hpp"
#include "scheduler/cuda/src/vector8.cuh"

namespace airmoe::scheduler::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kBlocks = 1024;  // most partial sums of a range
constexpr int64_t kFewest = 4096;  // elements that are worth a block

__device__ double block_sum(double x) {
  __shared__ double of_warp[kWarp];
  x = warp_sum(x);
  if (threadIdx.x % kWarp == 0) of_warp[threadIdx.x / kWarp] = x;
  __syncthreads();
  const int lane = threadIdx.x % kWarp;
  return warp_sum(lane < static_cast<int>(blockDim.x) / kWarp ? of_warp[lane] : 0.0);
}

__global__ void __launch_bounds__(kThreads)
    square_sums_kernel(const float4* __restrict__ x, int64_t quads, double* __restrict__ partial) {
  const int64_t stride = gridDim.x * static_cast<int64_t>(kThreads);
  double sum = 0.0;
#pragma unroll 4
  for (int64_t i = blockIdx.x * static_cast<int64_t>(kThreads) + threadIdx.x; i < quads;
       i += stride) {
    const float4 v = x[i];
    const double a = v.x, b = v.y, c = v.z, d = v.w;
    sum += a * a + b * b + (c * c + d * d);
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

int64_t blocks_for(int64_t elements) {
  return std::min(kBlocks, (elements + kFewest - 1) / kFewest);
}

void square_sums(const float* x, int64_t elements, double* partial, cudaStream_t stream) {
  if (elements == 0) return;
  square_sums_kernel<<<static_cast<unsigned>(blocks_for(elements)), kThreads, 0, stream>>>(
      reinterpret_cast<const float4*>(x), elements / 4, partial);
  AIRMOE_CUDA_LAUNCHED();
}

}  // namespace

template <class T>
void gradient_norm(DeviceParameters<T>& parameters, GradientSquares* squares,
                   GradientNormWorkspace& workspace, cudaStream_t stream) {
  const int64_t replicated = parameters.replicated_size();
  const int64_t by_expert = parameters.size() - replicated;
  workspace.partial.ensure(2 * kBlocks);
  double* partial = workspace.partial.data();
  square_sums(parameters.gradients(), replicated, partial, stream);
  square_sums(parameters.gradients() + replicated, by_expert, partial + blocks_for(replicated),
              stream);
  add_partial_kernel<<<1, kBlocks, 0, stream>>>(partial, static_cast<int>(blocks_for(replicated)),
                                                static_cast<int>(blocks_for(by_expert)), squares);
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
