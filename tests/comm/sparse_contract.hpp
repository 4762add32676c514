#pragma once
// Part of communicator_contract.hpp: sparse exchange.

#include <chrono>
#include <thread>

#include "tests/comm/contract_fixture.hpp"

namespace airmoe::comm {

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

TEST_P(SparseContract, WithNobodySpeaking) {
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

TEST_P(SparseContract, ShortAndLongMessagesAndSelf) {
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

TEST_P(SparseContract, ManyMessagesToOnePeer) {
  Inbox<int64_t> inbox;
  for (const auto& [num_messages, count] : {std::pair{2, 40}, {500, 1}, {500, 40}, {9000, 1}}) {
    const auto sizes = [=, n = num_messages, least = int64_t{count}, last = size_ - 1](int from,
                                                                                       int to) {
      std::vector<int64_t> counts(to == last ? static_cast<std::size_t>(n + from) : 0, least);
      for (std::size_t k = 0; k < counts.size(); ++k) {
        counts[k] += (static_cast<int64_t>(k) * 7 + from) % 4;
      }
      return counts;
    };
    check_sparse(*comm_, inbox, sizes, num_messages);
  }
}

/// Two messages from the same memory are two messages.
TEST_P(SparseContract, SameMemoryTwice) {
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

TEST_P(SparseContract, AllToOneAndOneToAll) {
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
TEST_P(SparseContract, WithChangingPeers) {
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
TEST_P(SparseContract, MovesAnExchangeThatIsUnderWay) {
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
TEST_P(SparseContract, RoundsDoNotMix) {
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

TEST_P(SparseContract, EndsByTheDeadlineWhenARankIsMissing) {
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
  }
  test::on_all_ranks(true);  // where the missing rank is meanwhile
}

}  // namespace airmoe::comm
