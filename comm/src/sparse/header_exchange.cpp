#include "comm/src/sparse/header_exchange.hpp"

#include <algorithm>
#include <cstring>
#include <utility>

namespace airmoe::comm {
namespace {

constexpr int64_t kWord = sizeof(int64_t);

}  // namespace

HeaderExchange::HeaderExchange(const SparseLink& link, std::unique_ptr<HeaderCarrier> carrier,
                               std::span<const int> send_peers, std::span<const int> recv_peers,
                               int data_tag)
    : link_(link),
      carrier_(std::move(carrier)),
      send_peers_(send_peers.begin(), send_peers.end()),
      recv_peers_(recv_peers.begin(), recv_peers.end()),
      place_of_rank_(static_cast<std::size_t>(link.size), -1),
      data_tag_(data_tag),
      sent_after_(link.comm, link.wait, link.max_message_bytes),
      received_after_(link.comm, link.wait, link.max_message_bytes),
      outgoing_(send_peers_.size()),
      header_bytes_(send_peers_.size()) {
  for (std::size_t i = 0; i < send_peers_.size(); ++i) {
    place_of_rank_[static_cast<std::size_t>(send_peers_[i])] = static_cast<int>(i);
  }
}

bool HeaderExchange::sizes_fit(int64_t num_messages) const {
  return kWord * (1 + num_messages) <= carrier_->slot_bytes();
}

bool HeaderExchange::data_fits(int64_t num_messages, int64_t bytes) const {
  return kWord * (1 + num_messages) + bytes <= carrier_->slot_bytes() &&
         bytes <= link_.max_message_bytes;
}

void HeaderExchange::run(std::span<const ByteSend> sends, ByteInbox& inbox, const char* phase) {
  messages_.clear();
  write_headers(sends);
  carrier_->publish(header_bytes_, phase);
  sent_after_.start(following_, {}, data_tag_, phase, kSparseOperation);
  Ticket sending(&sent_after_);
  carrier_->wait(phase);
  read_headers(phase);
  messages_.lay_out(inbox);
  received_after_.start({}, messages_.following(), data_tag_, phase, kSparseOperation);
  Ticket(&received_after_).wait();
  sending.wait();
}

void HeaderExchange::write_headers(std::span<const ByteSend> sends) {
  std::fill(outgoing_.begin(), outgoing_.end(), Outgoing{});
  const auto place_of = [this](const ByteSend& s) {
    return place_of_rank_[static_cast<std::size_t>(s.peer)];
  };
  for (const ByteSend& s : sends) {
    if (s.peer == link_.rank()) {
      messages_.add(s.peer, std::ssize(s.data), s.data.data());
      continue;
    }
    AIRMOE_CHECK(place_of(s) >= 0, "{}: rank {} is not among the peers", kSparseOperation, s.peer);
    Outgoing& o = outgoing_[static_cast<std::size_t>(place_of(s))];
    ++o.num_messages;
    o.bytes += std::ssize(s.data);
  }

  int64_t sizes_that_follow = 0;
  for (const Outgoing& o : outgoing_) {
    if (!sizes_fit(o.num_messages)) sizes_that_follow += o.num_messages;
  }
  following_sizes_.resize(static_cast<std::size_t>(sizes_that_follow));
  following_.clear();
  int64_t* next_list = following_sizes_.data();
  for (std::size_t i = 0; i < outgoing_.size(); ++i) {
    Outgoing& o = outgoing_[i];
    auto* words = reinterpret_cast<int64_t*>(carrier_->outgoing(i));
    words[0] = o.num_messages;
    header_bytes_[i] = kWord;
    if (sizes_fit(o.num_messages)) {
      o.sizes = words + 1;
      header_bytes_[i] += kWord * o.num_messages;
    } else {
      o.sizes = next_list;
      const std::span<const int64_t> list(next_list, static_cast<std::size_t>(o.num_messages));
      following_.push_back({send_peers_[i], as_bytes(list)});
      next_list += o.num_messages;
    }
    if (data_fits(o.num_messages, o.bytes)) {
      o.data = carrier_->outgoing(i) + header_bytes_[i];
      header_bytes_[i] += o.bytes;
    }
  }

  for (const ByteSend& s : sends) {
    if (s.peer == link_.rank()) continue;
    Outgoing& o = outgoing_[static_cast<std::size_t>(place_of(s))];
    *o.sizes++ = std::ssize(s.data);
    if (o.data == nullptr) {
      following_.push_back(s);
    } else {
      std::memcpy(o.data, s.data.data(), s.data.size());
      o.data += s.data.size();
    }
  }
}

void HeaderExchange::read_headers(const char* phase) {
  const auto num_messages = [this](std::size_t peer) {
    int64_t n = 0;
    std::memcpy(&n, carrier_->incoming(peer).data(), sizeof n);
    return n;
  };
  int64_t sizes_that_follow = 0;
  for (std::size_t i = 0; i < recv_peers_.size(); ++i) {
    if (!sizes_fit(num_messages(i))) sizes_that_follow += num_messages(i);
  }
  if (sizes_that_follow > 0) {
    incoming_sizes_.resize(static_cast<std::size_t>(sizes_that_follow));
    size_recvs_.clear();
    std::span<int64_t> rest(incoming_sizes_);
    for (std::size_t i = 0; i < recv_peers_.size(); ++i) {
      const int64_t n = num_messages(i);
      if (sizes_fit(n)) continue;
      size_recvs_.push_back({recv_peers_[i], as_bytes(rest.first(static_cast<std::size_t>(n)))});
      rest = rest.subspan(static_cast<std::size_t>(n));
    }
    received_after_.start({}, size_recvs_, data_tag_, phase, kSparseOperation);
    Ticket(&received_after_).wait();
  }
  const int64_t* next_list = incoming_sizes_.data();
  for (std::size_t i = 0; i < recv_peers_.size(); ++i) {
    const int64_t n = num_messages(i);
    const auto* words = reinterpret_cast<const int64_t*>(carrier_->incoming(i).data());
    if (sizes_fit(n)) {
      add_arrivals(i, words + 1, n, carrier_->incoming(i).data() + kWord * (1 + n));
    } else {
      add_arrivals(i, next_list, n, nullptr);
      next_list += n;
    }
  }
}

void HeaderExchange::add_arrivals(std::size_t peer, const int64_t* sizes, int64_t num_messages,
                                  const std::byte* header_data) {
  int64_t bytes = 0;
  for (int64_t k = 0; k < num_messages; ++k) bytes += sizes[k];
  if (!data_fits(num_messages, bytes)) header_data = nullptr;
  for (int64_t k = 0; k < num_messages; ++k) {
    messages_.add(recv_peers_[peer], sizes[k], header_data);
    if (header_data != nullptr) header_data += sizes[k];
  }
}

}  // namespace airmoe::comm
