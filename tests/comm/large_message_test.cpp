// Messages beyond the counts of MPI's int, and messages cut into the smallest pieces.

#include <cstring>
#include <fstream>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "comm/base/buffer.hpp"
#include "comm/mpi_communicator.hpp"
#include "comm/ucx_communicator.hpp"
#include "tests/support/mpi_test.hpp"

namespace airmoe::comm {
namespace {

constexpr int64_t kLargeBytes = (int64_t{1} << 31) + 17;

/// Word i of the message. No two are alike, so that a piece in a wrong place shows.
uint64_t word(int64_t i) {
  return static_cast<uint64_t>(i + 1) * 0x9E3779B97F4A7C15u;
}

void fill(std::span<uint8_t> data) {
  const int64_t words = std::ssize(data) / 8;
  uint8_t* to = data.data();
  for (int64_t i = 0; i < words; ++i, to += 8) {
    const uint64_t w = word(i);
    std::memcpy(to, &w, 8);
  }
  const uint64_t last = word(words);
  if (data.size() % 8 != 0) std::memcpy(to, &last, data.size() % 8);
}

int64_t count_wrong(std::span<const uint8_t> data) {
  const int64_t words = std::ssize(data) / 8;
  const uint8_t* from = data.data();
  int64_t wrong = 0;
  for (int64_t i = 0; i < words; ++i, from += 8) {
    uint64_t w;
    std::memcpy(&w, from, 8);
    wrong += w != word(i) ? 1 : 0;
  }
  const uint64_t last = word(words);
  if (data.size() % 8 != 0) wrong += std::memcmp(from, &last, data.size() % 8) != 0 ? 1 : 0;
  return wrong;
}

/// What the kernel says could be had without swapping; 0 where it does not say.
int64_t available_bytes() {
  std::ifstream file("/proc/meminfo");
  std::string word;
  while (file >> word) {
    if (word != "MemAvailable:") continue;
    int64_t kilobytes = 0;
    file >> kilobytes;
    return kilobytes * 1024;
  }
  return 0;
}

struct Backend {
  const char* name;
  bool exists;
  /// Collective. 0: the default pieces.
  std::function<std::unique_ptr<Communicator>(int64_t max_message_bytes)> make;
};

std::ostream& operator<<(std::ostream& out, const Backend& b) {
  return out << b.name;
}

std::unique_ptr<Communicator> make_mpi(int64_t max_message_bytes) {
  MpiOptions options{.deadline_seconds = 100};
  if (max_message_bytes > 0) options.max_message_bytes = max_message_bytes;
  return make_mpi_communicator(options);
}

std::unique_ptr<Communicator> make_ucx(int64_t max_message_bytes) {
  UcxOptions options{.deadline_seconds = 100};
  if (max_message_bytes > 0) options.max_message_bytes = max_message_bytes;
  return make_ucx_communicator(options);
}

class LargeMessage : public ::testing::TestWithParam<Backend> {
 protected:
  void SetUp() override {
    if (!GetParam().exists) GTEST_SKIP() << "this build has no " << GetParam().name;
  }
};

// From rank 0 to rank 1, then from rank 0 to all.
void send_both_ways(Communicator& comm, int64_t bytes) {
  Buffer<uint8_t> data(comm.rank() < 2 ? bytes : 0);
  std::vector<Send<uint8_t>> sends;
  std::vector<Recv<uint8_t>> recvs;
  if (comm.rank() == 0) {
    fill(data.span());
    sends.push_back({1, data.span()});
  } else if (comm.rank() == 1) {
    data.fill(0);
    recvs.push_back({0, data.span()});
  }
  comm.exchange<uint8_t>(sends, recvs, 0).wait();
  EXPECT_EQ(count_wrong(data.span()), 0);
  if (comm.rank() != 0) {
    data.ensure(bytes);
    data.fill(0);
  }
  comm.broadcast(data.span(), 0);
  EXPECT_EQ(count_wrong(data.span()), 0);
}

TEST_P(LargeMessage, MoreThanTwoGibibytes) {
  const int64_t needed = test::world().size() * kLargeBytes + (int64_t{2} << 30);
  const bool enough = test::on_all_ranks(available_bytes() >= needed);
  if (!enough) {
    GTEST_SKIP() << available_bytes() << " bytes of memory are free, " << needed << " are needed";
  }
  send_both_ways(*GetParam().make(0), kLargeBytes);
}

TEST_P(LargeMessage, TheSmallestPieces) {
  const auto comm = GetParam().make(8);
  for (const int64_t bytes : {1, 7, 8, 9, 16, 4099}) send_both_ways(*comm, bytes);
}

INSTANTIATE_TEST_SUITE_P(Backends, LargeMessage,
                         ::testing::Values(Backend{"mpi", true, make_mpi},
                                           Backend{"ucx", has_ucx(), make_ucx}),
                         [](const auto& test) { return std::string(test.param.name); });

}  // namespace
}  // namespace airmoe::comm
