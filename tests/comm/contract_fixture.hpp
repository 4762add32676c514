#pragma once
// What every backend of Communicator must do. A backend's test file instantiates the three suites
// with one or more Backends; every rank derives the whole world's traffic, so each knows what must
// arrive.

#include <algorithm>
#include <chrono>
#include <functional>
#include <memory>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "comm/base/error.hpp"
#include "comm/communicator.hpp"
#include "comm/delay_communicator.hpp"
#include "comm/stats_communicator.hpp"
#include "tests/support/mpi_test.hpp"

namespace airmoe::comm {

struct Backend {
  std::string name;
  /// Collective: a communicator over all ranks of the test.
  std::function<std::shared_ptr<Communicator>(double deadline_seconds)> make;
  /// A sparse exchange whose wait ends by the deadline names the missing rank where it had
  /// something to send to it. False: it may name a rank that waits for the missing one.
  bool sparse_names_missing = true;
};

inline std::ostream& operator<<(std::ostream& out, const Backend& b) {
  return out << b.name;
}
inline std::string backend_name(const ::testing::TestParamInfo<Backend>& info) {
  return info.param.name;
}

/// Statistics over a rank that is late, over `inner`.
inline std::shared_ptr<Communicator> decorated(std::shared_ptr<Communicator> inner) {
  struct Stack {
    explicit Stack(std::shared_ptr<Communicator> backend)
        : inner(std::move(backend)),
          delay(*inner, std::chrono::microseconds(inner->rank() == inner->size() / 2 ? 1500 : 0)),
          stats(delay) {}
    std::shared_ptr<Communicator> inner;
    DelayCommunicator delay;
    StatsCommunicator stats;
  };
  const auto stack = std::make_shared<Stack>(std::move(inner));
  return {stack, &stack->stats};
}

/// Each test gets a new communicator, so that one that ended in an Error does no harm.
class ContractTest : public ::testing::TestWithParam<Backend> {
 protected:
  void SetUp() override { use_deadline(60); }
  void TearDown() override {
    comm_.reset();
    test::on_all_ranks(true);
  }
  void use_deadline(double seconds) {
    comm_ = GetParam().make(seconds);
    rank_ = comm_->rank();
    size_ = comm_->size();
  }
  /// Element i of the message from one rank to another: no two alike.
  static int64_t value(int64_t from, int64_t to, int64_t i) {
    return (from * 64 + to) * 1'000'000 + i + 1;
  }
  static std::vector<int64_t> message(int from, int to, int64_t count) {
    std::vector<int64_t> m(static_cast<std::size_t>(count));
    for (int64_t i = 0; i < count; ++i) m[i] = value(from, to, i);
    return m;
  }

  std::shared_ptr<Communicator> comm_;
  int rank_ = 0;
  int size_ = 1;
};

class CollectiveContract : public ContractTest {};
class ExchangeContract : public ContractTest {};
class SparseContract : public ContractTest {};

}  // namespace airmoe::comm
