#pragma once
// Part of communicator_contract.hpp: exchange and sparse exchange.

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

/// One sparse exchange in which rank `from` sends the messages counts_of(from, to) to rank `to`.
inline void check_sparse(Communicator& comm, Inbox<int64_t>& inbox,
                         const std::function<std::vector<int64_t>(int, int)>& counts_of,
                         int64_t salt) {
  const auto make = [&](int from, int to, std::size_t index, int64_t count) {
    std::vector<int64_t> m(static_cast<std::size_t>(count));
    for (int64_t i = 0; i < count; ++i) {
      m[i] = ((salt * 64 + from) * 64 + to) * 8 + static_cast<int64_t>(index) + 1'000'000'000 * i;
    }
    return m;
  };
  std::vector<std::vector<int64_t>> sent;
  std::vector<int> peers;
  for (int to = comm.size() - 1; to >= 0; --to) {
    const auto counts = counts_of(comm.rank(), to);
    for (std::size_t k = 0; k < counts.size(); ++k) {
      sent.push_back(make(comm.rank(), to, k, counts[k]));
      peers.push_back(to);
    }
  }
  std::vector<Send<int64_t>> sends;
  for (std::size_t k = 0; k < sent.size(); ++k) sends.push_back({peers[k], sent[k]});
  comm.sparse_exchange(sends, inbox);

  std::vector<std::pair<int, std::vector<int64_t>>> expected;
  for (int from = 0; from < comm.size(); ++from) {
    const auto counts = counts_of(from, comm.rank());
    for (std::size_t k = 0; k < counts.size(); ++k) {
      if (counts[k] > 0) expected.emplace_back(from, make(from, comm.rank(), k, counts[k]));
    }
  }
  std::vector<std::pair<int, std::vector<int64_t>>> actual;
  int64_t end = 0;
  for (const Arrival& a : inbox.arrivals()) {
    EXPECT_EQ(a.offset, end);
    end += a.count;
    const auto data = inbox.data(a);
    actual.emplace_back(a.source, std::vector<int64_t>(data.begin(), data.end()));
  }
  EXPECT_EQ(std::ssize(inbox.data()), end);
  EXPECT_EQ(actual, expected);
}

TEST_P(ExchangeContract, SparseWithNobodySpeaking) {
  Inbox<int64_t> inbox;
  check_sparse(
      *comm_, inbox, [](int, int) { return std::vector<int64_t>{}; }, 0);
  check_sparse(
      *comm_, inbox,
      [](int, int) {
        return std::vector<int64_t>{0, 0};
      },
      0);
  EXPECT_TRUE(inbox.arrivals().empty());
}

TEST_P(ExchangeContract, SparseShortAndLongMessagesAndSelf) {
  Inbox<int64_t> inbox;
  for (const int64_t count :
       {1, 125, 384, 385, 4000, 20000}) {  // around what travels in headers of several sizes
    check_sparse(
        *comm_, inbox,
        [=](int from, int to) {
          return std::vector<int64_t>{count + from, 0, 4000 - to, 2};
        },
        count);
  }
}

TEST_P(ExchangeContract, SparseManyMessagesToOnePeer) {
  Inbox<int64_t> inbox;
  for (const int64_t count : {1, 40}) {
    for (const int num_messages : {2, 500, 9000}) {
      check_sparse(
          *comm_, inbox,
          [=, this](int from, int to) {
            return from == 0 && to == size_ - 1
                       ? std::vector<int64_t>(static_cast<std::size_t>(num_messages), count)
                       : std::vector<int64_t>{};
          },
          num_messages);
    }
  }
}

/// Two messages from the same memory are two messages.
TEST_P(ExchangeContract, SparseSameMemoryTwice) {
  const std::vector<int64_t> data = {3, 1, 4};
  std::vector<Send<int64_t>> sends;
  for (int to = 0; to < size_; ++to) {
    for (const auto part : {std::span(data), std::span(data), std::span(data).first(1)}) {
      sends.push_back({to, part});
    }
  }
  Inbox<int64_t> inbox;
  comm_->sparse_exchange<int64_t>(sends, inbox);
  std::vector<int64_t> expected;
  for (int from = 0; from < size_; ++from) {
    expected.insert(expected.end(), {3, 1, 4, 3, 1, 4, 3});
  }
  EXPECT_EQ(std::ssize(inbox.arrivals()), 3 * size_);
  EXPECT_EQ(std::vector<int64_t>(inbox.data().begin(), inbox.data().end()), expected);
}

