#include <algorithm>
#include <array>
#include <cstring>

#include <mpi.h>
#if __has_include(<mpi-ext.h>)
#include <mpi-ext.h>
#endif

#include "comm/cuda/src/nccl_backend.hpp"
#include "comm/cuda/src/staged_communicator.hpp"

namespace airmoe::comm::cuda {
namespace {

using DeviceId = std::array<uint8_t, 16>;

/// Collective: the GPU of every rank; ranks that share one have the same id.
std::vector<DeviceId> devices_of_ranks(Communicator& host) {
  int device = 0;
  AIRMOE_CUDA(cudaGetDevice(&device));
  cudaDeviceProp properties = {};
  AIRMOE_CUDA(cudaGetDeviceProperties(&properties, device));
  DeviceId own = {};
  static_assert(sizeof(properties.uuid) == sizeof(DeviceId));
  std::memcpy(own.data(), &properties.uuid, sizeof(DeviceId));
  std::vector<uint8_t> all(sizeof(DeviceId) * static_cast<std::size_t>(host.size()));
  host.all_gather(std::span<const uint8_t>(own), std::span<uint8_t>(all));
  std::vector<DeviceId> ids(static_cast<std::size_t>(host.size()));
  std::memcpy(ids.data(), all.data(), all.size());
  return ids;
}

/// Two ranks with one GPU, or {-1, -1}.
std::array<int, 2> find_sharing(const std::vector<DeviceId>& ids) {
  for (std::size_t a = 0; a < ids.size(); ++a) {
    const auto b = std::find(ids.begin() + static_cast<std::ptrdiff_t>(a) + 1, ids.end(), ids[a]);
    if (b != ids.end()) return {static_cast<int>(a), static_cast<int>(b - ids.begin())};
  }
  return {-1, -1};
}

}  // namespace

DeviceTransport parse_device_transport(std::string_view name) {
  if (name == "auto") return DeviceTransport::automatic;
  if (name == "nccl") return DeviceTransport::nccl;
  if (name == "staged") return DeviceTransport::staged;
  if (name == "direct") return DeviceTransport::direct;
  fail(ExitCode::usage, "--device-transport {}: give auto, nccl, staged or direct", name);
}

bool mpi_reads_device_memory() {
#if defined(MPIX_CUDA_AWARE_SUPPORT)  // the header says what was built, the function what runs
  return MPIX_Query_cuda_support() == 1;
#else
  return false;
#endif
}

std::unique_ptr<DeviceCommunicator> make_device_communicator(
    Communicator& host, const DeviceCommunicatorOptions& options) {
  const std::array<int, 2> sharing = find_sharing(devices_of_ranks(host));
  const bool shared = sharing[0] >= 0;
  DeviceTransport transport = options.transport;
  if (transport == DeviceTransport::automatic) {
    transport = has_nccl() && !shared ? DeviceTransport::nccl : DeviceTransport::staged;
  }
  if (transport == DeviceTransport::nccl) {
    if (shared) {
      fail(ExitCode::config,
           "--device-transport nccl: ranks {} and {} share a GPU; start one rank per GPU, or use "
           "--device-transport staged",
           sharing[0], sharing[1]);
    }
    return make_nccl_communicator(host, options.deadline_seconds);
  }
  const bool direct = transport == DeviceTransport::direct;
  if (direct && !mpi_reads_device_memory()) {
    fail(ExitCode::config,
         "--device-transport direct: the MPI library does not say that it reads device memory; use "
         "--device-transport staged or nccl");
  }
  return std::make_unique<StagedCommunicator>(host, options.deadline_seconds, direct);
}

}  // namespace airmoe::comm::cuda
