#pragma once
// The deadline of NCCL's blocking calls: a thread that aborts the communicator when one lasts too
// long. NCCL's own nonblocking calls cost five times as much of the host's time (a thread each).

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <thread>

#include <nccl.h>

namespace airmoe::comm::cuda {

class NcclWatch {
 public:
  NcclWatch(ncclComm_t comm, double deadline_seconds);
  /// Stops watching.
  ~NcclWatch();
  NcclWatch(const NcclWatch&) = delete;
  NcclWatch& operator=(const NcclWatch&) = delete;

  /// Around a call that may block. end() is false when the deadline has passed: the communicator
  /// has been aborted and must not be used, nor destroyed, any more.
  void begin();
  bool end();

 private:
  void watch();

  ncclComm_t comm_;
  int64_t deadline_;           // nanoseconds
  std::atomic<int64_t> due_;   // of the call under way; kIdle or kAborted
  std::atomic<bool> aborted_;  // NCCL has returned from the abort
  std::mutex mutex_;
  std::condition_variable stop_;
  bool stopping_ = false;
  std::thread thread_;
};

}  // namespace airmoe::comm::cuda
