#include "comm/base/cuda/tensor_map.hpp"

#include "comm/base/cuda/device.hpp"

namespace airmoe::cuda {
namespace {

constexpr std::size_t kMostDimensions = 5;

/// Of the driver, without linking with it: builds run on machines that have none.
auto encoder() {
  static const auto function = [] {
    void* found = nullptr;
    cudaDriverEntryPointQueryResult status{};
#if CUDART_VERSION >= 12050
    AIRMOE_CUDA(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &found, 12000,
                                                 cudaEnableDefault, &status));
#else
    AIRMOE_CUDA(
        cudaGetDriverEntryPoint("cuTensorMapEncodeTiled", &found, cudaEnableDefault, &status));
#endif
    AIRMOE_CHECK(status == cudaDriverEntryPointSuccess && found != nullptr,
                 "the CUDA driver has no cuTensorMapEncodeTiled");
    return reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(found);
  }();
  return function;
}

}  // namespace

CUtensorMap describe_bf16(const void* data, std::initializer_list<TensorDimension> dimensions) {
  AIRMOE_CHECK(dimensions.size() >= 2 && dimensions.size() <= kMostDimensions,
               "a tensor map of {} dimensions", dimensions.size());
  cuuint64_t size[kMostDimensions]{}, stride[kMostDimensions]{};
  cuuint32_t box[kMostDimensions]{}, every[kMostDimensions]{};
  std::size_t i = 0;
  for (const TensorDimension& d : dimensions) {
    size[i] = static_cast<cuuint64_t>(d.size);
    box[i] = static_cast<cuuint32_t>(d.box);
    every[i] = 1;
    if (i > 0) stride[i - 1] = static_cast<cuuint64_t>(d.stride);
    ++i;
  }
  CUtensorMap map;
  const CUresult status =
      encoder()(&map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, static_cast<cuuint32_t>(dimensions.size()),
                const_cast<void*>(data), size, stride, box, every, CU_TENSOR_MAP_INTERLEAVE_NONE,
                box[0] == 32 ? CU_TENSOR_MAP_SWIZZLE_64B : CU_TENSOR_MAP_SWIZZLE_128B,
                CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  AIRMOE_CHECK(status == CUDA_SUCCESS, "cuTensorMapEncodeTiled: error {}",
               static_cast<int>(status));
  return map;
}

}  // namespace airmoe::cuda