TEST_P(ExchangeContract, SparseAllToOneAndOneToAll) {
  Inbox<int64_t> inbox;
  const int last = size_ - 1;
  for (const int64_t count : {3, 3000}) {
    check_sparse(
        *comm_, inbox, [=](int, int to) { return std::vector<int64_t>{to == last ? count : 0}; },
        1);
    check_sparse(
        *comm_, inbox,
        [=](int from, int) {
          return from == last ? std::vector<int64_t>{count} : std::vector<int64_t>{};
        },
        2);
  }
}

/// The peers change from exchange to exchange and come back.
TEST_P(ExchangeContract, SparseWithChangingPeers) {
  Inbox<int64_t> inbox;
  for (int round = 0; round < 24; ++round) {
    const int step = round * 5 % 7;
    check_sparse(
        *comm_, inbox,
        [=, this](int from, int to) {
          return (from + step) % size_ == to || (round % 4 == 3 && to < from)
                     ? std::vector<int64_t>{step + 1, 1000}
                     : std::vector<int64_t>{};
        },
        round);
  }
}

/// A rank whose messages of an earlier exchange are still under way helps them along while it waits
/// in a sparse exchange.
TEST_P(ExchangeContract, SparseMovesAnExchangeThatIsUnderWay) {
  const int right = (rank_ + 1) % size_;
  const int left = (rank_ + size_ - 1) % size_;
  const auto sent = message(rank_, right, 300'000);
  std::vector<int64_t> received(sent.size());
  const std::vector<Send<int64_t>> sends = {{right, sent}};
  const std::vector<Recv<int64_t>> recvs = {{left, received}};
  Ticket ticket = comm_->exchange<int64_t>(sends, recvs, 3);
  Inbox<int64_t> inbox;
  if (rank_ == 0) ticket.wait();  // before its part of the sparse exchange
  check_sparse(
      *comm_, inbox, [](int, int) { return std::vector<int64_t>{2}; }, 9);
  ticket.wait();
  EXPECT_EQ(received, message(left, rank_, 300'000));
}

/// Back to back with one rank late: a fast rank's next headers must not join this exchange.
TEST_P(ExchangeContract, SparseRoundsDoNotMix) {
  Inbox<int64_t> inbox;
  for (int round = 0; round < 60; ++round) {
    if (round % size_ == rank_ && round % 5 == 0) {
      std::this_thread::sleep_for(std::chrono::milliseconds(2));
    }
    check_sparse(
        *comm_, inbox,
        [=](int from, int to) {
          const int hash = (from * 7 + to * 3 + round * 5) % 4;
          return hash == 0 ? std::vector<int64_t>{}
                           : std::vector<int64_t>{hash == 3 ? 600 : hash, round};
        },
        round);
  }
}

TEST_P(ExchangeContract, SparseEndsByTheDeadlineWhenARankIsMissing) {
  if (size_ == 1) GTEST_SKIP() << "needs two ranks";
  use_deadline(0.2);
  const int missing = size_ - 1;
  if (rank_ != missing) {
    const std::vector<int64_t> data(4);
    std::vector<Send<int64_t>> sends;
    if (rank_ == 0) sends.push_back({missing, data});
    Inbox<int64_t> inbox;
    const ScopedPhase phase(*comm_, "dispatch");
    try {
      comm_->sparse_exchange(sends, inbox);
      ADD_FAILURE() << "a rank did not take part";
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ExitCode::watchdog);
      const std::string text = error.what();
      const std::string where = "phase dispatch: sparse_exchange: no answer from ";
      EXPECT_NE(text.find(where), std::string::npos) << text;
      const bool names_it =
          text.find(where + "rank " + std::to_string(missing) + " (to ") != std::string::npos;
      const bool names_none = text.find(where + "some rank") != std::string::npos;
      if (GetParam().sparse_names_missing) {
        EXPECT_TRUE(names_it || (rank_ != 0 && names_none)) << text;
      }
    }
  } else {
    std::this_thread::sleep_for(std::chrono::milliseconds(600));
  }
}

}  // namespace airmoe::comm
