#include "scheduler/cuda/device_links.hpp"

namespace airmoe::scheduler::cuda {

DeviceLinks::DeviceLinks(comm::Communicator& host, double deadline_seconds, bool overlap) {
  const comm::cuda::DeviceCommunicatorOptions options{.deadline_seconds = deadline_seconds};
  tokens_ = comm::cuda::make_device_communicator(host, options);
  if (!overlap) return;
  background_ = comm::cuda::make_device_communicator(host, options);
  token_side_ = std::make_unique<Side>();
  background_side_ = std::make_unique<Side>();
}

DeviceLinks::DeviceCommunicator& DeviceLinks::comm(Lane lane) {
  return lane == Lane::background && background_ ? *background_ : *tokens_;
}

cudaStream_t DeviceLinks::fork(Lane lane, cudaStream_t compute) {
  if (!overlaps()) return compute;
  Side& s = side(lane);
  s.forked.record(compute);
  s.forked.block(s.stream);
  return s.stream;
}

void DeviceLinks::join(Lane lane, cudaStream_t compute) {
  if (!overlaps()) return;
  Side& s = side(lane);
  s.done.record(s.stream);
  s.done.block(compute);
}

void DeviceLinks::wait(cudaStream_t compute) {
  if (overlaps()) background_->wait(background_side_->stream);
  tokens_->wait(compute);
}

int64_t DeviceLinks::bytes_sent(std::string_view phase) const {
  if (tokens_->counted_by_host()) return 0;
  return tokens_->stats(phase).bytes_sent +
         (background_ ? background_->stats(phase).bytes_sent : 0);
}

}  // namespace airmoe::scheduler::cuda
