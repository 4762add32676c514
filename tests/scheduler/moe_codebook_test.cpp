// The codebook of a distributed layer: replicated bits, the k-means step of the paper, restarts of
// dead codewords and the lists that go with them.

#include <bit>
#include <set>

#include "comm/base/error.hpp"
#include "tests/scheduler/oracle/agree.hpp"
#include "tests/support/mpi_test.hpp"

namespace airmoe::oracle {
namespace {

struct State {
  std::vector<float> codewords, counts, sums;
};

State state_of(MoeLayer& layer) {
  router::Codebook& c = layer.codebook();
  const int64_t size = c.config().codewords * c.config().dim;
  return {{c.codewords().data, c.codewords().data + size},
          {c.counts().begin(), c.counts().end()},
          {c.sums().data, c.sums().data + size}};
}

std::vector<uint32_t> bits_of(const State& s) {
  std::vector<uint32_t> bits;
  for (const auto* x : {&s.codewords, &s.counts, &s.sums}) {
    for (const float v : *x) bits.push_back(std::bit_cast<uint32_t>(v));
  }
  return bits;
}

// One step of the paper in double: what every codeword becomes if it stays alive, and who is dead.
struct Expected {
  std::vector<double> codewords, counts, sums;
  std::vector<int64_t> dead;
};

Expected k_means(const ModelConfig& c, const State& before, const std::vector<float>& hidden) {
  Expected e;
  std::vector<double> batch_sum(before.sums.size()), batch_count(before.counts.size());
  const int64_t d = c.dim;
  for (std::size_t row = 0; row < hidden.size(); row += d) {
    double best = -1e300, square = 0.0;
    int64_t nearest = 0;
    for (int64_t k = 0; k < d; ++k)
      square += static_cast<double>(hidden[row + k]) * hidden[row + k];
    for (int64_t g = 0; g < c.codewords; ++g) {
      double cosine = 0.0;
      for (int64_t k = 0; k < d; ++k) {
        cosine +=
            static_cast<double>(hidden[row + k]) * before.codewords[g * d + k] / std::sqrt(square);
      }
      if (cosine > best) {
        best = cosine;
        nearest = g;
      }
    }
    batch_count[nearest] += 1.0;
    for (int64_t k = 0; k < d; ++k) {
      batch_sum[nearest * d + k] += hidden[row + k] / std::sqrt(square);
    }
  }
  const double gamma = c.codebook_decay;
  for (int64_t g = 0; g < c.codewords; ++g) {
    e.counts.push_back(gamma * before.counts[g] + (1.0 - gamma) * batch_count[g]);
    if (e.counts.back() < c.dead_threshold) e.dead.push_back(g);
    double square = 0.0;
    for (int64_t k = 0; k < d; ++k) {
      e.sums.push_back(gamma * before.sums[g * d + k] + (1.0 - gamma) * batch_sum[g * d + k]);
      square += e.sums.back() * e.sums.back();
    }
    for (int64_t k = 0; k < d; ++k) e.codewords.push_back(e.sums[g * d + k] / std::sqrt(square));
  }
  return e;
}

// The global token whose direction is the codeword, or -1.
int64_t token_of(const std::vector<float>& hidden, const float* codeword, int64_t dim) {
  for (int64_t t = 0; t < std::ssize(hidden) / dim; ++t) {
    double square = 0.0, dot = 0.0;
    for (int64_t k = 0; k < dim; ++k) {
      square += static_cast<double>(hidden[t * dim + k]) * hidden[t * dim + k];
      dot += static_cast<double>(hidden[t * dim + k]) * codeword[k];
    }
    if (dot > (1.0 - 1e-6) * std::sqrt(square)) return t;
  }
  return -1;
}

void expect_replicated(const std::vector<uint32_t>& bits) {
  const std::vector<uint32_t> all = gather(test::world(), bits.data(), std::ssize(bits));
  for (int r = 0; r < test::world().size(); ++r) {
    const auto begin = all.begin() + r * std::ssize(bits);
    EXPECT_TRUE(std::equal(bits.begin(), bits.end(), begin)) << "rank " << r;
  }
}

// A problem that leaves the codebook to training.
Problem training_problem(const Shape& shape, uint64_t seed) {
  Problem p = random_problem(shape, seed);
  p.arrays.codebook.clear();
  p.config.codebook_decay = 0.95f;
  p.config.dead_threshold = 1.0f;
  // Exact zeros of both signs: the sign of a zero must not depend on how tokens are spread.
  for (std::size_t i = 0; i < p.arrays.hidden.size(); i += 5) {
    p.arrays.hidden[i] = i % 2 == 0 ? 0.0f : -0.0f;
  }
  for (int64_t t = 0; t < p.tokens; ++t) p.arrays.hidden[t * shape.dim] = 2.0f;
  return p;
}

const Shape kShape = {96, 14, 30, 3, 1, 6, 8};
constexpr float kScale = 1.0f / 96.0f;

TEST(MoeCodebook, StartsFromDistinctTokensAtTheirFairShare) {
  Problem p = training_problem(kShape, 61);
  p.config.codebook_decay = 1.0f;  // the update that follows changes nothing
  p.config.dead_threshold = 0.0f;
  LayerRun run(test::world(), p, Split::none_on_first);
  EXPECT_FALSE(run.layer.codebook_initialised());
  run.forward(p.arrays.hidden, run.batch(true, kScale));
  EXPECT_TRUE(run.layer.codebook_initialised());
  const State s = state_of(run.layer);
  std::set<int64_t> tokens;
  for (int64_t g = 0; g < kShape.codewords; ++g) {
    const int64_t token = token_of(p.arrays.hidden, &s.codewords[g * kShape.dim], kShape.dim);
    EXPECT_GE(token, 0) << "codeword " << g << " is no token";
    tokens.insert(token);
    EXPECT_FLOAT_EQ(s.counts[g], 96.0f / 6.0f);
  }
  EXPECT_EQ(std::ssize(tokens), kShape.codewords);
  expect_replicated(bits_of(s));
}

TEST(MoeCodebook, EvaluationBeforeTheFirstTrainingBatchIsAnError) {
  const Problem p = training_problem(kShape, 61);
  LayerRun run(test::world(), p, Split::even);
  EXPECT_THROW(run.forward(p.arrays.hidden, run.batch(false, 0.0f)), Error);
}

TEST(MoeCodebook, CannotStartFromABatchWithoutTokens) {
  const Problem p = training_problem({0, 14, 30, 3, 1, 6, 8}, 61);
  LayerRun run(test::world(), p, Split::even);
  EXPECT_THROW(run.forward(p.arrays.hidden, run.batch(true, 0.0f)), Error);
}

TEST(MoeCodebook, FollowsTheKMeansStepAndIsReplicatedForAllRankCounts) {
  const Problem p = training_problem(kShape, 62);
  const auto alone = make_alone();
  LayerRun one(*alone, p, Split::even);
  std::vector<std::unique_ptr<LayerRun>> runs;
  for (const Split split : kSplits)
    runs.push_back(std::make_unique<LayerRun>(test::world(), p, split));
  for (uint32_t step = 1; step <= 4; ++step) {
    // Other tokens each time, from the same clusters.
    std::vector<float> hidden = p.arrays.hidden;
    const std::vector<float> noise = normal(std::ssize(hidden), 62, 100 + step, 0.3);
    for (std::size_t i = 0; i < hidden.size(); ++i) {
      if (hidden[i] != 0.0f) hidden[i] += noise[i];
    }
    const State before = state_of(one.layer);
    one.forward(hidden, one.batch(true, kScale, step));
    const State after = state_of(one.layer);
    if (step > 1) {  // the first starts from tokens
      const Expected want = k_means(p.config, before, hidden);
      EXPECT_TRUE(want.dead.empty());
      expect_close("codewords", after.codewords, want.codewords, 1e-6);
      expect_close("counts", after.counts, want.counts, 1e-6);
      expect_close("sums", after.sums, want.sums, 1e-6);
    }
    for (auto& run : runs) {
      run->forward(hidden, run->batch(true, kScale, step));
      EXPECT_EQ(bits_of(state_of(run->layer)), bits_of(after)) << "step " << step;
    }
  }
}

// Codewords opposite to all tokens, which have a large first entry: nothing is assigned to them.
void starve(MoeLayer& layer, const std::vector<int64_t>& dying, float count) {
  router::Codebook& c = layer.codebook();
  for (const int64_t g : dying) {
    for (int64_t k = 0; k < c.config().dim; ++k) {
      c.codewords()(g, k) = k == 0 ? -1.0f : 0.0f;
      c.sums()(g, k) = k == 0 ? -count : 0.0f;
    }
    c.counts()[g] = count;
  }
}

TEST(MoeCodebook, DeadCodewordsRestartFromDistinctTokens) {
  const Problem p = training_problem(kShape, 63);
  const std::vector<int64_t> dying = {1, 3, 5};
  const auto alone = make_alone();
  LayerRun one(*alone, p, Split::even);
  one.forward(p.arrays.hidden, one.batch(true, kScale, 1));
  starve(one.layer, dying, 1.02f);
  const State before = state_of(one.layer);
  one.forward(p.arrays.hidden, one.batch(true, kScale, 2));
  const State after = state_of(one.layer);
  const Expected want = k_means(p.config, before, p.arrays.hidden);
  ASSERT_ON_ALL_RANKS(want.dead == dying);
  EXPECT_EQ(one.layer.counters().revived_codewords, 3);
  std::set<int64_t> tokens;
  for (int64_t g = 0; g < kShape.codewords; ++g) {
    const std::vector<float> got(&after.codewords[g * kShape.dim],
                                 &after.codewords[g * kShape.dim] + kShape.dim);
    if (std::count(dying.begin(), dying.end(), g) > 0) {
      const int64_t token = token_of(p.arrays.hidden, got.data(), kShape.dim);
      EXPECT_GE(token, 0);
      tokens.insert(token);
      EXPECT_EQ(after.counts[g], 1.0f);
      const std::vector<float> sum(&after.sums[g * kShape.dim],
                                   &after.sums[g * kShape.dim] + kShape.dim);
      EXPECT_EQ(sum, got);
      continue;
    }
    const std::vector<double> same(&want.codewords[g * kShape.dim],
                                   &want.codewords[g * kShape.dim] + kShape.dim);
    expect_close("survivor", got, same, 1e-6);
  }
  EXPECT_EQ(std::ssize(tokens), 3);
  for (const Split split : kSplits) {
    LayerRun run(test::world(), p, split);
    run.forward(p.arrays.hidden, run.batch(true, kScale, 1));
    starve(run.layer, dying, 1.02f);
    run.forward(p.arrays.hidden, run.batch(true, kScale, 2));
    EXPECT_EQ(bits_of(state_of(run.layer)), bits_of(after));
  }
}

TEST(MoeCodebook, MoreDeadCodewordsThanTokensWaitForTheNextBatch) {
  const Shape shape = {4, 14, 30, 3, 1, 9, 8};
  Problem p = training_problem(shape, 64);
  p.config.dead_threshold = 2.0f;  // every codeword of a batch of 4 is dead
  LayerRun run(test::world(), p, Split::even);
  run.forward(p.arrays.hidden, run.batch(true, 0.25f, 1));
  EXPECT_EQ(run.layer.counters().revived_codewords, 4);
  const State s = state_of(run.layer);
  std::set<int64_t> tokens;
  for (int64_t g = 0; g < 4; ++g) {
    tokens.insert(token_of(p.arrays.hidden, &s.codewords[g * shape.dim], shape.dim));
    EXPECT_EQ(s.counts[g], 1.0f);
  }
  EXPECT_EQ(tokens, (std::set<int64_t>{0, 1, 2, 3}));
  for (int64_t g = 4; g < shape.codewords; ++g) EXPECT_LT(s.counts[g], 1.0f);
  expect_replicated(bits_of(s));
}

// Codeword 3 dies in the second micro-batch of a step: its list changes at once, the others keep
// the lists of the first.
TEST(MoeCodebook, ListsOfRestartedCodewordsAreRebuiltAtOnce) {
  Problem p = training_problem(kShape, 65);
  p.config.jitter = 0.2f;
  for (const Split split : kSplits) {
    LayerRun run(test::world(), p, split);
    run.forward(p.arrays.hidden, run.batch(true, kScale, 1, 0));
    starve(run.layer, {3}, 1.1f);  // 1.045 after the next micro-batch, 0.993 after the second
    run.layer.parameters_changed();
    run.forward(p.arrays.hidden, run.batch(true, kScale, 2, 0));
    EXPECT_EQ(run.layer.counters().revived_codewords, 0);
    Arrays<float> a = p.arrays;
    a.codebook = state_of(run.layer).codewords;
    double margin = 1.0;
    Lists lists =
        Reference(p.config, kScale, JitterKey{kSeed, 2, 0, kLayer}).lists(widen(a), margin);
    const auto flat = [](const Lists& x) {
      std::vector<int32_t> all;
      for (const auto& row : x) all.insert(all.end(), row.begin(), row.end());
      return all;
    };
    EXPECT_EQ(run.gather_lists(), flat(lists));

    const Outcome got = run.run(p.arrays, run.batch(true, kScale, 2, 1), true);
    EXPECT_EQ(run.layer.counters().revived_codewords, 1);
    a.codebook = state_of(run.layer).codewords;
    const Arrays<double> wide = widen(a);
    const Reference second(p.config, kScale, JitterKey{kSeed, 2, 1, kLayer},
                           JitterKey{kSeed, 2, 1, kLayer});
    const std::vector<int32_t> stale = lists[3];
    lists[3] = second.lists(wide, margin)[3];
    EXPECT_NE(lists[3], stale);
    EXPECT_GT(margin, 1e-5);
    EXPECT_EQ(run.gather_lists(), flat(lists));
    const Forward want = second.forward(wide, lists);
    EXPECT_GT(std::count(want.codeword.begin(), want.codeword.end(), 3), 0);
    expect_clear(p, want);
    expect_forward(got, want, kToReference.forward);
    expect_gradients(got.gradient, second.backward(wide, want), kToReference.gradient);
  }
}

}  // namespace
}  // namespace airmoe::oracle
