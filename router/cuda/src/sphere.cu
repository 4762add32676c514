// A group of eight lanes makes the norm of a row, then the warp writes its four rows one by one.

#include <cfloat>

#include "comm/base/cuda/device.hpp"
#include "router/cuda/sphere.hpp"
#include "router/cuda/src/norm.cuh"

namespace airmoe::router::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kRowsPerWarp = 4;
constexpr int kRowsPerBlock = kThreads / 32 * kRowsPerWarp;

__device__ __forceinline__ void store(float* to, float4 x) {
  *reinterpret_cast<float4*>(to) = x;
}
__device__ __forceinline__ void store(__nv_bfloat16* to, float4 x) {
  const __nv_bfloat162 pair[2] = {__floats2bfloat162_rn(x.x, x.y), __floats2bfloat162_rn(x.z, x.w)};
  *reinterpret_cast<uint2*>(to) = *reinterpret_cast<const uint2*>(pair);
}

/// 1 / norm, or zero where that is no float. The same for all lanes of a group.
__device__ __forceinline__ double inverse_of(double norm) {
  return norm < static_cast<double>(FLT_MIN) ? 0.0 : __ddiv_rn(1.0, norm);
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    project_kernel(const float* __restrict__ centroid, int64_t rows, int d, T* __restrict__ unit,
                   float* __restrict__ inverse_norm) {
  const int lane = threadIdx.x % 32, group = lane / 8;
  const int64_t first = blockIdx.x * int64_t{kRowsPerBlock} + threadIdx.x / 32 * kRowsPerWarp;
  const int64_t mine = first + group;
  const double norm = group_norm(centroid + mine * d, mine < rows ? d : 0, lane % 8);
  const double inverse = inverse_of(norm);
  if (mine < rows && lane % 8 == 0) inverse_norm[mine] = static_cast<float>(inverse);
#pragma unroll
  for (int r = 0; r < kRowsPerWarp; ++r) {
    const double scale = __shfl_sync(0xFFFFFFFFu, inverse, r * 8);
    if (first + r >= rows) break;
    const float4* from = reinterpret_cast<const float4*>(centroid + (first + r) * d);
    T* to = unit + (first + r) * d;
    for (int i = lane; i < d / 4; i += 32) {
      const float4 x = from[i];
      const float4 u = {scaled(x.x, scale), scaled(x.y, scale), scaled(x.z, scale),
                        scaled(x.w, scale)};
      store(to + i * 4, scale == 0.0 ? float4{} : u);
    }
  }
}

__global__ void __launch_bounds__(kThreads)
    backward_kernel(float* __restrict__ gradient, const float* __restrict__ centroid,
                    const float* __restrict__ inverse_norm, int64_t rows, int d) {
  const int lane = threadIdx.x % 32, group = lane / 8;
  const int64_t first = blockIdx.x * int64_t{kRowsPerBlock} + threadIdx.x / 32 * kRowsPerWarp;
  const int64_t mine = first + group;
  const int count = mine < rows ? d : 0;
  const double inverse = inverse_of(group_norm(centroid + mine * d, count, lane % 8));
  double sum = 0.0;
#pragma unroll 4
  for (int k = lane % 8; k < count; k += 8) {
    const float u = scaled(centroid[mine * d + k], inverse);
    sum = __fma_rn(static_cast<double>(gradient[mine * d + k]), static_cast<double>(u), sum);
  }
  const float radial = static_cast<float>(add_chains(sum));
#pragma unroll
  for (int r = 0; r < kRowsPerWarp; ++r) {
    const double scale = __shfl_sync(0xFFFFFFFFu, inverse, r * 8);
    const float along = __shfl_sync(0xFFFFFFFFu, radial, r * 8);
    if (first + r >= rows) break;
    const float outer = inverse_norm[first + r];
    const float4* from = reinterpret_cast<const float4*>(centroid + (first + r) * d);
    float4* to = reinterpret_cast<float4*>(gradient + (first + r) * d);
    const auto tangent = [&](float g, float x) {
      return __fmul_rn(__fsub_rn(g, __fmul_rn(along, scaled(x, scale))), outer);
    };
    for (int i = lane; i < d / 4; i += 32) {
      const float4 x = from[i], g = to[i];
      to[i] = {tangent(g.x, x.x), tangent(g.y, x.y), tangent(g.z, x.z), tangent(g.w, x.w)};
    }
  }
}

unsigned blocks_of(int64_t rows, int64_t d) {
  if (d < 8 || d % 8 != 0) {
    fail(ExitCode::config, "--dim {}: on a device it must be a multiple of 8", d);
  }
  return static_cast<unsigned>((rows + kRowsPerBlock - 1) / kRowsPerBlock);
}

}  // namespace

template <class T>
void project_to_sphere(const float* centroid, int64_t rows, int64_t d, T* unit, float* inverse_norm,
                       cudaStream_t stream) {
  const unsigned blocks = blocks_of(rows, d);
  if (rows == 0) return;
  project_kernel<<<blocks, kThreads, 0, stream>>>(centroid, rows, static_cast<int>(d), unit,
                                                  inverse_norm);
  AIRMOE_CUDA_LAUNCHED();
}

void project_to_sphere_backward(float* gradient, const float* centroid, const float* inverse_norm,
                                int64_t rows, int64_t d, cudaStream_t stream) {
  const unsigned blocks = blocks_of(rows, d);
  if (rows == 0) return;
  backward_kernel<<<blocks, kThreads, 0, stream>>>(gradient, centroid, inverse_norm, rows,
                                                   static_cast<int>(d));
  AIRMOE_CUDA_LAUNCHED();
}

template void project_to_sphere<float>(const float*, int64_t, int64_t, float*, float*,
                                       cudaStream_t);
template void project_to_sphere<__nv_bfloat16>(const float*, int64_t, int64_t, __nv_bfloat16*,
                                               float*, cudaStream_t);

}  // namespace airmoe::router::cuda
