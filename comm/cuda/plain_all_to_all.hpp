#pragma once
// What NCCL itself does with equal parts: the yardstick of airmoe-bench exchange-gpu.

#include <cstddef>
#include <cstdint>
#include <memory>

#include <cuda_runtime_api.h>

#include "comm/communicator.hpp"

namespace airmoe::comm::cuda {

/// One ncclSend and one ncclRecv per peer in a group, on a blocking communicator of its own; no
/// deadline, no checks of progress.
class PlainAllToAll {
 public:
  /// Collective. Throws Error(ExitCode::config) where airmoe was built without NCCL.
  explicit PlainAllToAll(Communicator& host);
  ~PlainAllToAll();
  PlainAllToAll(const PlainAllToAll&) = delete;
  PlainAllToAll& operator=(const PlainAllToAll&) = delete;

  /// Collective, asynchronous: `bytes` to every other rank and from it. Device memory; shapes: send
  /// and recv [size, bytes]; the rank's own part stays as it is.
  void run(const std::byte* send, std::byte* recv, int64_t bytes, cudaStream_t stream);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace airmoe::comm::cuda
