// Which rank takes a codeword's tokens; exchanges themselves are tested with the engine.

#include "scheduler/cuda/token_exchange.hpp"

#include <cmath>
#include <cstdlib>
#include <vector>

#include <gtest/gtest.h>

#include "comm/base/random.hpp"

namespace airmoe::scheduler::cuda {
namespace {

TEST(CodewordBalance, LoadsRanksAlike) {
  CodewordBalance balance;
  const RandomStream random(5, Purpose::test_data);
  for (const int ranks : {1, 2, 3, 8}) {
    std::vector<int64_t> tokens(512);
    for (std::size_t g = 0; g < tokens.size(); ++g) {
      tokens[g] = static_cast<int64_t>(std::exp(6 * random.uniform(g))) - 1;  // 0 to 400
    }
    const auto owners = balance.owners(tokens, ranks);
    std::vector<int64_t> load(static_cast<std::size_t>(ranks), 0);
    int64_t total = 0;
    for (std::size_t g = 0; g < tokens.size(); ++g) {
      ASSERT_TRUE(owners[g] >= 0 && owners[g] < ranks);
      load[owners[g]] += tokens[g];
      total += tokens[g];
    }
    // Behind the last class, single tokens, nothing is left to even out.
    for (const int64_t one : load) EXPECT_LE(std::abs(one * ranks - total), 2 * ranks) << ranks;
  }
  EXPECT_EQ(balance.owners(std::vector<int64_t>{}, 2).size(), 0u);
  const auto owners = balance.owners(std::vector<int64_t>{5, 1'000'000, 6, 0, 900'000}, 2);
  EXPECT_NE(owners[1], owners[4]);
  EXPECT_EQ(owners[0], owners[4]);
  EXPECT_EQ(owners[2], owners[4]);
}

}  // namespace
}  // namespace airmoe::scheduler::cuda
