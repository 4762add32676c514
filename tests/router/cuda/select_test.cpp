#include "router/cuda/select.hpp"

#include <algorithm>
#include <optional>
#include <set>

#include <gtest/gtest.h>

#include "router/cuda/device_data.hpp"
#include "router/cuda/order.hpp"
#include "router/select.hpp"

namespace airmoe::router::cuda {
namespace {

using test::Random;
using test::Stream;

struct Shape {
  int64_t tokens, dim, experts, codewords, shortlist, active;
};

std::ostream& operator<<(std::ostream& out, const Shape& s) {
  return out << "n " << s.tokens << " d " << s.dim << " E " << s.experts << " G " << s.codewords
             << " M " << s.shortlist << " K " << s.active;
}

// Inputs on the host, as the device sees them.
struct Case {
  Shape shape;
  std::vector<float> hidden, unit;
  std::vector<int32_t> codeword, ids;
  std::optional<RandomStream> noise;
  float stddev = 0.0f;
  int64_t first_token = 0;

  const float* token(int64_t t) const { return &hidden[t * shape.dim]; }
  const int32_t* list(int64_t t) const { return &ids[codeword[t] * shape.shortlist]; }

  // The jitter of each candidate of a token.
  std::vector<float> jitter(int64_t t) const {
    std::vector<float> x(shape.shortlist, 0.0f);
    const auto id = static_cast<int32_t>(first_token + t);
    for (int64_t i = 0; noise && i < shape.shortlist; ++i) {
      add_jitter(&x[i], &id, 1, stddev, *noise, static_cast<uint32_t>(list(t)[i]),
                 static_cast<uint32_t>(codeword[t]));
    }
    return x;
  }
};

std::vector<int32_t> random_list(Random& random, int64_t experts, int64_t length) {
  std::vector<int32_t> all(experts);
  std::iota(all.begin(), all.end(), 0);
  for (int64_t i = 0; i < length; ++i) std::swap(all[i], all[random.integer(i, experts - 1)]);
  all.resize(length);
  std::sort(all.begin(), all.end());
  return all;
}

// Clustered tokens and experts, few codewords with many tokens.
Case clustered_case(uint32_t seed, const Shape& s) {
  Random random(seed);
  Case c{s, {}, {}, {}, {}, {}};
  const auto centre = test::centres(random, 12, s.dim);
  c.hidden = test::clustered(random, centre, s.tokens, s.dim, 1.0f, 12.0f);
  c.unit = test::clustered(random, centre, s.experts, s.dim, 0.7f, 1.0f);
  c.codeword.resize(s.tokens);
  for (auto& g : c.codeword) {
    const double x = static_cast<double>(random.integer(0, 999)) / 1000.0;
    g = static_cast<int32_t>(x * x * static_cast<double>(s.codewords));
  }
  for (int64_t g = 0; g < s.codewords; ++g) {
    const auto list = random_list(random, s.experts, s.shortlist);
    c.ids.insert(c.ids.end(), list.begin(), list.end());
  }
  return c;
}

// Results by token.
struct Found {
  std::vector<uint16_t> position;
  std::vector<float> gate, log_sum_exp;
};

template <class T>
Found select(Case& c, const Stream& stream, SelectWorkspace& workspace) {
  const Shape& s = c.shape;
  const auto hidden = test::to_device(test::rounded<T>(c.hidden), stream);
  const auto unit = test::to_device(test::rounded<T>(c.unit), stream);
  const auto codeword = test::to_device(c.codeword, stream);
  const auto ids = test::to_device(c.ids, stream);
  DeviceOrder order;
  order.build(codeword.data(), s.tokens, s.codewords, stream);
  const airmoe::cuda::JitterTable table(stream);
  airmoe::cuda::JitterKey key;
  if (c.noise) key = table.key(*c.noise, c.stddev, c.first_token);
  constexpr int64_t kGuard = 64;
  test::DeviceBuffer<uint16_t> position(s.tokens * s.active + kGuard);
  test::DeviceBuffer<float> gate(s.tokens * s.active + kGuard), sums(s.tokens);
  position.zero(stream);
  gate.zero(stream);
  select_experts<T>(hidden.data(), s.dim, order.view(), {s.shortlist, ids.data(), ids.data()},
                    unit.data(), s.active, c.noise ? &key : nullptr,
                    {position.data(), gate.data(), sums.data()}, workspace, stream);
  const auto token = test::to_host(order.view().token, s.tokens, stream);
  const auto all_positions = test::to_host(position.data(), position.size(), stream);
  const auto all_gates = test::to_host(gate.data(), gate.size(), stream);
  const auto all_sums = test::to_host(sums.data(), s.tokens, stream);
  for (int64_t i = 0; i < kGuard; ++i) {
    EXPECT_EQ(all_positions[s.tokens * s.active + i], 0) << "written past the end";
    EXPECT_EQ(all_gates[s.tokens * s.active + i], 0.0f) << "written past the end";
  }
  Found found;
  found.position.resize(s.tokens * s.active);
  found.gate.resize(s.tokens * s.active);
  found.log_sum_exp.resize(s.tokens);
  for (int64_t place = 0; place < s.tokens; ++place) {
    std::copy_n(&all_positions[place * s.active], s.active,
                &found.position[token[place] * s.active]);
    std::copy_n(&all_gates[place * s.active], s.active, &found.gate[token[place] * s.active]);
    found.log_sum_exp[token[place]] = all_sums[place];
  }
  return found;
}

// Against the functions of the host: the same positions, gates to 1e-6.
void check_float(Case c, SelectWorkspace& workspace) {
  const Stream stream;
  const Shape& s = c.shape;
  SCOPED_TRACE(::testing::Message() << s << (c.noise ? " with jitter" : ""));
  const Found found = select<float>(c, stream, workspace);
  PanelWorkspace panel;
  CutWorkspace cut_workspace;
  Buffer<float> tile(s.shortlist * tile_ld(1), 0.0f);
  std::vector<int32_t> position(s.active);
  std::vector<float> score(s.active);
  for (int64_t t = 0; t < s.tokens; ++t) {
    panel_scores({c.unit.data(), c.list(t), s.shortlist, s.dim, s.dim}, {c.token(t), 1, s.dim},
                 tile.data(), panel);
    const auto jitter = c.jitter(t);
    for (int64_t i = 0; i < s.shortlist; ++i) tile[i * tile_ld(1)] += jitter[i];
    select_top_k(tile.data(), s.shortlist, 1, s.active, position.data(), score.data());
    const int64_t size = s.active;
    Cut cut{};
    int32_t taken = 0;
    cut_top_k(score, {&size, 1}, s.active, {&cut, 1}, {&taken, 1}, cut_workspace);
    ASSERT_EQ(
        apply_cut(cut, position.data(), score.data(), s.active, position.data(), score.data()),
        s.active);
    for (int64_t p = 0; p < s.active; ++p) {
      ASSERT_EQ(found.position[t * s.active + p], position[p]) << "token " << t << " pair " << p;
      ASSERT_NEAR(found.gate[t * s.active + p], score[p], 1e-6 * score[p] + 1e-37)
          << "token " << t << " pair " << p;
    }
    ASSERT_NEAR(found.log_sum_exp[t], cut.max - std::log(cut.inverse_sum), 1e-5);
  }
}

// Against double precision on the same bf16 inputs: no selected score is more than a step of the
// keys below one that was left out, and gates are the softmax over the selected to such steps.
// Looks at every token_step-th token.
void check_bf16(Case c, SelectWorkspace& workspace, int64_t token_step = 1) {
  const Stream stream;
  const Shape& s = c.shape;
  SCOPED_TRACE(::testing::Message() << s << (c.noise ? " with jitter" : ""));
  const Found found = select<__nv_bfloat16>(c, stream, workspace);
  for (int64_t t = 0; t < s.tokens; t += token_step) {
    const double length = std::sqrt(router::test::dot(c.token(t), c.token(t), s.dim));
    const double step = (1.02 * length + 5.0 * c.stddev) / 16383.0;
    const auto jitter = c.jitter(t);
    std::vector<double> score(s.shortlist);
    for (int64_t i = 0; i < s.shortlist; ++i) {
      score[i] = router::test::dot(c.token(t), &c.unit[c.list(t)[i] * s.dim], s.dim) + jitter[i];
    }
    const uint16_t* position = &found.position[t * s.active];
    std::vector<char> selected(s.shortlist, 0);
    double least = 1e30, sum = 0.0, best_left = -1e30;
    for (int64_t p = 0; p < s.active; ++p) {
      ASSERT_LT(position[p], s.shortlist);
      if (p > 0) {
        ASSERT_LT(position[p - 1], position[p]) << "token " << t;
      }
      selected[position[p]] = 1;
      least = std::min(least, score[position[p]]);
      sum += std::exp(score[position[p]]);
    }
    for (int64_t i = 0; i < s.shortlist; ++i) {
      if (!selected[i]) best_left = std::max(best_left, score[i]);
    }
    ASSERT_GE(least, best_left - 2.0 * step - 1e-5 * length) << "token " << t;
    for (int64_t p = 0; p < s.active; ++p) {
      const double expected = std::exp(score[position[p]]) / sum;
      ASSERT_NEAR(found.gate[t * s.active + p], expected, (2.5 * step + 1e-4) * expected)
          << "token " << t << " pair " << p;
    }
    ASSERT_NEAR(found.log_sum_exp[t], std::log(sum), 1.5 * step + 1e-4);
  }
}

const std::vector<Shape> kShapes = {
    {0, 64, 300, 4, 100, 10},       {1, 64, 300, 1, 1, 1},
    {40, 8, 300, 3, 77, 5},         {100, 64, 2000, 5, 300, 40},
    {70, 96, 2000, 3, 300, 300},     // K = M
    {150, 256, 5000, 7, 2048, 512},  // the usual one
    {90, 256, 5000, 1, 2048, 512},   // all tokens on one codeword
    {33, 40, 4000, 2, 1025, 33},     // odd numbers
    {20, 64, 4000, 2, 2048, 1500},   // more rounds of the list than one
    {20, 64, 5000, 2, 2048, 1501},  {18, 128, 5000, 2, 4096, 512},  // bf16: 16 tokens at a time
    {18, 1024, 3000, 2, 2048, 512}, {6, 3000, 3000, 2, 2048, 100},
    {5, 64, 9000, 1, 9000, 700},  // bf16: too long for shared memory
    {90, 1024, 3000, 4, 1000, 64},  {60, 768, 2000, 3, 333, 40},
    {50, 544, 2000, 5, 70, 9},  // bf16: rows that end within a piece
};

TEST(DeviceSelect, FloatEqualsTheHost) {
  SelectWorkspace workspace;
  uint32_t seed = 0;
  for (const Shape& shape : kShapes) check_float(clustered_case(++seed, shape), workspace);
}

TEST(DeviceSelect, FloatWithJitterEqualsTheHost) {
  SelectWorkspace workspace;
  uint32_t seed = 100;
  for (const Shape& shape : kShapes) {
    Case c = clustered_case(++seed, shape);
    c.noise.emplace(7, Purpose::jitter_score, 3, 1, 2);
    c.first_token = 12345;
    for (const float stddev : {0.01f, 1.0f}) {  // few and most of the candidates need a draw
      c.stddev = stddev;
      check_float(c, workspace);
    }
  }
}

TEST(DeviceSelect, Bf16SelectsTheLargestUpToRounding) {
  SelectWorkspace workspace;
  uint32_t seed = 200;
  for (const Shape& shape : kShapes) check_bf16(clustered_case(++seed, shape), workspace);
}

TEST(DeviceSelect, Bf16WithJitter) {
  SelectWorkspace workspace;
  uint32_t seed = 300;
  for (const Shape& shape : kShapes) {
    Case c = clustered_case(++seed, shape);
    c.noise.emplace(7, Purpose::jitter_score, 3, 1, 2);
    c.first_token = 54321;
    for (const float stddev : {0.01f, 1.0f}) {
      c.stddev = stddev;
      check_bf16(c, workspace);
    }
  }
}

// Codewords with the numbers of tokens that make tiles of all kinds, some of them without any.
TEST(DeviceSelect, Bf16TilesOfAllSizes) {
  SelectWorkspace workspace;
  const std::vector<int64_t> tokens = {1, 0, 7, 32, 0, 33, 8, 9, 70, 16, 17, 0};
  uint32_t seed = 250;
  for (const int64_t d : {512, 768, 1024}) {
    for (const int64_t shortlist : {40, 300, 1025}) {
      const int64_t n = std::accumulate(tokens.begin(), tokens.end(), int64_t{0});
      Case c = clustered_case(++seed, {n, d, 1200, std::ssize(tokens), shortlist, 33});
      int64_t t = 0;
      for (std::size_t g = 0; g < tokens.size(); ++g) {
        for (int64_t i = 0; i < tokens[g]; ++i) {  // 89 and 193 have no factor in common
          c.codeword[t++ * 89 % n] = static_cast<int32_t>(g);
        }
      }
      check_bf16(c, workspace);
    }
  }
}

// Scores are small integers, so most of them tie at the cut.
Case integer_case(uint32_t seed, const Shape& s, int64_t largest) {
  Random random(seed);
  Case c = clustered_case(seed, s);
  c.hidden = random.integers(s.tokens * s.dim, -largest, largest);
  c.unit.assign(s.experts * s.dim, 0.0f);
  for (int64_t e = 0; e < s.experts; ++e) {
    c.unit[e * s.dim + random.integer(0, s.dim - 1)] = random.integer(0, 1) ? 1.0f : -1.0f;
  }
  return c;
}

TEST(DeviceSelect, TiesGoToTheSmallerPosition) {
  SelectWorkspace workspace;
  const Stream stream;
  uint32_t seed = 400;
  for (const Shape& shape : {Shape{50, 16, 500, 2, 300, 37}, Shape{50, 16, 3000, 3, 2048, 512},
                             Shape{20, 16, 3000, 1, 2048, 1200}, Shape{9, 8, 500, 1, 64, 64}}) {
    for (const int64_t largest : {0, 1, 3}) {  // 0: tokens of zeros, everything ties
      Case c = integer_case(++seed, shape, largest);
      check_float(c, workspace);
      // Equal scores have equal keys in bf16, too, and these differ by more than a step.
      const Found fp32 = select<float>(c, stream, workspace);
      const Found bf16 = select<__nv_bfloat16>(c, stream, workspace);
      ASSERT_EQ(fp32.position, bf16.position) << shape << " largest " << largest;
    }
  }
}

TEST(DeviceSelect, NotANumberCountsAsMinusInfinity) {
  SelectWorkspace workspace;
  const Stream stream;
  Case c = clustered_case(500, {4, 16, 200, 1, 100, 50});
  std::set<int32_t> bad;
  for (int64_t i = 0; i < 100; i += 3) {
    bad.insert(static_cast<int32_t>(i));
    c.unit[c.ids[i] * 16] = std::numeric_limits<float>::quiet_NaN();
  }
  const auto check = [&](const Found& found) {
    for (const uint16_t position : found.position) EXPECT_FALSE(bad.contains(position));
    for (const float gate : found.gate) EXPECT_TRUE(std::isfinite(gate));
  };
  check(select<float>(c, stream, workspace));
  check(select<__nv_bfloat16>(c, stream, workspace));
}

// Keys that fit neither into shared memory nor into the workspace at once.
TEST(DeviceSelect, VeryLongListsInSeveralPasses) {
  SelectWorkspace workspace;
  check_float(clustered_case(600, {580, 8, 65536, 2, 60000, 700}), workspace);
  EXPECT_LE(workspace.keys.size(), int64_t{32} << 20);
}

TEST(DeviceSelect, Bf16LongListsInSeveralPasses) {
  SelectWorkspace workspace;
  check_bf16(clustered_case(601, {1200, 512, 60000, 3, 60000, 50}), workspace, 199);
  EXPECT_LE(workspace.keys.size(), int64_t{32} << 20);
}

TEST(DeviceSelect, SameBitsEveryTime) {
  const Stream stream;
  SelectWorkspace workspace;
  Case c = clustered_case(700, {300, 256, 5000, 20, 2048, 512});
  c.noise.emplace(7, Purpose::jitter_score);
  c.stddev = 0.01f;
  const Found first = select<__nv_bfloat16>(c, stream, workspace);
  for (int i = 0; i < 3; ++i) {
    const Found again = select<__nv_bfloat16>(c, stream, workspace);
    ASSERT_EQ(first.position, again.position);
    ASSERT_EQ(first.gate, again.gate);
  }
}

TEST(DeviceSelect, NamesTheOptionThatIsWrong) {
  const Stream stream;
  SelectWorkspace workspace;
  airmoe::cuda::CodewordTokens tokens;
  const auto message = [&](int64_t d, int64_t shortlist, int64_t active) -> std::string {
    try {
      select_experts<float>(nullptr, d, tokens, {shortlist, nullptr, nullptr}, nullptr, active,
                            nullptr, {}, workspace, stream);
    } catch (const Error& error) {
      return error.what();
    }
    return "";
  };
  EXPECT_NE(message(20, 100, 10).find("--dim 20"), std::string::npos);
  EXPECT_NE(message(16, 100, 101).find("--active 101"), std::string::npos);
  EXPECT_NE(message(16, 100000, 101).find("--shortlist 100000"), std::string::npos);
  EXPECT_EQ(message(16, 100, 10), "");
}

}  // namespace
}  // namespace airmoe::router::cuda
