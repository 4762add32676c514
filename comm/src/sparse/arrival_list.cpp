#include "comm/src/sparse/arrival_list.hpp"

#include <algorithm>
#include <cstring>

namespace airmoe::comm {

void ArrivalList::lay_out(ByteInbox& inbox) {
  std::sort(messages_.begin(), messages_.end(), [](const Message& a, const Message& b) {
    return a.source != b.source ? a.source < b.source : a.order < b.order;
  });
  inbox.arrivals.clear();
  int64_t total = 0;
  for (const Message& m : messages_) {
    inbox.arrivals.push_back({m.source, total, m.bytes});
    total += m.bytes;
  }
  inbox.data.ensure(total);
  following_.clear();
  std::byte* target = inbox.data.data();
  for (const Message& m : messages_) {
    const auto bytes = static_cast<std::size_t>(m.bytes);
    if (m.data != nullptr) {
      std::memcpy(target, m.data, bytes);
    } else {
      following_.push_back({m.source, {target, bytes}});
    }
    target += bytes;
  }
}

}  // namespace airmoe::comm
