// A warp has four rows. It brings them to shared memory, a group of eight lanes makes the norm of
// each, and then the warp writes them one by one.

#include <algorithm>
#include <cfloat>

#include "comm/base/cuda/device.hpp"
#include "router/cuda/sphere.hpp"
#include "router/cuda/src/norm.cuh"

namespace airmoe::router::cuda {
namespace {

constexpr int kRowsPerWarp = 4;
constexpr int kMostWarps = 8;
constexpr int64_t kSharedBytes =
    72 * 1024;               // three blocks fit a multiprocessor of sm_90, two sm_80
constexpr int kPadding = 8;  // floats behind a row: neighbouring rows begin in other banks

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

/// The rows of this warp.
struct WarpRows {
  int64_t first;
  uint32_t present = 0;  ///< bit r: row first + r is to be done

  /// @param chosen  rows with another number are not done; nullptr: all are
  __device__ WarpRows(int64_t rows, const int32_t* chosen, int32_t number) {
    const int64_t warp = blockIdx.x * int64_t{blockDim.x / 32} + threadIdx.x / 32;
    first = warp * kRowsPerWarp;
#pragma unroll
    for (int r = 0; r < kRowsPerWarp; ++r) {
      if (first + r >= rows || (chosen != nullptr && chosen[first + r] != number)) continue;
      present |= 1u << r;
    }
  }
  __device__ bool has(int r) const {
    return present >> r & 1;
  }
  /// Copies them to shared memory, d + kPadding floats from row to row.
  __device__ void stage(const float* from, int d, float* to) const {
    const int lane = threadIdx.x % 32;
    for (int i = lane; i < d / 4; i += 32) {
      float4 x[kRowsPerWarp];
#pragma unroll
      for (int r = 0; r < kRowsPerWarp; ++r) {
        if (has(r)) x[r] = *reinterpret_cast<const float4*>(from + (first + r) * d + i * 4);
      }
#pragma unroll
      for (int r = 0; r < kRowsPerWarp; ++r) {
        if (has(r)) store(to + r * (d + kPadding) + i * 4, x[r]);
      }
    }
  }
};

template <class T>
__global__ void __launch_bounds__(kMostWarps * 32)
    project_kernel(const float* __restrict__ centroid, int64_t rows, int d, T* __restrict__ unit,
                   float* __restrict__ inverse_norm) {
  extern __shared__ __align__(16) float staged[];
  const WarpRows mine(rows, nullptr, 0);
  const int lane = threadIdx.x % 32, group = lane / 8;
  const int stride = d + kPadding;
  float* x = staged + threadIdx.x / 32 * kRowsPerWarp * stride;
  mine.stage(centroid, d, x);
  __syncwarp();
  const double inverse =
      inverse_of(group_norm(x + group * stride, mine.has(group) ? d : 0, lane % 8));
  if (mine.has(group) && lane % 8 == 0) {
    inverse_norm[mine.first + group] = static_cast<float>(inverse);
  }
  for (int r = 0; r < kRowsPerWarp; ++r) {
    if (!mine.has(r)) continue;
    const double scale = __shfl_sync(0xFFFFFFFFu, inverse, r * 8);
    T* to = unit + (mine.first + r) * d;
    for (int i = lane; i < d / 4; i += 32) {
      const float4 v = *reinterpret_cast<const float4*>(x + r * stride + i * 4);
      const float4 u = {scaled(v.x, scale), scaled(v.y, scale), scaled(v.z, scale),
                        scaled(v.w, scale)};
      store(to + i * 4, scale == 0.0 ? float4{} : u);
    }
  }
}

__global__ void __launch_bounds__(kMostWarps * 32)
    backward_kernel(float* __restrict__ gradient, const float* __restrict__ centroid,
                    const float* __restrict__ inverse_norm, int64_t rows, int d,
                    const int32_t* __restrict__ chosen, int32_t number) {
  extern __shared__ __align__(16) float staged[];
  const WarpRows mine(rows, chosen, number);
  if (mine.present == 0) return;
  const int lane = threadIdx.x % 32, group = lane / 8;
  const int stride = d + kPadding;
  float* u = staged + threadIdx.x / 32 * 2 * kRowsPerWarp * stride;
  float* g = u + kRowsPerWarp * stride;
  mine.stage(centroid, d, u);
  mine.stage(gradient, d, g);
  __syncwarp();
  const int count = mine.has(group) ? d : 0;
  const double inverse = inverse_of(group_norm(u + group * stride, count, lane % 8));
  double sum = 0.0;
#pragma unroll 4
  for (int k = lane % 8; k < count; k += 8) {
    const float unit = scaled(u[group * stride + k], inverse);
    u[group * stride + k] = unit;
    sum = __fma_rn(static_cast<double>(g[group * stride + k]), static_cast<double>(unit), sum);
  }
  const float radial = static_cast<float>(add_chains(sum));
  __syncwarp();
  for (int r = 0; r < kRowsPerWarp; ++r) {
    if (!mine.has(r)) continue;
    const float along = __shfl_sync(0xFFFFFFFFu, radial, r * 8);
    const float scale = inverse_norm[mine.first + r];
    const auto tangent = [&](float gradient_k, float unit_k) {
      return __fmul_rn(__fsub_rn(gradient_k, __fmul_rn(along, unit_k)), scale);
    };
    float* to = gradient + (mine.first + r) * d;
    for (int i = lane; i < d / 4; i += 32) {
      const float4 y = *reinterpret_cast<const float4*>(u + r * stride + i * 4);
      const float4 x = *reinterpret_cast<const float4*>(g + r * stride + i * 4);
      store(to + i * 4,
            {tangent(x.x, y.x), tangent(x.y, y.y), tangent(x.z, y.z), tangent(x.w, y.w)});
    }
  }
}

/// Blocks as large as shared memory allows for rows of d floats in `arrays` arrays.
struct Launch {
  unsigned blocks, threads;
  std::size_t bytes;

