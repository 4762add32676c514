#pragma once
// The NCCL backend.

#include <optional>

#include <nccl.h>

#include "comm/cuda/device_communicator.hpp"
#include "comm/cuda/src/nccl/nccl_watch.hpp"

namespace airmoe::comm::cuda {

class NcclCommunicator final : public DeviceCommunicator {
 public:
  /// Collective over the ranks of `host`, which carries NCCL's unique id.
  NcclCommunicator(Communicator& host, double deadline_seconds);
  /// Ends the communicator in order, or aborts it while an exception passes through.
  ~NcclCommunicator() override;

  const char* backend() const override { return "nccl"; }
  bool counted_by_host() const override { return false; }

 private:
  void do_all_reduce(void* data, int64_t count, DType type, cudaStream_t stream) override;
  void do_broadcast(std::byte* data, int64_t bytes, int root, cudaStream_t stream) override;
  void do_all_gather(const std::byte* send, int64_t bytes, std::byte* recv,
                     cudaStream_t stream) override;
  void do_all_to_all(const std::byte* send, std::span<const int64_t> send_bytes, std::byte* recv,
                     std::span<const int64_t> recv_bytes, cudaStream_t stream) override;
  void check_progress() override;
  void give_up() noexcept override;

  ncclUniqueId share_unique_id();
  /// Makes the calls of `body`, which return when NCCL has put them on the stream, under the
  /// deadline.
  template <class Body>
  void call(const char* name, Body body);
  [[noreturn]] void fail_with(ncclResult_t result, const char* call);

  ncclComm_t comm_ = nullptr;
  std::optional<NcclWatch> watch_;
  std::vector<int64_t> send_begin_, recv_begin_;
};

}  // namespace airmoe::comm::cuda
