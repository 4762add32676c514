#pragma once
// Launches of kernels whose blocks work in clusters (sm_90 and later).

#include <cstdint>

#include "comm/base/cuda/device.hpp"

namespace airmoe::cuda {

/// Local, asynchronous: kernel(arguments...) on `blocks` blocks, a multiple of `cluster`, of which
/// each `cluster` neighbours are one cluster, with `shared_bytes` of dynamic shared memory.
/// Arguments have the kernel's types.
template <class... Parameters, class... Arguments>
void launch_in_clusters(void (*kernel)(Parameters...), unsigned cluster, int64_t blocks,
                        int threads, int64_t shared_bytes, cudaStream_t stream,
                        Arguments&&... arguments) {
  AIRMOE_CUDA(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                   static_cast<int>(shared_bytes)));
  cudaLaunchAttribute in_clusters{};
  in_clusters.id = cudaLaunchAttributeClusterDimension;
  in_clusters.val.clusterDim = {cluster, 1, 1};
  cudaLaunchConfig_t config{};
  config.gridDim = static_cast<unsigned>(blocks);
  config.blockDim = static_cast<unsigned>(threads);
  config.dynamicSmemBytes = static_cast<std::size_t>(shared_bytes);
  config.stream = stream;
  config.attrs = &in_clusters;
  config.numAttrs = 1;
  AIRMOE_CUDA(cudaLaunchKernelEx(&config, kernel, arguments...));
}

}  // namespace airmoe::cuda
