#include <algorithm>
#include <cmath>
#include <type_traits>
#include <vector>

#include <cuda_bf16.h>

#include "scheduler/cuda/adamw.hpp"

namespace airmoe::scheduler::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kTile = 8192;  // elements per block

struct Rates {
  float keep1, add1, keep2, add2, rate1, root2, epsilon;
  float keep_value, keep_decayed;  // without and with weight decay
};

Rates rates_of(const AdamWOptions& options, float learning_rate, int64_t step) {
  AIRMOE_CHECK(step >= 1, "AdamW step {}: the first update is step 1", step);
  const double rate = learning_rate, beta1 = options.beta1, beta2 = options.beta2;
  const double correction1 = 1.0 - std::pow(beta1, static_cast<double>(step));
  const double correction2 = 1.0 - std::pow(beta2, static_cast<double>(step));
  return {options.beta1,
          static_cast<float>(1.0 - beta1),
          options.beta2,
          static_cast<float>(1.0 - beta2),
          static_cast<float>(rate / correction1),
          static_cast<float>(1.0 / std::sqrt(correction2)),
          options.epsilon,
          1.0f,
          static_cast<float>(1.0 - rate * static_cast<double>(options.weight_decay))};
}

// Rounded after every operation, as on the host: no fused multiply-add.
__device__ __forceinline__ void update(const Rates& r, float keep_value, float scale, float& value,
                                       float gradient, float& moment1, float& moment2) {
  const float g = __fmul_rn(gradient, scale);
  moment1 = __fadd_rn(__fmul_rn(r.keep1, moment1), __fmul_rn(r.add1, g));
  moment2 = __fadd_rn(__fmul_rn(r.keep2, moment2), __fmul_rn(r.add2, __fmul_rn(g, g)));
  const float root = __fadd_rn(__fmul_rn(__fsqrt_rn(moment2), r.root2), r.epsilon);
  value = __fsub_rn(__fmul_rn(keep_value, value), __fdiv_rn(__fmul_rn(r.rate1, moment1), root));
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    adamw_kernel(const AdamwTile* __restrict__ tiles, Rates rates,
                 const float* __restrict__ clip_factor, const int* __restrict__ skip,
                 float* __restrict__ value, float* __restrict__ gradient,
                 float* __restrict__ moment1, float* __restrict__ moment2, T* __restrict__ copy) {
  if (skip != nullptr && *skip != 0) return;
  const AdamwTile tile = tiles[blockIdx.x];
  const float scale = clip_factor == nullptr ? 1.0f : *clip_factor;
  const float keep_value = tile.decay != 0 ? rates.keep_decayed : rates.keep_value;
  const int64_t end = tile.begin + tile.count;
  for (int64_t i = tile.begin + threadIdx.x * 4; i < end; i += kThreads * 4) {
    float4 v = *reinterpret_cast<const float4*>(value + i);
    const float4 g = *reinterpret_cast<const float4*>(gradient + i);
    float4 a = *reinterpret_cast<const float4*>(moment1 + i);
    float4 b = *reinterpret_cast<const float4*>(moment2 + i);
    update(rates, keep_value, scale, v.x, g.x, a.x, b.x);
    update(rates, keep_value, scale, v.y, g.y, a.y, b.y);
    update(rates, keep_value, scale, v.z, g.z, a.z, b.z);
    update(rates, keep_value, scale, v.w, g.w, a.w, b.w);
    *reinterpret_cast<float4*>(value + i) = v;
    *reinterpret_cast<float4*>(gradient + i) = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    *reinterpret_cast<float4*>(moment1 + i) = a;
    *reinterpret_cast<float4*>(moment2 + i) = b;
    if constexpr (!std::is_same_v<T, float>) {
      const __nv_bfloat162 pair[2] = {__floats2bfloat162_rn(v.x, v.y),
                                      __floats2bfloat162_rn(v.z, v.w)};
      *reinterpret_cast<uint2*>(copy + i) = *reinterpret_cast<const uint2*>(pair);
    }
  }
}

void make_tiles(const std::vector<Segment>& segments, int64_t size, AdamwWorkspace& workspace,
                cudaStream_t stream) {
  std::vector<AdamwTile> tiles;
  for (std::size_t i = 0; i < segments.size();) {
    std::size_t next = i;  // neighbours with equal decay are cut as one
    while (next < segments.size() && segments[next].decay == segments[i].decay) ++next;
    const int64_t end = segments[next - 1].begin + segments[next - 1].count;
    for (int64_t begin = segments[i].begin; begin < end; begin += kTile) {
      tiles.push_back(
          {begin, static_cast<int32_t>(std::min(kTile, end - begin)), segments[i].decay ? 1 : 0});
    }
    i = next;
  }
  workspace.tiles.upload(tiles, stream);
  AIRMOE_CUDA(cudaStreamSynchronize(stream));
  workspace.of_size = size;
}

}  // namespace

template <class T>
void adamw_step(DeviceParameters<T>& parameters, const AdamWOptions& options, float learning_rate,
                int64_t step, const float* clip_factor, const int* skip, AdamwWorkspace& workspace,
                cudaStream_t stream) {
  const Rates rates = rates_of(options, learning_rate, step);
  if (workspace.of_size != parameters.size()) {
    make_tiles(parameters.segments(), parameters.size(), workspace, stream);
  }
  if (workspace.tiles.size() == 0) return;
  adamw_kernel<T><<<static_cast<unsigned>(workspace.tiles.size()), kThreads, 0, stream>>>(
      workspace.tiles.data(), rates, clip_factor, skip, parameters.values(), parameters.gradients(),
      parameters.moments1(), parameters.moments2(), parameters.compute_copies());
  AIRMOE_CUDA_LAUNCHED();
}

template void adamw_step(DeviceParameters<float>&, const AdamWOptions&, float, int64_t,
                         const float*, const int*, AdamwWorkspace&, cudaStream_t);
template void adamw_step(DeviceParameters<__nv_bfloat16>&, const AdamWOptions&, float, int64_t,
                         const float*, const int*, AdamwWorkspace&, cudaStream_t);

}  // namespace airmoe::scheduler::cuda
