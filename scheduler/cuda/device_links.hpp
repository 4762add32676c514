#pragma once
// How a rank's device talks to the others. Messages travel on two lanes beside the compute stream,
// each a stream and a communicator of its own:
//   tokens      what the layer at hand needs soon: tokens, their results and gradients;
//   background  what is needed later: gradients of experts on the way to their owners, gradients of
//               the trunk, new values of experts.
// Compute forks a lane where a message may start and joins it where the result is needed; in
// between it goes on.

#include <cstdint>
#include <memory>
#include <string_view>

#include "comm/base/cuda/stream.hpp"
#include "comm/cuda/device_communicator.hpp"

namespace airmoe::scheduler::cuda {

enum class Lane : uint8_t { tokens, background };

class DeviceLinks {
 public:
  using DeviceCommunicator = comm::cuda::DeviceCommunicator;

  /// Collective over `host`, which must outlive this. Without `overlap` both lanes are the compute
  /// stream: messages run in line, with the same results.
  DeviceLinks(comm::Communicator& host, double deadline_seconds, bool overlap);

  int rank() const { return tokens_->rank(); }
  int size() const { return tokens_->size(); }
  bool overlaps() const { return background_ != nullptr; }
  /// Local: "nccl", "staged" or "direct".
  const char* backend() const { return tokens_->backend(); }

  /// One communicator is used in one order: a call on the compute stream must not come between
  /// fork() and join() of its lane.
  DeviceCommunicator& comm(Lane lane);
  /// Local: the stream for messages that follow what `compute` has been given so far.
  cudaStream_t fork(Lane lane, cudaStream_t compute);
  /// Local: what `compute` is given from here follows what the lane has been given so far.
  void join(Lane lane, cudaStream_t compute);

  /// Local: the host waits for the background lane and `compute`, under the deadline.
  void wait(cudaStream_t compute);
  /// Local: what this rank's device sent in a phase, but for what the host's communicator has sent
  /// for it, and counted.
  int64_t bytes_sent(std::string_view phase) const;

 private:
  struct Side {
    airmoe::cuda::Stream stream{true};
    airmoe::cuda::Event forked, done;
  };
  Side& side(Lane lane) { return lane == Lane::tokens ? *token_side_ : *background_side_; }

  std::unique_ptr<Side> token_side_, background_side_;       // nullptr: in line
  std::unique_ptr<DeviceCommunicator> tokens_, background_;  // background_ nullptr: tokens_
};

}  // namespace airmoe::scheduler::cuda
