#include <functional>

#include <gtest/gtest.h>

#include "router/data.hpp"
#include "router/select.hpp"

namespace airmoe::router {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr int32_t kGuard = -77;

// Selects from scores(i, t) and compares with sorting each column.
void check(int64_t count, int64_t n, int64_t k,
           const std::function<float(int64_t, int64_t)>& value) {
  SCOPED_TRACE(::testing::Message() << "count " << count << " n " << n << " k " << k);
  const int64_t ld = tile_ld(n), kept = std::min(k, count);
  Buffer<float> tile(count * ld, 0.0f);
  for (int64_t i = 0; i < count; ++i) {
    for (int64_t t = 0; t < n; ++t) tile[i * ld + t] = value(i, t);
  }
  std::vector<int32_t> position(n * kept + 16, kGuard);
  std::vector<float> score(n * kept + 16, 123.0f);
  select_top_k(tile.data(), count, n, k, position.data(), score.data());
  for (int64_t t = 0; t < n; ++t) {
    std::vector<double> column(count);
    for (int64_t i = 0; i < count; ++i) column[i] = tile[i * ld + t];
    const std::vector<int32_t> expected = test::top_indices(column, k);
    ASSERT_EQ(static_cast<int64_t>(expected.size()), kept);
    for (int64_t j = 0; j < kept; ++j) {
      ASSERT_EQ(position[t * kept + j], expected[j]) << "token " << t << " entry " << j;
      const float want = tile[expected[j] * ld + t], got = score[t * kept + j];
      ASSERT_TRUE(got == want || (std::isnan(got) && std::isnan(want)));
    }
  }
  for (int64_t i = n * kept; i < n * kept + 16; ++i) {
    ASSERT_EQ(position[i], kGuard) << "written past the end";
    ASSERT_EQ(score[i], 123.0f) << "written past the end";
  }
}

TEST(SelectTopK, RandomScoresOfEveryShape) {
  test::Random random(1);
  for (const int64_t count : {1, 2, 3, 7, 15, 16, 17, 31, 64, 100, 257, 2048}) {
    for (const int64_t n : {1, 5, 16, 33}) {
      for (const int64_t k : {int64_t{1}, int64_t{2}, count / 2, count - 1, count, count + 9}) {
        if (k >= 1) check(count, n, k, [&](int64_t, int64_t) { return random.normal(); });
      }
    }
  }
}

TEST(SelectTopK, TiesGoToTheEarlierPosition) {
  test::Random random(2);
  for (const int64_t k : {1, 3, 20, 99, 100}) {
    check(100, 17, k, [](int64_t, int64_t) { return 1.5f; });
    check(100, 17, k, [](int64_t, int64_t) { return 0.0f; });
  }
  for (const int64_t count : {50, 333, 2048}) {
    for (const int64_t k : {1, 16, 49}) {
      check(count, 16, k, [&](int64_t, int64_t) { return float(random.integer(-2, 2)); });
      check(count, 16, k, [&](int64_t, int64_t) { return float(random.integer(0, 1)); });
    }
  }
}

TEST(SelectTopK, NegativeZeroEqualsZero) {
  test::Random random(3);
  for (const int64_t k : {1, 10, 99, 150}) {
    check(200, 16, k, [&](int64_t, int64_t) { return random.integer(0, 1) ? 0.0f : -0.0f; });
    check(200, 16, k, [](int64_t, int64_t) { return -0.0f; });
    check(200, 16, k, [&](int64_t, int64_t) {
      const int64_t pick = random.integer(0, 3);
      return pick == 0 ? 0.0f : pick == 1 ? -0.0f : pick == 2 ? 1e-45f : -1e-45f;
    });
  }
}

TEST(SelectTopK, AnyBitsAreOrdered) {
  // Infinities, NaN of both signs, denormals, and magnitudes from 1e-38 to 1e38.
  test::Random random(4);
  const std::vector<float> special = {kInfinity, -kInfinity, kNan,   -kNan, 0.0f,  -0.0f, 1e-42f,
                                      -1e-42f,   3.4e38f,    -3e38f, 1.0f,  -1.0f, 1e30f};
  for (const int64_t count : {5, 40, 700}) {
    for (const int64_t k : {1, 4, 20, 39}) {
      check(count, 16, k, [&](int64_t, int64_t) {
        return special[random.integer(0, static_cast<int64_t>(special.size()) - 1)];
      });
      check(count, 16, k, [&](int64_t, int64_t) {
        return std::bit_cast<float>(static_cast<uint32_t>(random.integer(0, 0xffffffff)));
      });
      check(count, 16, k, [&](int64_t i, int64_t) { return i % 7 == 0 ? 1.0f : kNan; });
      check(count, 16, k, [](int64_t, int64_t) { return kNan; });
      check(count, 16, k, [](int64_t, int64_t) { return -kInfinity; });
      check(count, 16, k, [](int64_t i, int64_t) { return i == 3 ? 1e38f : 1e-7f * float(i); });
    }
  }
}

TEST(SelectTopK, NeighbouringFloatsAreDistinct) {
  test::Random random(5);
  check(1000, 16, 300, [&](int64_t, int64_t) {
    return std::bit_cast<float>(static_cast<uint32_t>(0x3f800000 + random.integer(0, 600)));
  });
}

TEST(SelectTopK, NoTokens) {
  select_top_k(nullptr, 100, 0, 5, nullptr, nullptr);
}

}  // namespace
}  // namespace airmoe::router
