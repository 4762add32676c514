#include "comm/src/ucx_sparse_exchange.hpp"

#include <algorithm>
#include <cstring>

namespace airmoe::comm {
namespace {

// One packet of the usual transports (8 KiB), with room for UCX's own header.
constexpr int64_t kShortBytes = 7168;
constexpr const char* kOperation = "sparse_exchange";

}  // namespace

UcxSparseExchange::UcxSparseExchange(UcxWorker& worker, UcxBarrier& barrier,
                                     int64_t max_message_bytes)
    : worker_(worker),
      barrier_(barrier),
      max_short_bytes_(std::min(kShortBytes, max_message_bytes)),
      boxes_{Mailbox(worker), Mailbox(worker)},
      headers_(worker),
      answers_(worker),
      long_sends_(worker, max_message_bytes),
      long_recvs_(worker, max_message_bytes) {
  for (std::size_t turn = 0; turn < boxes_.size(); ++turn) {
    boxes_[turn].channel = kFirstHeaderChannel + static_cast<uint32_t>(turn);
    post(boxes_[turn]);
  }
}

UcxSparseExchange::~UcxSparseExchange() {
  for (Mailbox& box : boxes_) box.posted.cancel();
}

void UcxSparseExchange::post(Mailbox& box) {
  if (box.used == box.slots.size()) {
    box.slots.emplace_back(static_cast<int64_t>(sizeof(Header)) + max_short_bytes_);
  }
  box.posted.clear();
  box.posted.recv_any(box.channel, box.slots[box.used++].span());
}

void UcxSparseExchange::run(std::span<const ByteSend> sends, ByteInbox& inbox, const char* phase) {
  phase_ = phase;
  turn_ = 1 - turn_;
  Mailbox& box = boxes_[turn_];
  std::swap(box.slots[0], box.slots[box.used - 1]);  // the one that is posted; the others are free
  box.used = 1;
  messages_.clear();
  in_barrier_ = false;
  worker_.guarded([&] { send_headers(sends); });
  long_sends_.start(long_data_, {}, kSparseDataChannel, phase_, kOperation);
  Ticket sending(&long_sends_);
  worker_.wait_until(
      phase_, kOperation, [this] { return consensus(); }, [this] { return missing(); });
  messages_.lay_out(inbox);
  long_recvs_.start({}, messages_.following(), kSparseDataChannel, phase_, kOperation);
  Ticket(&long_recvs_).wait();
  sending.wait();
  worker_.wait_until(
      phase_, kOperation, [this] { return answers_.ended(); },
      [this] { return answers_.missing(); });
}

void UcxSparseExchange::send_headers(std::span<const ByteSend> sends) {
  int64_t total = 0;
  for (const ByteSend& s : sends) {
    total += static_cast<int64_t>(sizeof(Header));
    if (std::ssize(s.data) <= max_short_bytes_) total += std::ssize(s.data);
  }
  outgoing_.ensure(total);
  headers_.clear();
  answers_.clear();
  long_data_.clear();
  std::byte* cursor = outgoing_.data();
  for (const ByteSend& s : sends) {
    if (s.peer == worker_.rank()) {
      messages_.add(s.peer, std::ssize(s.data), s.data.data());
      continue;
    }
    const Header header{std::ssize(s.data)};
    std::memcpy(cursor, &header, sizeof(Header));
    std::size_t bytes = sizeof(Header);
    if (header.bytes <= max_short_bytes_) {
      std::memcpy(cursor + bytes, s.data.data(), s.data.size());
      bytes += s.data.size();
    } else {
      long_data_.push_back(s);
    }
    headers_.recv(s.peer, kAnswerChannel, {&answer_in_, 1});
    headers_.send(s.peer, boxes_[turn_].channel, {cursor, bytes});
    cursor += bytes;
  }
}

bool UcxSparseExchange::consensus() {
  receive_headers();
  if (!in_barrier_) {
    if (!headers_.ended()) return false;
    headers_.check(phase_, kOperation);
    barrier_.start();
    in_barrier_ = true;
  }
  return barrier_.advance();
}

void UcxSparseExchange::receive_headers() {
  Mailbox& box = boxes_[turn_];
  while (box.posted.ended()) {
    box.posted.check(phase_, kOperation);
    const int source = box.posted.sender();
    AIRMOE_CHECK(box.posted.received() >= sizeof(Header), "{}: a header of {} bytes from rank {}",
                 kOperation, box.posted.received(), source);
    const std::byte* slot = box.slots[box.used - 1].data();
    Header header{};
    std::memcpy(&header, slot, sizeof(Header));
    const bool is_short = header.bytes <= max_short_bytes_;
    messages_.add(source, header.bytes, is_short ? slot + sizeof(Header) : nullptr);
    answers_.send(source, kAnswerChannel, {&answer_out_, 1});
    post(box);
  }
}

std::string UcxSparseExchange::missing() const {
  if (in_barrier_) {
    return fmt::format("some rank: {}, or one that it waits for", barrier_.missing());
  }
  std::set<int> peers = headers_.open_peers(false);
  peers.merge(headers_.open_peers(true));
  return fmt::format("rank {} (to receive)", fmt::join(peers, ", "));
}

}  // namespace airmoe::comm
