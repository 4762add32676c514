#pragma once
// CUDA devices and their errors. Plain C++: host compilers include it.

#include <cstdint>
#include <string>

#include <cuda_runtime_api.h>

#include "comm/base/error.hpp"

namespace airmoe::cuda {

/// Throws Error(ExitCode::failure) with the call, the place and CUDA's own words unless `status` is
/// success. Clears the error unless the context is lost.
void check(cudaError_t status, const char* call, const char* file, int line);

/// What the kernels need to know of the device in use.
struct DeviceProperties {
  std::string name;
  int compute_capability = 0;  ///< 90 for sm_90
  int multiprocessors = 0;
  int64_t memory_bytes = 0;
  int64_t l2_bytes = 0;
  int64_t shared_bytes_per_block = 0;  ///< largest dynamic shared memory that a kernel may ask for
};

/// Local: devices that the driver shows; 0 without a driver. `reason` says why there are none.
int device_count(std::string* reason = nullptr);
/// Local: makes `device` the current one of this thread. Throws Error naming the device when it is
/// older than sm_80 or does not exist.
void use_device(int device);
/// Local: of the current device; read once per process and device.
const DeviceProperties& device_properties();

}  // namespace airmoe::cuda

/// Every CUDA call goes through this.
#define AIRMOE_CUDA(call) ::airmoe::cuda::check((call), #call, __FILE__, __LINE__)
/// After a kernel launch: catches wrong launch parameters; waits for nothing.
#define AIRMOE_CUDA_LAUNCHED() AIRMOE_CUDA(cudaGetLastError())
