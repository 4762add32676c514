#include "comm/communicator.hpp"

#include "comm/base/error.hpp"

namespace airmoe::comm {

Ticket Communicator::exchange_staged(int tag) {
  check_tag(tag);
  for (const ByteSend& s : sends_) check_peer(s.peer, "exchange: send");
  for (const ByteRecv& r : recvs_) check_peer(r.peer, "exchange: recv");
  return do_exchange(sends_, recvs_, tag);
}

void Communicator::sparse_exchange_staged(ByteInbox& inbox, int64_t element_bytes) {
  for (const ByteSend& s : sends_) check_peer(s.peer, "sparse_exchange: send");
  do_sparse_exchange(sends_, inbox);
  for (Arrival& a : inbox.arrivals) {
    AIRMOE_CHECK(a.count % element_bytes == 0,
                 "sparse_exchange: {} bytes from rank {} are no whole number of {}-byte elements",
                 a.count, a.source, element_bytes);
    a.offset /= element_bytes;
    a.count /= element_bytes;
  }
}

void Communicator::check_peer(int peer, const char* where) const {
  AIRMOE_CHECK(peer >= 0 && peer < size(), "{}: rank {} is not one of {}", where, peer, size());
}

void Communicator::check_tag(int tag) const {
  AIRMOE_CHECK(tag >= 0 && tag <= kMaxTag, "tag {} is not in 0..{}", tag, kMaxTag);
}

void Communicator::check_size(int64_t expected, int64_t actual, const char* what) const {
  AIRMOE_CHECK(expected == actual, "{} has {} elements, the counts say {}", what, actual, expected);
}

void Communicator::check_counts(std::span<const int64_t> counts, int64_t total,
                                const char* what) const {
  AIRMOE_CHECK(std::ssize(counts) == size(), "{}: {} counts for {} ranks", what, counts.size(),
               size());
  int64_t sum = 0;
  for (const int64_t count : counts) {
    AIRMOE_CHECK(count >= 0, "{}: a count is negative ({})", what, count);
    sum += count;
  }
  if (total >= 0) check_size(sum, total, what);
}

}  // namespace airmoe::comm
