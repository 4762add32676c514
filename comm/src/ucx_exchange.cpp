#include "comm/src/ucx_exchange.hpp"

#include <algorithm>
#include <cstdio>
#include <cstring>

namespace airmoe::comm {
namespace {

// Calls visit(send, recv) for the k-th message to oneself and the k-th receive from oneself; either
// is null where the other has no partner.
template <class Visit>
void match_self(int rank, std::span<const ByteSend> sends, std::span<const ByteRecv> recvs,
                Visit visit) {
  const auto is_self = [rank](const auto& message) { return message.peer == rank; };
  auto send = std::find_if(sends.begin(), sends.end(), is_self);
  auto recv = std::find_if(recvs.begin(), recvs.end(), is_self);
  while (send != sends.end() || recv != recvs.end()) {
    visit(send != sends.end() ? &*send : nullptr, recv != recvs.end() ? &*recv : nullptr);
    if (send != sends.end()) send = std::find_if(send + 1, sends.end(), is_self);
    if (recv != recvs.end()) recv = std::find_if(recv + 1, recvs.end(), is_self);
  }
}

}  // namespace

void UcxExchange::check_messages_to_self(std::span<const ByteSend> sends,
                                         std::span<const ByteRecv> recvs) const {
  match_self(worker_.rank(), sends, recvs, [this](const ByteSend* send, const ByteRecv* recv) {
    AIRMOE_CHECK(recv != nullptr, "{}: a message to oneself without a receive", operation_);
    AIRMOE_CHECK(send != nullptr, "{}: a receive from oneself without a message", operation_);
    AIRMOE_CHECK(send->data.size() == recv->data.size(),
                 "{}: a message to oneself of {} bytes meets a receive of {}", operation_,
                 send->data.size(), recv->data.size());
  });
}

// The last piece is shorter than the others, empty if need be, so that a message of another size
// than its receive never looks like one of the same size.
template <class Span, class Post>
void UcxExchange::in_pieces(Span data, Post post) const {
  const auto most = static_cast<std::size_t>(max_message_bytes_);
  for (; data.size() >= most; data = data.subspan(most)) post(data.first(most));
  post(data);
}

void UcxExchange::start(std::span<const ByteSend> sends, std::span<const ByteRecv> recvs,
                        uint32_t channel, const char* phase, const char* operation) {
  worker_.check_usable();
  phase_ = phase;
  operation_ = operation;
  check_messages_to_self(sends, recvs);
  worker_.guarded([&] {
    operations_.clear();
    for (const ByteRecv& r : recvs) {
      if (r.peer == worker_.rank()) continue;
      in_pieces(r.data, [&](Bytes piece) { operations_.recv(r.peer, channel, piece); });
    }
    for (const ByteSend& s : sends) {
      if (s.peer == worker_.rank()) continue;
      in_pieces(s.data, [&](ConstBytes piece) { operations_.send(s.peer, channel, piece); });
    }
  });
  match_self(worker_.rank(), sends, recvs, [](const ByteSend* send, const ByteRecv* recv) {
    std::memmove(recv->data.data(), send->data.data(), send->data.size());
  });
  idle_ = false;
}

bool UcxExchange::ended() {
  operations_.check(phase_, operation_);
  return operations_.ended();
}

bool UcxExchange::test() {
  bool result = false;
  worker_.check_usable();
  worker_.guarded([&] {
    if (!operations_.ended()) worker_.progress();
    result = ended();
  });
  return result;
}

void UcxExchange::wait() {
  worker_.check_usable();
  worker_.wait_until(
      phase_, operation_, [this] { return ended(); }, [this] { return operations_.missing(); });
}

void UcxExchange::release() noexcept {
  if (!operations_.ended() && std::uncaught_exceptions() == 0 && !worker_.abandoned()) {
    try {
      wait();
    } catch (const std::exception& error) {
      std::fprintf(stderr, "[rank %d] a ticket was dropped: %s\n", worker_.rank(), error.what());
    }
  }
  if (!operations_.ended()) worker_.abandon();
  idle_ = true;
}

}  // namespace airmoe::comm
