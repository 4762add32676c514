#include "comm/cuda/device_communicator.hpp"

#include <chrono>
#include <numeric>

#include "comm/cuda/src/pack_rows.hpp"
#include "comm/src/mpi_check.hpp"

namespace airmoe::comm::cuda {

/// Counts one call and the host's time in it, also when an exception leaves it.
class DeviceCommunicator::Counted {
 public:
  explicit Counted(DeviceCommunicator& comm) : start_(std::chrono::steady_clock::now()) {
    const std::string_view phase = comm.host_.phase();
    const auto found = comm.stats_.find(phase);
    stats_ = found != comm.stats_.end() ? &found->second : &comm.stats_[std::string(phase)];
    ++stats_->calls;
  }
  ~Counted() {
    stats_->seconds +=
        std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
  }
  Counted(const Counted&) = delete;
  Counted& operator=(const Counted&) = delete;

  void sends(int64_t bytes, int64_t messages = 1) {
    if (bytes == 0) return;
    stats_->bytes_sent += bytes * messages;
    stats_->messages_sent += messages;
  }

 private:
  PhaseStats* stats_;
  std::chrono::steady_clock::time_point start_;
};

namespace {

void copy_on_device(std::byte* to, const std::byte* from, int64_t bytes, cudaStream_t stream) {
  if (bytes == 0 || to == from) return;
  AIRMOE_CUDA(
      cudaMemcpyAsync(to, from, static_cast<std::size_t>(bytes), cudaMemcpyDeviceToDevice, stream));
}

}  // namespace

DeviceCommunicator::DeviceCommunicator(Communicator& host, double deadline_seconds)
    : host_(host),
      deadline_seconds_(deadline_seconds),
      ones_(static_cast<std::size_t>(host.size()), 1) {
  AIRMOE_CHECK(deadline_seconds > 0, "a deadline of {} s", deadline_seconds);
}

void DeviceCommunicator::all_reduce_bytes(void* data, int64_t count, DType type,
                                          cudaStream_t stream) {
  Counted counted(*this);
  if (size() == 1 || count == 0) return;
  counted.sends(count * size_of(type));
  do_all_reduce(data, count, type, stream);
}

void DeviceCommunicator::broadcast_bytes(std::byte* data, int64_t count, int root,
                                         cudaStream_t stream) {
  AIRMOE_CHECK(root >= 0 && root < size(), "broadcast: rank {} of {}", root, size());
  Counted counted(*this);
  if (size() == 1 || count == 0) return;
  if (rank() == root) counted.sends(count);
  do_broadcast(data, count, root, stream);
}

void DeviceCommunicator::all_gather_bytes(const std::byte* send, int64_t count, std::byte* recv,
                                          cudaStream_t stream) {
  Counted counted(*this);
  if (size() == 1) return copy_on_device(recv, send, count, stream);
  if (count == 0) return;
  counted.sends(count, size() - 1);
  do_all_gather(send, count, recv, stream);
}

void DeviceCommunicator::check_counts(std::span<const int64_t> counts, const char* what) const {
  AIRMOE_CHECK(std::ssize(counts) == size(), "rank {}: phase {}: {}: {} counts for {} ranks",
               rank(), host_.phase(), what, counts.size(), size());
  for (const int64_t count : counts) {
    AIRMOE_CHECK(count >= 0, "rank {}: phase {}: {}: a count of {}", rank(), host_.phase(), what,
                 count);
  }
}

void DeviceCommunicator::all_to_all_bytes(const std::byte* send,
                                          std::span<const int64_t> send_counts, std::byte* recv,
                                          std::span<const int64_t> recv_counts,
                                          int64_t element_bytes, bool copies_own,
                                          cudaStream_t stream) {
  check_counts(send_counts, "all_to_all_v: send");
  check_counts(recv_counts, "all_to_all_v: recv");
  AIRMOE_CHECK(send_counts[rank()] == recv_counts[rank()],
               "rank {}: phase {}: all_to_all_v: {} elements sent to oneself, {} expected", rank(),
               host_.phase(), send_counts[rank()], recv_counts[rank()]);
  Counted counted(*this);
  send_bytes_.resize(send_counts.size());
  recv_bytes_.resize(recv_counts.size());
  int64_t own_send = 0, own_recv = 0;  // where the rank's own part begins
  for (int r = 0; r < size(); ++r) {
    send_bytes_[r] = send_counts[r] * element_bytes;
    recv_bytes_[r] = recv_counts[r] * element_bytes;
    if (r < rank()) own_send += send_bytes_[r], own_recv += recv_bytes_[r];
    if (r != rank()) counted.sends(send_bytes_[r]);
  }
  if (copies_own) copy_on_device(recv + own_recv, send + own_send, send_bytes_[rank()], stream);
  if (size() > 1) do_all_to_all(send, send_bytes_, recv, recv_bytes_, stream);
}

void DeviceCommunicator::plan_rows(std::span<const int64_t> send_counts, const int32_t* rows,
                                   RowPlan& plan) {
  check_counts(send_counts, "plan_rows");
  plan.send_counts.assign(send_counts.begin(), send_counts.end());
  plan.recv_counts.resize(send_counts.size());
  host_.all_to_all_v(send_counts, ones_, std::span<int64_t>(plan.recv_counts), ones_);
  plan.rows = rows;
  plan.sent = std::accumulate(send_counts.begin(), send_counts.end(), int64_t{0});
  plan.received = std::accumulate(plan.recv_counts.begin(), plan.recv_counts.end(), int64_t{0});
}

void DeviceCommunicator::exchange_row_bytes(const RowPlan& plan, const std::byte* table,
                                            int64_t row_bytes, std::byte* received,
                                            cudaStream_t stream) {
  const auto before = [&](const std::vector<int64_t>& counts) {
    return std::accumulate(counts.begin(), counts.begin() + rank(), int64_t{0});
  };
  const int64_t own = before(plan.send_counts);
  packed_.ensure(plan.sent * row_bytes);
  pack_rows(table, plan.rows, plan.sent, row_bytes, packed_.data(),
            {own, own + plan.send_counts[rank()], received + before(plan.recv_counts) * row_bytes},
            stream);
  all_to_all_bytes(packed_.data(), plan.send_counts, received, plan.recv_counts, row_bytes, false,
                   stream);
}

template <class Query>
void DeviceCommunicator::wait_until(Query query, const char* what) {
  const WaitContext context{rank(), deadline_seconds_};
  Deadline deadline(context);
  while (true) {
    const cudaError_t status = query();
    if (status == cudaSuccess) return;
    if (status != cudaErrorNotReady) AIRMOE_CUDA(status);
    check_progress();
    if (!deadline.poll()) continue;
    give_up();
    deadline.expire(host_.phase(), backend(), what);
  }
}

void DeviceCommunicator::wait(cudaStream_t stream) {
  wait_until([&] { return cudaStreamQuery(stream); }, "the GPU or some rank (a stream)");
}

void DeviceCommunicator::wait(const airmoe::cuda::Event& event) {
  wait_until([&] { return cudaEventQuery(event); }, "the GPU or some rank (an event)");
}

PhaseStats DeviceCommunicator::stats(std::string_view phase) const {
  const auto found = stats_.find(phase);
  return found == stats_.end() ? PhaseStats{} : found->second;
}

void DeviceCommunicator::reset_stats() {
  for (auto& [phase, stats] : stats_) stats = {};
}

}  // namespace airmoe::comm::cuda
