#include <cuda_bf16.h>

#include "scheduler/cuda/expert_tables.hpp"

namespace airmoe::scheduler::cuda {
namespace {

// gradient += parts[0] + parts[1] + ..., in that order; the rank's own part is elsewhere.
__global__ void add_parts(const float4* __restrict__ parts, const float4* __restrict__ own,
                          int rank, int ranks, int64_t quads, float4* __restrict__ gradient) {
  const int64_t i = blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x;
  if (i >= quads) return;
  float4 sum = gradient[i];
  for (int r = 0; r < ranks; ++r) {
    const float4 part = r == rank ? own[i] : parts[r * quads + i];
    sum.x += part.x;
    sum.y += part.y;
    sum.z += part.z;
    sum.w += part.w;
  }
  gradient[i] = sum;
}

}  // namespace

template <class T>
ExpertTables<T>::ExpertTables(comm::cuda::DeviceCommunicator* comm, DeviceParameters<T>& parameters,
                              int64_t experts)
    : comm_(comm), parameters_(parameters) {
  if (comm_ != nullptr && experts % comm_->size() != 0) {
    fail(ExitCode::config,
         "--experts {} on {} devices: every device owns as many, give a multiple of {}", experts,
         comm_->size(), comm_->size());
  }
}

template <class T>
int ExpertTables<T>::add(const Parameter& parameter) {
  return add(parameter, nullptr);
}

template <class T>
int ExpertTables<T>::add(const Parameter& gradient_of, const T* owned) {
  Table& table = tables_.emplace_back();
  table.parameter = &gradient_of;
  table.owned = owned;
  table.owned_size = gradient_of.local_size();
  if (comm_ != nullptr) {
    table.values.ensure(table.owned_size * comm_->size());
    table.gradients.ensure(table.owned_size * comm_->size());
    table.gradients.zero(nullptr);
    AIRMOE_CUDA(cudaStreamSynchronize(nullptr));
  }
  return static_cast<int>(tables_.size()) - 1;
}

template <class T>
const T* ExpertTables<T>::values(int table) const {
  const Table& t = tables_[static_cast<std::size_t>(table)];
  if (comm_ != nullptr) return t.values.data();
  return t.owned != nullptr ? t.owned : parameters_.compute(*t.parameter);
}

template <class T>
float* ExpertTables<T>::gradients(int table) {
  Table& t = tables_[static_cast<std::size_t>(table)];
  return comm_ != nullptr ? t.gradients.data() : parameters_.gradient(*t.parameter);
}

template <class T>
void ExpertTables<T>::share_values(cudaStream_t stream) {
  if (comm_ == nullptr) return;
  const comm::ScopedPhase phase(comm_->host(), "copies");
  for (Table& t : tables_) {
    const T* owned = t.owned != nullptr ? t.owned : parameters_.compute(*t.parameter);
    comm_->all_gather(owned, t.owned_size, t.values.data(), stream);
  }
}

template <class T>
void ExpertTables<T>::collect_gradients(cudaStream_t stream) {
  if (comm_ == nullptr) return;
  const comm::ScopedPhase phase(comm_->host(), "copy_gradients");
  const int ranks = comm_->size();
  for (Table& t : tables_) {
    counts_.assign(static_cast<std::size_t>(ranks), t.owned_size);
    received_.ensure(t.owned_size * ranks);
    comm_->all_to_all_v<float>(t.gradients.data(), counts_, received_.data(), counts_, stream,
                               false);
    const int64_t quads = t.owned_size / 4;  // sizes of parameters are multiples of 8
    constexpr int kThreads = 256;
    if (quads > 0) {
      add_parts<<<static_cast<unsigned>((quads + kThreads - 1) / kThreads), kThreads, 0, stream>>>(
          reinterpret_cast<const float4*>(received_.data()),
          reinterpret_cast<const float4*>(t.gradients.data() + comm_->rank() * t.owned_size),
          comm_->rank(), ranks, quads,
          reinterpret_cast<float4*>(parameters_.gradient(*t.parameter)));
      AIRMOE_CUDA_LAUNCHED();
    }
    t.gradients.zero(stream);
  }
}

template class ExpertTables<float>;
template class ExpertTables<__nv_bfloat16>;

}  // namespace airmoe::scheduler::cuda
