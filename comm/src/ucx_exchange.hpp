#pragma once
// Point-to-point exchange with counts known on both sides, on UCX.

#include "comm/src/ucx_operations.hpp"
#include "comm/ticket.hpp"

namespace airmoe::comm {

/// One exchange under way. Reused; allocates only while its arrays grow.
class UcxExchange final : public PendingExchange {
 public:
  UcxExchange(UcxWorker& worker, int64_t max_message_bytes)
      : worker_(worker), operations_(worker), max_message_bytes_(max_message_bytes) {}

  bool idle() const { return idle_; }

  /// Posts all receives, then all sends, in pieces of at most max_message_bytes; copies messages to
  /// oneself. idle() is false from here to release().
  void start(std::span<const ByteSend> sends, std::span<const ByteRecv> recvs, uint32_t channel,
             const char* phase, const char* operation);

  bool test() override;
  void wait() override;
  void release() noexcept override;

 private:
  void check_messages_to_self(std::span<const ByteSend> sends,
                              std::span<const ByteRecv> recvs) const;
  template <class Span, class Post>
  void in_pieces(Span data, Post post) const;
  bool ended();

  UcxWorker& worker_;
  UcxOperations operations_;
  int64_t max_message_bytes_;
  const char* phase_ = "";
  const char* operation_ = "";
  bool idle_ = true;
};

}  // namespace airmoe::comm