  Launch(int64_t rows, int64_t d, int64_t arrays) {
    if (d < 8 || d % 8 != 0 || d > 2048) {
      fail(ExitCode::config, "--dim {}: on a device it must be a multiple of 8, at most 2048", d);
    }
    const int64_t warp_bytes = arrays * kRowsPerWarp * (d + kPadding) * int64_t{sizeof(float)};
    const int64_t warps = std::clamp<int64_t>(kSharedBytes / warp_bytes, 1, kMostWarps);
    blocks = static_cast<unsigned>((rows + warps * kRowsPerWarp - 1) / (warps * kRowsPerWarp));
    threads = static_cast<unsigned>(warps * 32);
    bytes = static_cast<std::size_t>(warps * warp_bytes);
  }
  template <class Kernel>
  void allow(Kernel kernel) const {
    AIRMOE_CUDA(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                     static_cast<int>(bytes)));
  }
};

}  // namespace

template <class T>
void project_to_sphere(const float* centroid, int64_t rows, int64_t d, T* unit, float* inverse_norm,
                       cudaStream_t stream) {
  const Launch launch(rows, d, 1);
  if (rows == 0) return;
  launch.allow(project_kernel<T>);
  project_kernel<T><<<launch.blocks, launch.threads, launch.bytes, stream>>>(
      centroid, rows, static_cast<int>(d), unit, inverse_norm);
  AIRMOE_CUDA_LAUNCHED();
}

void project_to_sphere_backward(float* gradient, const float* centroid, const float* inverse_norm,
                                int64_t rows, int64_t d, const int32_t* chosen, int32_t number,
                                cudaStream_t stream) {
  const Launch launch(rows, d, 2);
  if (rows == 0) return;
  launch.allow(backward_kernel);
  backward_kernel<<<launch.blocks, launch.threads, launch.bytes, stream>>>(
      gradient, centroid, inverse_norm, rows, static_cast<int>(d), chosen, number);
  AIRMOE_CUDA_LAUNCHED();
}

template void project_to_sphere<float>(const float*, int64_t, int64_t, float*, float*,
                                       cudaStream_t);
template void project_to_sphere<__nv_bfloat16>(const float*, int64_t, int64_t, __nv_bfloat16*,
                                               float*, cudaStream_t);

}  // namespace airmoe::router::cuda
