#include <cuda_bf16.h>

#include "scheduler/cuda/device_parameters.hpp"
#include "scheduler/cuda/expert_rows.hpp"
#include "scheduler/cuda/src/adamw_update.cuh"

namespace airmoe::scheduler::cuda {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / 32;

/// One parameter's rows within the arrays.
struct RowsOf {
  int64_t begin = 0, row_size = 0;
  bool decay = false;
};

template <class T>
struct Arrays {
  float *value, *moment1, *moment2;
  T* copy;
};

/// Makes updates first .. last of a row's elements. One warp.
template <class T>
__device__ void update_row(const RowsOf& of, int64_t row, int first, int last,
                           const AdamwRates* __restrict__ history, const Arrays<T>& to) {
  const int64_t begin = of.begin + row * of.row_size;
  for (int64_t i = begin + threadIdx.x % 32 * 4; i < begin + of.row_size; i += 128) {
    float4 v = *reinterpret_cast<const float4*>(to.value + i);
    float4 a = *reinterpret_cast<const float4*>(to.moment1 + i);
    float4 b = *reinterpret_cast<const float4*>(to.moment2 + i);
    for (int u = first; u <= last; ++u) {
      const AdamwRates rates = history[u % UpdateHistory::kMost];
      update(rates, of.decay ? rates.keep_decayed : rates.keep_value, 1.0f, v, float4{}, a, b);
    }
    *reinterpret_cast<float4*>(to.value + i) = v;
    *reinterpret_cast<float4*>(to.moment1 + i) = a;
    *reinterpret_cast<float4*>(to.moment2 + i) = b;
    store_copy(to.copy + i, v);
  }
}

/// Block = kThreads experts: finds those that are selected and behind, then a warp takes one after
/// the other.
template <class T>
__global__ void __launch_bounds__(kThreads)
    update_rows_kernel(RowsOf of, int64_t rows, const int32_t* __restrict__ count, int32_t made,
                       const int32_t* __restrict__ updated, const AdamwRates* __restrict__ history,
                       Arrays<T> to) {
  __shared__ int behind[kThreads], first[kThreads], size;
  if (threadIdx.x == 0) size = 0;
  __syncthreads();
  const int64_t block = static_cast<int64_t>(blockIdx.x) * kThreads;
  const int64_t row = block + threadIdx.x;
  if (row < rows && (count == nullptr || count[row] > 0) && updated[row] < made) {
    const int i = atomicAdd(&size, 1);
    behind[i] = static_cast<int>(threadIdx.x);
    first[i] = updated[row] + 1;
  }
  __syncthreads();
  for (int i = static_cast<int>(threadIdx.x) / 32; i < size; i += kWarps) {
    update_row(of, block + behind[i], first[i], made, history, to);
  }
}

__global__ void __launch_bounds__(kThreads)
    mark_kernel(int64_t rows, const int32_t* __restrict__ count, int32_t made,
                int32_t* __restrict__ updated) {
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (row < rows && (count == nullptr || count[row] > 0)) updated[row] = made;
}

template <class T>
void update_rows(DeviceParameters<T>& parameters, ExpertRows& experts, const int32_t* count,
                 cudaStream_t stream) {
  const UpdateHistory& history = parameters.history();
  if (experts.rows == 0 || history.made == history.finished) return;
  const auto blocks = static_cast<unsigned>((experts.rows + kThreads - 1) / kThreads);
  for (const Parameter* p : experts.computed) {
    update_rows_kernel<T><<<blocks, kThreads, 0, stream>>>(
        {parameters.segment(*p).begin, p->row_size(), p->decay}, experts.rows, count, history.made,
        experts.updated.data(), history.rates.data(),
        {parameters.values(), parameters.moments1(), parameters.moments2(),
         parameters.compute_copies()});
    AIRMOE_CUDA_LAUNCHED();
  }
  mark_kernel<<<blocks, kThreads, 0, stream>>>(experts.rows, count, history.made,
                                               experts.updated.data());
  AIRMOE_CUDA_LAUNCHED();
}

}  // namespace

template <class T>
void select_rows(DeviceParameters<T>& parameters, ExpertRows& experts, const int32_t* count,
                 cudaStream_t stream) {
  update_rows(parameters, experts, count, stream);
}

template <class T>
void finish_rows(DeviceParameters<T>& parameters, cudaStream_t stream) {
  for (ExpertRows& experts : parameters.experts()) {
    update_rows(parameters, experts, nullptr, stream);
  }
  parameters.history().finished = parameters.history().made;
}

template void select_rows(DeviceParameters<float>&, ExpertRows&, const int32_t*, cudaStream_t);
template void select_rows(DeviceParameters<__nv_bfloat16>&, ExpertRows&, const int32_t*,
                          cudaStream_t);
template void finish_rows(DeviceParameters<float>&, cudaStream_t);
template void finish_rows(DeviceParameters<__nv_bfloat16>&, cudaStream_t);

}  // namespace airmoe::scheduler::cuda
