#pragma once
// Device memory by way of the host: page-locked copies, moved by the host's Communicator.

#include "comm/base/cuda/stream.hpp"
#include "comm/cuda/device_communicator.hpp"

namespace airmoe::comm::cuda {

class StagedCommunicator final : public DeviceCommunicator {
 public:
  /// `direct`: messages of all_to_all go out of device memory and into it.
  StagedCommunicator(Communicator& host, double deadline_seconds, bool direct)
      : DeviceCommunicator(host, deadline_seconds), direct_(direct) {}
  /// Copies under way still read the page-locked memory.
  ~StagedCommunicator() override;

  const char* backend() const override { return direct_ ? "direct" : "staged"; }
  bool counted_by_host() const override { return true; }

 private:
  using Pinned = airmoe::cuda::PinnedBuffer<std::byte>;

  void do_all_reduce(void* data, int64_t count, DType type, cudaStream_t stream) override;
  void do_broadcast(std::byte* data, int64_t bytes, int root, cudaStream_t stream) override;
  void do_all_gather(const std::byte* send, int64_t bytes, std::byte* recv,
                     cudaStream_t stream) override;
  void do_all_to_all(const std::byte* send, std::span<const int64_t> send_bytes, std::byte* recv,
                     std::span<const int64_t> recv_bytes, cudaStream_t stream) override;

  /// Waits until the last copy to a device has read its page-locked memory, and makes room.
  void reserve(int64_t send, int64_t recv);
  void to_host(std::byte* to, const std::byte* from, int64_t bytes, cudaStream_t stream);
  void to_device(std::byte* to, const std::byte* from, int64_t bytes, cudaStream_t stream);

  bool direct_;
  Pinned send_, recv_;
  airmoe::cuda::Event copied_;
  std::vector<Send<uint8_t>> sends_;
  std::vector<Recv<uint8_t>> recvs_;
};

}  // namespace airmoe::comm::cuda
