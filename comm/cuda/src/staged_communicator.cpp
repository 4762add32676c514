#include "comm/cuda/src/staged_communicator.hpp"

#include <numeric>

namespace airmoe::comm::cuda {
namespace {

/// Of Communicator::exchange; nothing else uses it.
constexpr int kTag = Communicator::kMaxTag;

int64_t sum(std::span<const int64_t> counts) {
  return std::accumulate(counts.begin(), counts.end(), int64_t{0});
}

template <class T>
void sum_over_ranks(Communicator& host, std::byte* data, int64_t count) {
  host.all_reduce(std::span<T>(reinterpret_cast<T*>(data), static_cast<std::size_t>(count)),
                  Reduction::sum);
}

std::span<std::byte> span_of(std::byte* data, int64_t bytes) {
  return {data, static_cast<std::size_t>(bytes)};
}

}  // namespace

StagedCommunicator::~StagedCommunicator() {
  cudaEventSynchronize(copied_);
}

void StagedCommunicator::reserve(int64_t send, int64_t recv) {
  copied_.synchronize();
  send_.ensure(send);
  recv_.ensure(recv);
}

void StagedCommunicator::to_host(std::byte* to, const std::byte* from, int64_t bytes,
                                 cudaStream_t stream) {
  if (bytes == 0) return;
  AIRMOE_CUDA(
      cudaMemcpyAsync(to, from, static_cast<std::size_t>(bytes), cudaMemcpyDeviceToHost, stream));
}

void StagedCommunicator::to_device(std::byte* to, const std::byte* from, int64_t bytes,
                                   cudaStream_t stream) {
  if (bytes == 0) return;
  AIRMOE_CUDA(
      cudaMemcpyAsync(to, from, static_cast<std::size_t>(bytes), cudaMemcpyHostToDevice, stream));
}

void StagedCommunicator::do_all_reduce(void* data, int64_t count, DType type, cudaStream_t stream) {
  const int64_t bytes = count * size_of(type);
  std::byte* device = static_cast<std::byte*>(data);
  reserve(bytes, 0);
  to_host(send_.data(), device, bytes, stream);
  wait(stream);
  if (type == DType::f32) sum_over_ranks<float>(host(), send_.data(), count);
  if (type == DType::f64) sum_over_ranks<double>(host(), send_.data(), count);
  if (type == DType::i32) sum_over_ranks<int32_t>(host(), send_.data(), count);
  if (type == DType::i64) sum_over_ranks<int64_t>(host(), send_.data(), count);
  to_device(device, send_.data(), bytes, stream);
  copied_.record(stream);
}

void StagedCommunicator::do_broadcast(std::byte* data, int64_t bytes, int root,
                                      cudaStream_t stream) {
  reserve(bytes, 0);
  if (rank() == root) {
    to_host(send_.data(), data, bytes, stream);
    wait(stream);
  }
  host().broadcast(
      std::span<uint8_t>(reinterpret_cast<uint8_t*>(send_.data()), static_cast<std::size_t>(bytes)),
      root);
  if (rank() != root) to_device(data, send_.data(), bytes, stream);
  copied_.record(stream);
}

void StagedCommunicator::do_all_gather(const std::byte* send, int64_t bytes, std::byte* recv,
                                       cudaStream_t stream) {
  reserve(bytes, bytes * size());
  to_host(send_.data(), send, bytes, stream);
  wait(stream);
  const auto as_u8 = [](std::span<std::byte> s) {
    return std::span<uint8_t>(reinterpret_cast<uint8_t*>(s.data()), s.size());
  };
  host().all_gather(std::span<const uint8_t>(as_u8(span_of(send_.data(), bytes))),
                    as_u8(span_of(recv_.data(), bytes * size())));
  to_device(recv, recv_.data(), bytes * size(), stream);
  copied_.record(stream);
}

void StagedCommunicator::do_all_to_all(const std::byte* send, std::span<const int64_t> send_bytes,
                                       std::byte* recv, std::span<const int64_t> recv_bytes,
                                       cudaStream_t stream) {
  const auto self = static_cast<std::size_t>(rank());
  const int64_t all_sent = sum(send_bytes), all_received = sum(recv_bytes);
  const int64_t sent_before = sum(send_bytes.first(self));
  const int64_t sent_after = sent_before + send_bytes[self];
  const int64_t received_before = sum(recv_bytes.first(self));
  const int64_t received_after = received_before + recv_bytes[self];
  const std::byte* from = send;
  std::byte* to = recv;
  if (!direct_) {
    reserve(all_sent, all_received);
    to_host(send_.data(), send, sent_before, stream);
    to_host(send_.data() + sent_after, send + sent_after, all_sent - sent_after, stream);
    from = send_.data();
    to = recv_.data();
  }
  // Also where nothing is sent: with `direct`, what is received must not come before its turn.
  if (direct_ || all_sent > send_bytes[self]) wait(stream);

  sends_.clear();
  recvs_.clear();
  for (int r = 0; r < size(); ++r) {
    const auto sent = static_cast<std::size_t>(send_bytes[r]);
    const auto received = static_cast<std::size_t>(recv_bytes[r]);
    if (r != rank()) {
      sends_.push_back({r, {reinterpret_cast<const uint8_t*>(from), sent}});
      recvs_.push_back({r, {reinterpret_cast<uint8_t*>(to), received}});
    }
    from += sent;
    to += received;
  }
  host().exchange<uint8_t>(sends_, recvs_, kTag).wait();
  if (direct_) return;
  to_device(recv, recv_.data(), received_before, stream);
  to_device(recv + received_after, recv_.data() + received_after, all_received - received_after,
            stream);
  copied_.record(stream);
}

}  // namespace airmoe::comm::cuda
