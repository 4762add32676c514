#include "comm/stats_communicator.hpp"

#include <array>

#include "comm/src/ordered_reduce.hpp"

namespace airmoe::comm {

/// Adds the time of its scope to a phase, also when an exception leaves it.
class StatsCommunicator::Timer {
 public:
  explicit Timer(PhaseStats& stats) : stats_(stats), start_(std::chrono::steady_clock::now()) {}
  ~Timer() {
    stats_.seconds +=
        std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
  }
  Timer(const Timer&) = delete;
  Timer& operator=(const Timer&) = delete;

 private:
  PhaseStats& stats_;
  std::chrono::steady_clock::time_point start_;
};

/// The inner ticket and the phase in which it was made.
class StatsCommunicator::CountedExchange final : public PendingExchange {
 public:
  bool idle() const { return stats_ == nullptr; }
  void start(Ticket inner, PhaseStats& stats) {
    inner_ = std::move(inner);
    stats_ = &stats;
  }
  bool test() override {
    const Timer timer(*stats_);
    return inner_.test();
  }
  void wait() override {
    const Timer timer(*stats_);
    inner_.wait();
  }
  void release() noexcept override {
    const Ticket ended = std::move(inner_);  // its destructor does what is left to do
    stats_ = nullptr;
  }

 private:
  Ticket inner_;
  PhaseStats* stats_ = nullptr;
};

StatsCommunicator::StatsCommunicator(Communicator& inner) : ForwardingCommunicator(inner) {}

StatsCommunicator::~StatsCommunicator() = default;

PhaseStats StatsCommunicator::stats(std::string_view phase) const {
  const auto found = stats_.find(phase);
  return found == stats_.end() ? PhaseStats{} : found->second;
}

void StatsCommunicator::reset() {
  for (auto& [phase, stats] : stats_) stats = {};
}

void StatsCommunicator::do_set_phase(const char* phase) {
  ForwardingCommunicator::do_set_phase(phase);
  current_ = nullptr;
}

PhaseStats& StatsCommunicator::current() {
  if (current_ == nullptr) {
    const std::string_view name = phase();
    const auto found = stats_.find(name);
    current_ = found != stats_.end() ? &found->second : &stats_[std::string(name)];
  }
  ++current_->calls;
  return *current_;
}

void StatsCommunicator::count_sends(std::span<const ByteSend> sends) {
  for (const ByteSend& s : sends) {
    if (s.peer == rank()) continue;
    current_->bytes_sent += std::ssize(s.data);
    ++current_->messages_sent;
  }
}

void StatsCommunicator::count_to_all_others(int64_t bytes) {
  if (bytes == 0) return;
  current_->bytes_sent += bytes * (size() - 1);
  current_->messages_sent += size() - 1;
}

void StatsCommunicator::do_barrier() {
  const Timer timer(current());
  ForwardingCommunicator::do_barrier();
}

void StatsCommunicator::do_broadcast(Bytes data, int root) {
  const Timer timer(current());
  if (rank() == root && size() > 1 && !data.empty()) {
    current_->bytes_sent += std::ssize(data);
    ++current_->messages_sent;
  }
  ForwardingCommunicator::do_broadcast(data, root);
}

void StatsCommunicator::do_all_reduce(void* data, int64_t count, DType type, Reduction op) {
  const Timer timer(current());
  if (ordered_reduce::applies_to(type)) {
    const auto traffic = ordered_reduce::traffic(rank(), size(), count, type);
    current_->bytes_sent += traffic.bytes;
    current_->messages_sent += traffic.messages;
  } else if (size() > 1 && count > 0) {
    current_->bytes_sent += count * size_of(type);
    ++current_->messages_sent;
  }
  ForwardingCommunicator::do_all_reduce(data, count, type, op);
}

void StatsCommunicator::do_all_gather(ConstBytes send, Bytes recv) {
  const Timer timer(current());
  count_to_all_others(std::ssize(send));
  ForwardingCommunicator::do_all_gather(send, recv);
}

void StatsCommunicator::do_all_gather_v(ConstBytes send, Bytes recv,
                                        std::span<const int64_t> counts, int64_t element_bytes) {
  const Timer timer(current());
  count_to_all_others(std::ssize(send));
  ForwardingCommunicator::do_all_gather_v(send, recv, counts, element_bytes);
}

void StatsCommunicator::do_gather_v(ConstBytes send, Bytes recv, std::span<const int64_t> counts,
                                    int64_t element_bytes, int root) {
  const Timer timer(current());
  if (!send.empty()) count_sends(std::array{ByteSend{root, send}});
  ForwardingCommunicator::do_gather_v(send, recv, counts, element_bytes, root);
}

void StatsCommunicator::do_all_to_all_v(ConstBytes send, std::span<const int64_t> send_counts,
                                        Bytes recv, std::span<const int64_t> recv_counts,
                                        int64_t element_bytes) {
  const Timer timer(current());
  for (int peer = 0; peer < size(); ++peer) {
    if (peer == rank() || send_counts[peer] == 0) continue;
    current_->bytes_sent += send_counts[peer] * element_bytes;
    ++current_->messages_sent;
  }
  ForwardingCommunicator::do_all_to_all_v(send, send_counts, recv, recv_counts, element_bytes);
}

Ticket StatsCommunicator::do_exchange(std::span<const ByteSend> sends,
                                      std::span<const ByteRecv> recvs, int tag) {
  const Timer timer(current());
  count_sends(sends);
  CountedExchange& exchange = idle_exchange();
  exchange.start(ForwardingCommunicator::do_exchange(sends, recvs, tag), *current_);
  return Ticket(&exchange);
}

void StatsCommunicator::do_sparse_exchange(std::span<const ByteSend> sends, ByteInbox& inbox) {
  const Timer timer(current());
  count_sends(sends);
  ForwardingCommunicator::do_sparse_exchange(sends, inbox);
}

StatsCommunicator::CountedExchange& StatsCommunicator::idle_exchange() {
  for (auto& exchange : exchanges_) {
    if (exchange->idle()) return *exchange;
  }
  exchanges_.push_back(std::make_unique<CountedExchange>());
  return *exchanges_.back();
}

}  // namespace airmoe::comm
