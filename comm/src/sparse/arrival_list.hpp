#pragma once
// From messages in the order they became known to an inbox in source order.

#include <span>
#include <vector>

#include "comm/message.hpp"

namespace airmoe::comm {

class ArrivalList {
 public:
  void clear() { messages_.clear(); }

  /// A message of `bytes` from `source`, after the earlier ones of that source. `data` stays valid
  /// until lay_out(), or is null: it follows by other means.
  void add(int source, int64_t bytes, const std::byte* data) {
    messages_.push_back({source, messages_.size(), bytes, data});
  }

  /// Replaces `inbox`; copies what is there and leaves room for what follows.
  void lay_out(ByteInbox& inbox);

  /// Receives for the messages that follow, in inbox order; valid until the next lay_out().
  std::span<const ByteRecv> following() const { return following_; }

 private:
  struct Message {
    int source;
    std::size_t order;
    int64_t bytes;
    const std::byte* data;
  };
  std::vector<Message> messages_;
  std::vector<ByteRecv> following_;
};

}  // namespace airmoe::comm
