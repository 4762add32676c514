// Broadcast and all-gathers of the UCX backend.

#include <algorithm>
#include <cstring>

#include "comm/src/ucx_communicator.hpp"

namespace airmoe::comm {
namespace {

// All-gathers of up to this many bytes in all take log2(ranks) rounds; longer ones go round in a
// ring, which sends the same bytes without a copy.
constexpr int64_t kShortGatherBytes = 64 << 10;

}  // namespace

void UcxCommunicator::shift(int to, ConstBytes out, int from, Bytes in, const char* operation) {
  clear_messages();
  if (!out.empty()) sends_.push_back({to, out});
  if (!in.empty()) recvs_.push_back({from, in});
  run_exchange(operation);
}

// Binomial tree. Counted from the root, rank v hears from the rank without v's lowest set bit and
// then tells those with one lower bit more.
void UcxCommunicator::do_broadcast(Bytes data, int root) {
  if (data.empty()) return;
  const int n = size();
  const int v = (rank() - root + n) % n;
  int bit = 1;
  while (bit < n && (v & bit) == 0) bit <<= 1;
  if (v != 0) shift(0, {}, (v - bit + root) % n, data, "broadcast");
  clear_messages();
  for (bit >>= 1; bit > 0; bit >>= 1) {
    if (v + bit < n) sends_.push_back({(v + bit + root) % n, data});
  }
  run_exchange("broadcast");
}

void UcxCommunicator::do_all_gather(ConstBytes send, Bytes recv) {
  part_counts_.assign(static_cast<std::size_t>(size()), std::ssize(send));
  set_offsets(part_counts_, 1);
  all_gather_parts(send, recv, "all_gather");
}

void UcxCommunicator::do_all_gather_v(ConstBytes send, Bytes recv, std::span<const int64_t> counts,
                                      int64_t element_bytes) {
  set_offsets(counts, element_bytes);
  all_gather_parts(send, recv, "all_gather_v");
}

void UcxCommunicator::all_gather_parts(ConstBytes send, Bytes recv, const char* operation) {
  if (recv.empty()) return;
  if (!send.empty()) std::memmove(part(recv, rank()).data(), send.data(), send.size());
  if (std::ssize(recv) <= kShortGatherBytes) return all_gather_short(recv, operation);
  all_gather_long(recv, operation);
}

// J. Bruck and others, "Efficient algorithms for all-to-all communications in multiport
// message-passing systems", 1997: with the parts of the next `have` ranks in hand, starting with
// the own, a rank passes them to the one `have` before it. Parts may differ in size.
void UcxCommunicator::all_gather_short(Bytes all, const char* operation) {
  const int n = size();
  const auto bytes_of = [&](int first, int count) {  // of ranks first, first + 1, ... modulo n
    const int end = first + count;
    if (end <= n) return offsets_[end] - offsets_[first];
    return offsets_[n] - offsets_[first] + offsets_[end - n];
  };
  rotated_.ensure(std::ssize(all));
  const Bytes own = part(all, rank());
  if (!own.empty()) std::memcpy(rotated_.data(), own.data(), own.size());
  for (int have = 1; have < n; have *= 2) {
    const int count = std::min(have, n - have);
    const auto held = static_cast<std::size_t>(bytes_of(rank(), have));
    const auto out = static_cast<std::size_t>(bytes_of(rank(), count));
    const auto in = static_cast<std::size_t>(bytes_of((rank() + have) % n, count));
    shift((rank() - have + n) % n, rotated_.span().first(out), (rank() + have) % n,
          rotated_.span().subspan(held, in), operation);
  }
  const auto tail = static_cast<std::size_t>(offsets_[n] - offsets_[rank()]);
  std::memcpy(all.data() + offsets_[rank()], rotated_.data(), tail);
  if (tail < all.size()) std::memcpy(all.data(), rotated_.data() + tail, all.size() - tail);
}

void UcxCommunicator::all_gather_long(Bytes all, const char* operation) {
  const int n = size();
  const int right = (rank() + 1) % n;
  const int left = (rank() + n - 1) % n;
  for (int step = 0; step + 1 < n; ++step) {
    const int out = (rank() + n - step) % n;
    const int in = (left + n - step) % n;
    shift(right, part(all, out), left, part(all, in), operation);
  }
}

}  // namespace airmoe::comm
