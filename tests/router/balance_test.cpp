#include "router/balance.hpp"

#include <map>

#include <gtest/gtest.h>

#include "comm/base/error.hpp"
#include "router/data.hpp"

namespace airmoe::router {
namespace {

TEST(ExpertUsage, CountsGatesAndWindowOfSeveralMicroBatches) {
  test::Random random(1);
  const int64_t experts = 50;
  ExpertUsage usage(experts);
  std::vector<int64_t> window(experts, 0);
  for (int batch = 0; batch < 5; ++batch) {
    usage.begin_micro_batch();
    std::map<int32_t, std::pair<int64_t, double>> expected;
    int64_t pairs = 0;
    for (int call = 0; call < 3; ++call) {
      std::vector<int32_t> expert(batch == 2 ? 0 : 40);
      for (auto& e : expert) e = static_cast<int32_t>(random.integer(0, experts / 2));
      const auto gate = random.integers(static_cast<int64_t>(expert.size()), 0, 9);  // exact
      usage.add(expert.data(), gate.data(), static_cast<int64_t>(expert.size()));
      for (std::size_t i = 0; i < expert.size(); ++i) {
        ++expected[expert[i]].first;
        expected[expert[i]].second += gate[i];
        ++window[expert[i]];
      }
      pairs += static_cast<int64_t>(expert.size());
    }
    double product = 0.0;
    for (const auto& [e, entry] : expected) product += double(entry.first) * entry.second;
    EXPECT_EQ(usage.count_gate_product(), product);
    EXPECT_EQ(usage.pairs(), pairs);
    for (int32_t e = 0; e < experts; ++e) {
      EXPECT_EQ(usage.count(e), expected.count(e) ? expected[e].first : 0);
    }
    if (batch == 3) {  // flushing twice counts once, and what was counted stays readable
      usage.flush();
      usage.flush();
      EXPECT_EQ(usage.count_gate_product(), product);
    }
  }
  usage.flush();
  EXPECT_EQ(std::vector<int64_t>(usage.window().begin(), usage.window().end()), window);
  usage.begin_window();
  for (const int64_t n : usage.window()) EXPECT_EQ(n, 0);
  usage.begin_micro_batch();
  for (const int64_t n : usage.window()) EXPECT_EQ(n, 0) << "counted in two windows";
}

TEST(ExpertUsage, GateSumsKeepTheirPrecision) {
  ExpertUsage usage(1);
  usage.begin_micro_batch();
  const std::vector<int32_t> expert(100000, 0);
  const std::vector<float> gate(100000, 1.0f / 512.0f);
  for (int call = 0; call < 20; ++call) usage.add(expert.data(), gate.data(), 100000);
  EXPECT_EQ(usage.count_gate_product(), 2e6 * 2e6 / 512.0);
}

TEST(ExpertUsage, AddingToAFlushedMicroBatchIsAnError) {
  ExpertUsage usage(4);
  const int32_t expert = 1;
  const float gate = 1.0f;
  usage.add(&expert, &gate, 1);
  usage.flush();
  EXPECT_THROW(usage.add(&expert, &gate, 1), Error);
  usage.begin_micro_batch();
  usage.add(&expert, &gate, 1);
  EXPECT_EQ(usage.count(1), 1);
}

TEST(ExpertUsage, NoLocalExperts) {
  ExpertUsage usage(0);
  usage.begin_micro_batch();
  usage.add(nullptr, nullptr, 0);
  EXPECT_EQ(usage.count_gate_product(), 0.0);
  EXPECT_TRUE(usage.window().empty());
}

}  // namespace
}  // namespace airmoe::router
