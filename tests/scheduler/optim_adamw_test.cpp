// AdamW, the gradient norm and the schedules.

#include <cmath>

#include <gtest/gtest.h>

#include "comm/base/error.hpp"
#include "comm/base/random.hpp"
#include "scheduler/optim/adamw.hpp"
#include "scheduler/optim/gradient_norm.hpp"
#include "scheduler/optim/learning_rate.hpp"

namespace airmoe::scheduler {
namespace {

/// Textbook AdamW of one element in double.
struct Oracle {
  double value, moment1 = 0, moment2 = 0;
  void step(double g, double rate, double b1, double b2, double epsilon, double decay, int t) {
    moment1 = b1 * moment1 + (1 - b1) * g;
    moment2 = b2 * moment2 + (1 - b2) * g * g;
    const double m = moment1 / (1 - std::pow(b1, t)), v = moment2 / (1 - std::pow(b2, t));
    value -= rate * (m / (std::sqrt(v) + epsilon) + decay * value);
  }
};

void check_against_oracle(bool decay) {
  ParameterSet parameters;
  Parameter& p = parameters.add_replicated("/w", {7, 5}, decay);
  initialise_normal(p, 1, 0.5f);
  const AdamWOptions options{0.8f, 0.9f, 1e-3f, 0.3f};
  std::vector<Oracle> oracles;
  for (const float v : p.value) oracles.push_back({v});
  for (int t = 1; t <= 30; ++t) {
    const float rate = 0.01f / static_cast<float>(t), scale = 0.25f;
    RandomStream(2, Purpose::test_data, static_cast<uint32_t>(t))
        .fill_normal(p.gradient.data(), p.local_size(), 0, t < 20 ? 1.0f : 1e-4f);
    for (int64_t i = 0; i < p.local_size(); ++i) {
      oracles[i].step(static_cast<double>(scale * p.gradient[i]), rate, 0.8f, 0.9f, 1e-3f,
                      decay ? 0.3 : 0.0, t);
    }
    adamw_step(parameters, options, rate, t, scale);
    for (int64_t i = 0; i < p.local_size(); ++i) {
      ASSERT_NEAR(p.value[i], oracles[i].value, 1e-6) << "step " << t;
      ASSERT_EQ(p.gradient[i], 0.0f);
    }
  }
}

TEST(Optim, AdamWEqualsTheOracle) {
  check_against_oracle(true);
}
TEST(Optim, AdamWWithoutDecayEqualsTheOracle) {
  check_against_oracle(false);
}

TEST(Optim, FirstStepMovesByTheRateAgainstTheSign) {
  ParameterSet parameters;
  Parameter& p = parameters.add_replicated("/w", {3}, false);
  p.value.fill(1.0f);
  const float gradients[] = {1e-3f, -50.0f, 0.0f};
  std::copy(gradients, gradients + 3, p.gradient.begin());
  adamw_step(parameters, {}, 0.5f, 1, 1.0f);
  EXPECT_NEAR(p.value[0], 0.5f, 1e-5);
  EXPECT_NEAR(p.value[1], 1.5f, 1e-6);
  EXPECT_EQ(p.value[2], 1.0f);
  EXPECT_THROW(adamw_step(parameters, {}, 0.5f, 0, 1.0f), Error);
}

// An expert's row gets the same bits whichever rank holds it.
TEST(Optim, AdamWDoesNotDependOnTheShard) {
  const BlockPartition whole{11, 1}, thirds{11, 3};
  ParameterSet all;
  Parameter& p = all.add_by_expert("/w", {11, 3}, whole, 0, true);
  initialise_normal(p, 1, 1.0f);
  RandomStream(2, Purpose::test_data).fill_normal(p.gradient.data(), 33, 0, 1.0f);
  std::vector<float> gradient(p.gradient.begin(), p.gradient.end());
  adamw_step(all, {}, 0.1f, 1, 0.3f);
  for (int64_t rank = 0; rank < 3; ++rank) {
    ParameterSet part;
    Parameter& q = part.add_by_expert("/w", {11, 3}, thirds, rank, true);
    initialise_normal(q, 1, 1.0f);
    std::copy_n(gradient.data() + q.row_begin * 3, q.local_size(), q.gradient.data());
    adamw_step(part, {}, 0.1f, 1, 0.3f);
    for (int64_t i = 0; i < q.local_size(); ++i) {
      ASSERT_EQ(q.value[i], p.value[q.row_begin * 3 + i]);
      ASSERT_EQ(q.moment2[i], p.moment2[q.row_begin * 3 + i]);
    }
  }
}

TEST(Optim, SumOfSquaresCountsReplicatedOnRequest) {
  ParameterSet parameters;
  Parameter& dense = parameters.add_replicated("/dense", {21}, true);
  Parameter& expert = parameters.add_by_expert("/expert", {4, 3}, {4, 2}, 1, true);
  double dense_sum = 0.0, expert_sum = 0.0;
  for (int64_t i = 0; i < 21; ++i) {
    dense.gradient[i] = static_cast<float>(i - 9);
    dense_sum += static_cast<double>((i - 9) * (i - 9));
  }
  for (int64_t i = 0; i < 6; ++i) {
    expert.gradient[i] = static_cast<float>(2 * i);
    expert_sum += static_cast<double>(4 * i * i);
  }
  EXPECT_EQ(local_sum_of_squares(parameters, true), dense_sum + expert_sum);
  EXPECT_EQ(local_sum_of_squares(parameters, false), expert_sum);
  dense.gradient[0] = 1e30f;  // its square is beyond fp32
  EXPECT_NEAR(local_sum_of_squares(parameters, true), 1e60, 1e54);
  dense.gradient[0] = std::nanf("");
  EXPECT_TRUE(std::isnan(local_sum_of_squares(parameters, true)));
}

TEST(Optim, ClipFactor) {
  EXPECT_EQ(clip_factor(4.0, 1.0), 0.25);
  EXPECT_EQ(clip_factor(0.5, 1.0), 1.0);
  EXPECT_EQ(clip_factor(0.0, 1.0), 1.0);
  EXPECT_EQ(clip_factor(4.0, 0.0), 1.0);
}

TEST(Optim, LinearSchedule) {
  const LearningRateSchedule s{ScheduleShape::linear, 2.0, 4, 14, 0.0};
  const double expected[] = {0.5, 1.0, 1.5, 2.0, 2.0, 1.8, 1.6};
  for (int64_t step = 0; step < 7; ++step) EXPECT_DOUBLE_EQ(s.at(step), expected[step]);
  EXPECT_NEAR(s.at(13), 0.2, 1e-12);
  EXPECT_EQ(s.at(14), 0.0);
  EXPECT_EQ(s.at(1000), 0.0);
}

TEST(Optim, CosineSchedule) {
  const LearningRateSchedule s{ScheduleShape::cosine, 1.0, 0, 8, 0.1};
  EXPECT_DOUBLE_EQ(s.at(0), 1.0);
  EXPECT_NEAR(s.at(4), 0.55, 1e-12);
  EXPECT_NEAR(s.at(2), 0.1 + 0.9 * (0.5 + 0.25 * std::sqrt(2.0)), 1e-12);
  EXPECT_DOUBLE_EQ(s.at(8), 0.1);
  EXPECT_DOUBLE_EQ(s.at(9), 0.1);
}

TEST(Optim, ScheduleOfWarmupOnly) {
  const LearningRateSchedule s{ScheduleShape::linear, 1.0, 2, 2, 0.25};
  EXPECT_NO_THROW(s.validate());
  EXPECT_DOUBLE_EQ(s.at(1), 1.0);
  EXPECT_DOUBLE_EQ(s.at(2), 0.25);
}

TEST(Optim, ScheduleErrorsNameTheOption) {
  const auto message = [](LearningRateSchedule s) -> std::string {
    try {
      s.validate();
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ExitCode::config);
      return error.what();
    }
    return "no error";
  };
  EXPECT_EQ(message({ScheduleShape::linear, 1.0, 20, 10, 0.0}),
            "--warmup 20 is longer than --schedule-steps 10: choose a shorter one");
  EXPECT_NE(message({ScheduleShape::linear, -1.0, 0, 10, 0.0}).find("--lr -1"), std::string::npos);
  EXPECT_NE(message({ScheduleShape::linear, 1.0, 0, 0, 0.0}).find("--schedule-steps 0"),
            std::string::npos);
  EXPECT_NE(message({ScheduleShape::linear, 1.0, 0, 10, 2.0}).find("[0, 1]"), std::string::npos);
  EXPECT_THROW(parse_schedule_shape("step"), Error);
  EXPECT_EQ(parse_schedule_shape("cosine"), ScheduleShape::cosine);
}

}  // namespace
}  // namespace airmoe::scheduler
