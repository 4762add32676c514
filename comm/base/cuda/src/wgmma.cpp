#include "comm/base/cuda/wgmma.hpp"

#include "comm/base/cuda/device.hpp"

namespace airmoe::cuda {

bool has_wgmma() {
#if defined(AIRMOE_CUDA_SM90A)
  return device_properties().compute_capability == 90;
#else
  return false;
#endif
}

}  // namespace airmoe::cuda
