// Checks, and the choice of the way to select.

#include <type_traits>

#include <cuda_bf16.h>

#include "router/cuda/select.hpp"
#include "router/cuda/src/select_arguments.cuh"

namespace airmoe::router::cuda {

template <class T>
void select_experts(const T* hidden, int64_t d, const airmoe::cuda::CodewordTokens& tokens,
                    const airmoe::cuda::DeviceLists& lists, const T* unit, int64_t active,
                    const airmoe::cuda::JitterKey* jitter, const SelectOutput& out,
                    SelectWorkspace& workspace, cudaStream_t stream) {
  if (d < 8 || d % 8 != 0) {
    fail(ExitCode::usage, "--dim {}: kernels on a device need a multiple of 8", d);
  }
  if (lists.length < 1 || lists.length > 65536) {
    fail(ExitCode::usage, "--shortlist {}: a device takes 1 to 65536 candidates", lists.length);
  }
  if (active < 1 || active > lists.length) {
    fail(ExitCode::usage, "--active {}: must be between 1 and the {} of --shortlist", active,
         lists.length);
  }
  if (tokens.tokens == 0) return;
  SelectArguments<T> arguments{hidden,
                               unit,
                               static_cast<int>(d),
                               static_cast<int>(active),
                               tokens,
                               lists,
                               jitter != nullptr ? *jitter : airmoe::cuda::JitterKey{},
                               jitter != nullptr && jitter->stddev != 0.0f,
                               out,
                               {}};
  if constexpr (std::is_same_v<T, __nv_bfloat16>) {
    if (select_in_tiles(arguments, stream)) return;
  }
  select_exactly(arguments, workspace, stream);
}

template void select_experts(const float*, int64_t, const airmoe::cuda::CodewordTokens&,
                             const airmoe::cuda::DeviceLists&, const float*, int64_t,
                             const airmoe::cuda::JitterKey*, const SelectOutput&, SelectWorkspace&,
                             cudaStream_t);
template void select_experts(const __nv_bfloat16*, int64_t, const airmoe::cuda::CodewordTokens&,
                             const airmoe::cuda::DeviceLists&, const __nv_bfloat16*, int64_t,
                             const airmoe::cuda::JitterKey*, const SelectOutput&, SelectWorkspace&,
                             cudaStream_t);

}  // namespace airmoe::router::cuda
