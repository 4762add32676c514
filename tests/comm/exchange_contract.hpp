#pragma once
// Part of communicator_contract.hpp: exchange.

#include <chrono>
#include <thread>

#include "tests/comm/contract_fixture.hpp"

namespace airmoe::comm {

/// Every rank sends count_of(from, to) elements to every rank, in one exchange.
class PairExchange {
 public:
  using CountOf = std::function<int64_t(int, int)>;
  using Data = std::function<std::vector<int64_t>(int, int, int64_t)>;

  PairExchange(Communicator& comm, const CountOf& count_of, const Data& data, int tag) {
    const int rank = comm.rank();
    for (int r = 0; r < comm.size(); ++r) {
      sent_.push_back(data(rank, r, count_of(rank, r)));
      expected_.push_back(data(r, rank, count_of(r, rank)));
      received_.emplace_back(expected_.back().size());
    }
    std::vector<Send<int64_t>> sends;
    std::vector<Recv<int64_t>> recvs;
    for (int r = 0; r < comm.size(); ++r) {
      sends.push_back({r, sent_[r]});
      recvs.push_back({r, received_[r]});
    }
    ticket_ = comm.exchange<int64_t>(sends, recvs, tag);
  }
  Ticket& ticket() { return ticket_; }
  void check() { EXPECT_EQ(received_, expected_); }

 private:
  std::vector<std::vector<int64_t>> sent_;
  std::vector<std::vector<int64_t>> expected_;
  std::vector<std::vector<int64_t>> received_;
  Ticket ticket_;
};

TEST_P(ExchangeContract, EveryPairWithZeroCountsAndSelf) {
  for (const int64_t factor : {0, 1, 700}) {
    PairExchange exchange(
        *comm_, [=](int from, int to) { return (from + 2 * to) % 3 * factor; }, message, 0);
    exchange.ticket().wait();
    exchange.check();
  }
}

TEST_P(ExchangeContract, SeveralUnderWayEndInAnyOrder) {
  const auto count = [](int from, int to) { return 100 + from * 10 + to; };
  const auto negative = [](int from, int to, int64_t n) {
    auto m = message(from, to, n);
    for (auto& v : m) v = -v;
    return m;
  };
  // Odd ranks start the other tag first, so that only the tags tell the messages apart.
  const auto start_other_tag = [&] {
    return std::make_unique<PairExchange>(*comm_, count, negative, Communicator::kMaxTag);
  };
  std::unique_ptr<PairExchange> other_tag;
  if (rank_ % 2 == 1) other_tag = start_other_tag();
  PairExchange first(*comm_, count, message, 7);
  PairExchange same_tag(*comm_, count, negative, 7);
  if (rank_ % 2 == 0) other_tag = start_other_tag();
  other_tag->ticket().wait();
  while (!same_tag.ticket().test()) std::this_thread::yield();
  first.ticket().wait();
  same_tag.ticket().wait();
  first.check();
  same_tag.check();
  other_tag->check();
}

TEST_P(ExchangeContract, ADroppedTicketEndsItsExchange) {
  const int right = (rank_ + 1) % size_;
  const int left = (rank_ + size_ - 1) % size_;
  const auto sent = message(rank_, right, 5000);
  std::vector<int64_t> received(sent.size());
  {
    const std::vector<Send<int64_t>> sends = {{right, sent}};
    const std::vector<Recv<int64_t>> recvs = {{left, received}};
    const Ticket dropped = comm_->exchange<int64_t>(sends, recvs, 1);
  }
  EXPECT_EQ(received, message(left, rank_, 5000));
}

TEST_P(ExchangeContract, AnotherSizeThanExpectedIsAnError) {
  if (size_ == 1) GTEST_SKIP() << "needs two ranks";
  const std::vector<int64_t> sent(3);
  std::vector<int64_t> received(4);
  for (const int64_t count : {2, 4}) {
    use_deadline(60);
    if (rank_ == 0) {
      const std::vector<Send<int64_t>> sends = {{1, sent}};
      EXPECT_NO_THROW(comm_->exchange<int64_t>(sends, {}, 0).wait());
    } else if (rank_ == 1) {
      const std::vector<Recv<int64_t>> recvs = {
          {0, std::span(received).first(static_cast<std::size_t>(count))}};
      Ticket ticket = comm_->exchange<int64_t>({}, recvs, 0);
      EXPECT_THROW(ticket.wait(), Error);
    }
  }
}

TEST_P(ExchangeContract, WrongArgumentsAreErrors) {
  std::vector<int64_t> data(4);
  const std::vector<Send<int64_t>> to_nobody = {{size_, data}};
  const std::vector<Send<int64_t>> to_self = {{rank_, data}};
  Inbox<int64_t> inbox;
  EXPECT_THROW(auto t = comm_->exchange<int64_t>(to_nobody, {}, 0), Error);
  EXPECT_THROW(auto t = comm_->exchange<int64_t>(to_self, {}, 0), Error);
  EXPECT_THROW(auto t = comm_->exchange<int64_t>({}, {}, Communicator::kMaxTag + 1), Error);
  EXPECT_THROW(comm_->sparse_exchange(to_nobody, inbox), Error);
}

TEST_P(ExchangeContract, AMissingPeerIsNamedByTheDeadline) {
  if (size_ == 1) GTEST_SKIP() << "needs two ranks";
  use_deadline(0.2);
  if (rank_ == 0) {
    std::vector<int64_t> received(4);
    const std::vector<Recv<int64_t>> recvs = {{size_ - 1, received}};
    const ScopedPhase phase(*comm_, "combine");
    Ticket ticket = comm_->exchange<int64_t>({}, recvs, 0);
    try {
      ticket.wait();
      ADD_FAILURE() << "nothing was sent";
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ExitCode::watchdog);
      const std::string text = error.what();
      const std::string expected = "rank 0: phase combine: exchange: no answer from rank " +
                                   std::to_string(size_ - 1) + " (to send) within 0.2";
      EXPECT_EQ(text.substr(0, expected.size()), expected);
    }
  }
}

}  // namespace airmoe::comm
