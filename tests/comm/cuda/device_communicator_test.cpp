// What every backend of DeviceCommunicator must do. Every rank derives the whole world's traffic,
// so each knows what must arrive; small integers make sums exact.

#include "comm/cuda/device_communicator.hpp"

#include <memory>
#include <numeric>
#include <string>
#include <vector>

#include "comm/base/cuda/stream.hpp"
#include "comm/mpi_communicator.hpp"
#include "tests/support/mpi_test.hpp"

namespace airmoe::comm::cuda {
namespace {

using airmoe::cuda::Stream;

/// Why a backend cannot be tested here; empty if it can. The same on all ranks of one machine.
std::string obstacle(DeviceTransport transport) {
  std::string reason;
  const int devices = airmoe::cuda::device_count(&reason);
  if (devices == 0) return reason;
  if (transport == DeviceTransport::nccl && !has_nccl()) return "built without NCCL";
  if (transport == DeviceTransport::nccl && devices < test::world().size()) {
    return fmt::format("NCCL needs a GPU per rank: {} for {} ranks", devices, test::world().size());
  }
  if (transport == DeviceTransport::direct && !mpi_reads_device_memory()) {
    return "the MPI library does not read device memory";
  }
  return "";
}

class DeviceContract : public testing::TestWithParam<DeviceTransport> {
 protected:
  void SetUp() override {
    const std::string reason = obstacle(GetParam());
    if (!reason.empty()) GTEST_SKIP() << reason;
    airmoe::cuda::use_device(test::world().rank() % airmoe::cuda::device_count());
    stream_ = std::make_unique<Stream>();
    use_deadline(60);
  }
  void TearDown() override {
    comm_.reset();
    host_.reset();
    test::on_all_ranks(true);
  }
  void use_deadline(double seconds) {
    comm_.reset();
    host_ = make_mpi_communicator({.deadline_seconds = seconds});
    comm_ =
        make_device_communicator(*host_, {.transport = GetParam(), .deadline_seconds = seconds});
    rank_ = comm_->rank();
    size_ = comm_->size();
  }
  /// Element i of what one rank sends to another: no two alike.
  static int32_t value(int from, int to, int64_t i) {
    return static_cast<int32_t>((from * 16 + to) * 100'000 + i + 1);
  }
  template <class T>
  DeviceBuffer<T> on_device(const std::vector<T>& from) {
    DeviceBuffer<T> buffer;
    buffer.upload(from, *stream_);
    stream_->synchronize();
    return buffer;
  }
  template <class T>
  std::vector<T> on_host(const DeviceBuffer<T>& from) {
    std::vector<T> to(from.size());
    comm_->wait(*stream_);
    from.download(to, *stream_);
    comm_->wait(*stream_);
    return to;
  }
  template <class T>
  void check_sums(int64_t count) {
    std::vector<T> own(count), expected(count);
    for (int64_t i = 0; i < count; ++i) {
      own[i] = static_cast<T>((i % 7) * (rank_ + 1) - 3);
      expected[i] = static_cast<T>((i % 7) * size_ * (size_ + 1) / 2 - 3 * size_);
    }
    DeviceBuffer<T> data = on_device(own);
    comm_->all_reduce_sum(data.data(), count, *stream_);
    EXPECT_EQ(on_host(data), expected);
  }
  /// Ragged, with zeros; not symmetric.
  int64_t count_of(int from, int to, int64_t scale) const {
    return (from + 2 * to) % 3 == 0 ? 0 : scale * (1 + (from * 5 + to * 3) % 4);
  }

  std::unique_ptr<Communicator> host_;
  std::unique_ptr<DeviceCommunicator> comm_;
  std::unique_ptr<Stream> stream_;  // not without a device
  int rank_ = 0, size_ = 1;
};

TEST_P(DeviceContract, SumsOverRanks) {
  for (const int64_t count : {0, 1, 1000, 100'003}) {
    check_sums<float>(count);
    check_sums<double>(count);
    check_sums<int32_t>(count);
    check_sums<int64_t>(count);
  }
}

TEST_P(DeviceContract, BroadcastsFromEveryRank) {
  for (int root = 0; root < size_; ++root) {
    std::vector<int32_t> expected(1001);
    std::iota(expected.begin(), expected.end(), value(root, 0, 0));
    DeviceBuffer<int32_t> data =
        on_device(rank_ == root ? expected : std::vector<int32_t>(expected.size(), -1));
    comm_->broadcast(data.data(), data.size(), root, *stream_);
    EXPECT_EQ(on_host(data), expected);
  }
}

TEST_P(DeviceContract, GathersAlsoInPlace) {
  constexpr int64_t kCount = 37;
  std::vector<int32_t> expected;
  for (int r = 0; r < size_; ++r) {
    for (int64_t i = 0; i < kCount; ++i) expected.push_back(value(r, 0, i));
  }
  std::vector<int32_t> own(expected.size(), -1);
  std::copy_n(expected.begin() + rank_ * kCount, kCount, own.begin() + rank_ * kCount);
  DeviceBuffer<int32_t> all = on_device(own);
  DeviceBuffer<int32_t> other(size_ * kCount);
  comm_->all_gather(all.data() + rank_ * kCount, kCount, all.data(), *stream_);
  comm_->all_gather(all.data() + rank_ * kCount, kCount, other.data(), *stream_);
  EXPECT_EQ(on_host(all), expected);
  EXPECT_EQ(on_host(other), expected);
  comm_->all_gather<int32_t>(nullptr, 0, nullptr, *stream_);
}

// Several exchanges follow each other without the test waiting: each must leave the memory of the
// one before alone until the stream has passed it.
TEST_P(DeviceContract, ExchangesRaggedCounts) {
  std::vector<DeviceBuffer<int32_t>> results;
  std::vector<std::vector<int32_t>> expected;
  for (const int64_t scale : {1, 1000, 0, 7, 30'000}) {
    std::vector<int64_t> send_counts, recv_counts;
    std::vector<int32_t> send, recv;
    for (int r = 0; r < size_; ++r) {
      send_counts.push_back(count_of(rank_, r, scale));
      recv_counts.push_back(count_of(r, rank_, scale));
      for (int64_t i = 0; i < send_counts[r]; ++i) send.push_back(value(rank_, r, i));
      for (int64_t i = 0; i < recv_counts[r]; ++i) recv.push_back(value(r, rank_, i));
    }
    const DeviceBuffer<int32_t> source = on_device(send);
    DeviceBuffer<int32_t> moved(source.size());  // filled by the stream, just before
    if (source.size() > 0) {
      AIRMOE_CUDA(cudaMemcpyAsync(moved.data(), source.data(), source.bytes(),
                                  cudaMemcpyDeviceToDevice, *stream_));
    }
    DeviceBuffer<int32_t> received(std::ssize(recv));
    comm_->all_to_all_v(moved.data(), send_counts, received.data(), recv_counts, *stream_);
    if (moved.size() > 0) moved.zero(*stream_);
    results.push_back(std::move(received));
    expected.push_back(recv);
  }
  for (std::size_t i = 0; i < results.size(); ++i) EXPECT_EQ(on_host(results[i]), expected[i]);
}

TEST_P(DeviceContract, LeavesItsOwnPartIfAsked) {
  std::vector<int64_t> send_counts, recv_counts;
  std::vector<int32_t> send, expected;
  for (int r = 0; r < size_; ++r) {
    send_counts.push_back(r == rank_ ? 5 : count_of(rank_, r, 10));
    recv_counts.push_back(r == rank_ ? 5 : count_of(r, rank_, 10));
    for (int64_t i = 0; i < send_counts[r]; ++i) send.push_back(value(rank_, r, i));
    for (int64_t i = 0; i < recv_counts[r]; ++i) {
      expected.push_back(r == rank_ ? -1 : value(r, rank_, i));
    }
  }
  const DeviceBuffer<int32_t> source = on_device(send);
  DeviceBuffer<int32_t> received = on_device(std::vector<int32_t>(expected.size(), -1));
  comm_->all_to_all_v(source.data(), send_counts, received.data(), recv_counts, *stream_, false);
  EXPECT_EQ(on_host(received), expected);
}

// Rows of a table go to ranks by plan, some to several and some twice, and an answer to each comes
// back. Widths of 2, 6, 16 and 256 bytes.
TEST_P(DeviceContract, SendsRowsByPlanAndReturnsAnswers) {
  constexpr int64_t kRows = 50;
  RowPlan plan;  // given again for every width
  for (const int64_t width : {1, 3, 8, 128}) {
    SCOPED_TRACE(width);
    const auto element = [&](int owner, int64_t row, int64_t column) {
      return static_cast<uint16_t>(owner * 10'000 + row * 150 + column);
    };
    const auto row_of = [&](int from, int to, int64_t i) {
      return (i * 7 + from + 3 * to) % kRows;
    };
    std::vector<uint16_t> table, expected, expected_answer;
    for (int64_t row = 0; row < kRows; ++row) {
      for (int64_t c = 0; c < width; ++c) table.push_back(element(rank_, row, c));
    }
    std::vector<int64_t> counts;
    std::vector<int32_t> rows;
    for (int r = 0; r < size_; ++r) {
      counts.push_back(count_of(rank_, r, 20));
      for (int64_t i = 0; i < counts[r]; ++i) {
        rows.push_back(static_cast<int32_t>(row_of(rank_, r, i)));
        for (int64_t c = 0; c < width; ++c) {
          expected_answer.push_back(static_cast<uint16_t>(element(rank_, rows.back(), c) ^ 0x5555));
        }
      }
      for (int64_t i = 0; i < count_of(r, rank_, 20); ++i) {
        for (int64_t c = 0; c < width; ++c) {
          expected.push_back(element(r, row_of(r, rank_, i), c));
        }
      }
    }
    const DeviceBuffer<int32_t> device_rows = on_device(rows);
    const DeviceBuffer<uint16_t> device_table = on_device(table);
    comm_->plan_rows(counts, device_rows.data(), plan);
    ASSERT_EQ(plan.sent, std::ssize(rows));
    ASSERT_EQ(plan.received * width, std::ssize(expected));
    DeviceBuffer<uint16_t> received(plan.received * width);
    comm_->exchange_rows(plan, device_table.data(), width, received.data(), *stream_);
    std::vector<uint16_t> answer = on_host(received);
    EXPECT_EQ(answer, expected);
    for (uint16_t& x : answer) x ^= 0x5555;
    const DeviceBuffer<uint16_t> answers = on_device(answer);
    DeviceBuffer<uint16_t> returned(plan.sent * width);
    comm_->return_rows(plan, answers.data(), width, returned.data(), *stream_);
    EXPECT_EQ(on_host(returned), expected_answer);
  }
}

TEST_P(DeviceContract, CountsWhatItSendsByPhase) {
  int64_t sent = 0, messages = 0;
  std::vector<int64_t> send_counts, recv_counts;
  for (int r = 0; r < size_; ++r) {
    send_counts.push_back(count_of(rank_, r, 10));
    recv_counts.push_back(count_of(r, rank_, 10));
    if (r == rank_ || send_counts[r] == 0) continue;
    sent += 8 * send_counts[r];
    ++messages;
  }
  DeviceBuffer<double> send(std::accumulate(send_counts.begin(), send_counts.end(), int64_t{0}));
  DeviceBuffer<double> recv(std::accumulate(recv_counts.begin(), recv_counts.end(), int64_t{0}));
  if (send.size() > 0) send.zero(*stream_);
  {
    const ScopedPhase phase(*host_, "dispatch");
    comm_->all_to_all_v(send.data(), send_counts, recv.data(), recv_counts, *stream_);
    comm_->all_to_all_v(send.data(), send_counts, recv.data(), recv_counts, *stream_);
  }
  comm_->wait(*stream_);
  const PhaseStats stats = comm_->stats("dispatch");
  EXPECT_EQ(stats.calls, 2);
  EXPECT_EQ(stats.bytes_sent, 2 * sent);
  EXPECT_EQ(stats.messages_sent, 2 * messages);
  EXPECT_EQ(comm_->stats("combine").calls, 0);
  comm_->reset_stats();
  EXPECT_EQ(comm_->stats("dispatch").bytes_sent, 0);
}

TEST_P(DeviceContract, RefusesCountsThatDoNotFit) {
  const std::vector<int64_t> good(static_cast<std::size_t>(size_), 0);
  std::vector<int64_t> negative = good, longer = good, own = good;
  negative[0] = -1;
  longer.push_back(0);
  own[rank_] = 1;
  for (const auto& bad : {negative, longer, own}) {
    EXPECT_THROW(comm_->all_to_all_v<float>(nullptr, bad, nullptr, good, *stream_), Error);
  }
  EXPECT_THROW(comm_->broadcast<float>(nullptr, 1, size_, *stream_), Error);
}

TEST_P(DeviceContract, NamesRankAndPhaseWhenAPeerStaysAway) {
  if (size_ == 1) GTEST_SKIP() << "needs a peer";
  check_sums<float>(100);  // connections are there
  use_deadline(1.5);
  check_sums<float>(100);
  if (rank_ != 0) {
    const ScopedPhase phase(*host_, "missing");
    DeviceBuffer<float> data(1000);
    data.zero(*stream_);
    try {
      comm_->all_reduce_sum(data.data(), data.size(), *stream_);
      comm_->wait(*stream_);
      ADD_FAILURE() << "a sum without rank 0";
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ExitCode::watchdog);
      const std::string text = error.what();
      EXPECT_NE(text.find(fmt::format("rank {}: phase missing", rank_)), std::string::npos) << text;
    }
  }
  test::on_all_ranks(true);
}

std::string name_of(const testing::TestParamInfo<DeviceTransport>& info) {
  constexpr const char* kNames[] = {"automatic", "nccl", "staged", "direct"};
  return kNames[static_cast<int>(info.param)];
}
INSTANTIATE_TEST_SUITE_P(Backends, DeviceContract,
                         testing::Values(DeviceTransport::nccl, DeviceTransport::staged,
                                         DeviceTransport::direct),
                         name_of);

TEST(DeviceTransport, RefusesNcclOnASharedGpuOnEveryRank) {
  std::string reason;
  const int devices = airmoe::cuda::device_count(&reason);
  if (devices == 0) GTEST_SKIP() << reason;
  if (test::world().size() == 1) GTEST_SKIP() << "needs two ranks";
  airmoe::cuda::use_device(0);
  try {
    make_device_communicator(test::world(), {.transport = DeviceTransport::nccl});
    ADD_FAILURE() << "made";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::config);
    EXPECT_NE(std::string(error.what()).find("ranks 0 and 1 share a GPU"), std::string::npos);
  }
  EXPECT_STREQ(make_device_communicator(test::world())->backend(), "staged");
}

}  // namespace
}  // namespace airmoe::comm::cuda
