#pragma once
// Tagged messages under way on a UCX worker, counted together.

#include <deque>
#include <set>
#include <string>

#include "comm/src/ucx_worker.hpp"

namespace airmoe::comm {

/// What a message belongs to. The tag of UCX is the sender's rank and this.
enum UcxChannel : uint32_t {
  kCollectiveChannel = 0,
  kBarrierChannel = 1,
  kFirstHeaderChannel = 2,  // and 3: sparse exchanges in turn
  kAnswerChannel = 4,
  kSparseDataChannel = 5,
  kFirstUserChannel = 16,
};

constexpr ucp_tag_t ucx_tag(int sender, uint32_t channel) {
  return static_cast<ucp_tag_t>(sender) << 32 | channel;
}
constexpr int sender_of(ucp_tag_t tag) {
  return static_cast<int>(tag >> 32);
}
constexpr ucp_tag_t kAllOfTag = ~ucp_tag_t{0};
constexpr ucp_tag_t kChannelOfTag = 0xFFFFFFFF;

/// A set of sends and receives. Reused; allocates only while it grows. Memory handed in stays valid
/// until ended().
class UcxOperations {
 public:
  explicit UcxOperations(UcxWorker& worker);
  ~UcxOperations();
  UcxOperations(const UcxOperations&) = delete;
  UcxOperations& operator=(const UcxOperations&) = delete;

  /// Forgets the operations, all of which have ended.
  void clear();
  void send(int peer, uint32_t channel, ConstBytes data);
  void recv(int peer, uint32_t channel, Bytes data);
  /// Receives the next message of a channel, whoever sends it, of at most this size.
  void recv_any(uint32_t channel, Bytes room);
  /// What the last operation, a recv_any() that has ended, has received.
  int sender() const { return operations_[used_ - 1].peer; }
  std::size_t received() const { return operations_[used_ - 1].received; }

  bool ended() const { return open_ == 0; }
  /// Throws Error(ExitCode::failure) when a message had another size than its receive.
  void check(const char* phase, const char* operation) const;
  /// Peers of what has not ended.
  std::set<int> open_peers(bool of_receives) const;
  /// "rank 1, 2 (to send) and rank 3 (to receive)"
  std::string missing() const;
  /// Takes back the receives that no message has met.
  void cancel() noexcept;

 private:
  struct Operation {
    UcxOperations* set = nullptr;
    int peer = 0;
    bool is_recv = false;
    bool open = false;
    bool exact = true;  // a receive of exactly `bytes`
    std::size_t bytes = 0;
    std::size_t received = 0;
    void* request = nullptr;  // null before and after its life
  };
  static constexpr int kAnyPeer = -1;
  Operation& add(int peer, bool is_recv, std::size_t bytes);
  void started(Operation& operation, ucs_status_ptr_t request);
  void post_recv(Operation& operation, ucp_tag_t tag, ucp_tag_t mask, Bytes data);
  static void end(Operation& operation, ucs_status_t status, std::size_t received) noexcept;
  static ucp_request_param_t send_param(Operation& operation);
  static ucp_request_param_t recv_param(Operation& operation);

  UcxWorker& worker_;
  std::deque<Operation> operations_;  // addresses stay while it grows
  std::size_t used_ = 0;
  std::size_t open_ = 0;
  const Operation* wrong_ = nullptr;  // the first of another size
};

}  // namespace airmoe::comm
