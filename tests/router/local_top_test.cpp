#include <gtest/gtest.h>

#include "comm/base/error.hpp"
#include "comm/base/partition.hpp"
#include "router/data.hpp"
#include "router/shortlist.hpp"

namespace airmoe::router {
namespace {

struct Problem {
  int64_t codewords, experts, d;
  std::vector<float> codebook, centroid;
  std::vector<int32_t> ids;

  Problem(test::Random& random, int64_t codewords_, int64_t experts_, int64_t d_, bool exact)
      : codewords(codewords_), experts(experts_), d(d_) {
    codebook = exact ? random.integers(codewords * d, -2, 2) : random.normals(codewords * d);
    centroid = exact ? random.integers(experts * d, -2, 2) : random.normals(experts * d);
    for (int64_t g = 0; g < codewords; ++g) ids.push_back(static_cast<int32_t>(3 * g + 1));
  }

  /// Experts [begin, end) on one rank.
  LocalTop run(int64_t begin, int64_t end, int64_t keep,
               const std::optional<Jitter>& jitter) const {
    std::vector<int32_t> own(end - begin);
    std::iota(own.begin(), own.end(), static_cast<int32_t>(begin));
    return run(own, keep, jitter);
  }
  /// Any experts on one rank.
  LocalTop run(const std::vector<int32_t>& own, int64_t keep,
               const std::optional<Jitter>& jitter) const {
    std::vector<float> rows;
    for (const int32_t e : own) rows.insert(rows.end(), &centroid[e * d], &centroid[e * d] + d);
    LocalTop top;
    ShortlistWorkspace workspace;
    local_top(test::matrix(codebook, codewords, d), ids, test::matrix(rows, std::ssize(own), d),
              own, keep, jitter, top, workspace);
    return top;
  }

  /// All scores of codeword g: panel_scores of everything, then jitter on everything.
  std::vector<double> scores(int64_t g, const std::optional<Jitter>& jitter) const {
    std::vector<int32_t> row = {static_cast<int32_t>(g)};
    Buffer<float> tile(tile_ld(experts));
    PanelWorkspace workspace;
    panel_scores({codebook.data(), row.data(), 1, d, d}, test::matrix(centroid, experts, d),
                 tile.data(), workspace);
    if (jitter) {
      std::vector<int32_t> all(experts);
      std::iota(all.begin(), all.end(), 0);
      add_jitter(tile.data(), all.data(), experts, jitter->stddev, jitter->stream,
                 static_cast<uint32_t>(ids[g]), 0);
    }
    return {tile.begin(), tile.begin() + experts};
  }
};

void check(const Problem& problem, int64_t keep, const std::optional<Jitter>& jitter) {
  SCOPED_TRACE(::testing::Message() << problem.codewords << " codewords, " << problem.experts
                                    << " experts, d " << problem.d << ", keep " << keep);
  const LocalTop top = problem.run(0, problem.experts, keep, jitter);
  ASSERT_EQ(top.rows, problem.codewords);
  ASSERT_EQ(top.stride, std::min(keep, problem.experts));
  for (int64_t g = 0; g < problem.codewords; ++g) {
    const std::vector<double> scores = problem.scores(g, jitter);
    const std::vector<int32_t> expected = test::ranking(scores);
    for (int64_t i = 0; i < top.stride; ++i) {
      ASSERT_EQ(top.expert[g * top.stride + i], expected[i]) << "codeword " << g << " entry " << i;
      ASSERT_EQ(top.score[g * top.stride + i], scores[expected[i]]);
    }
  }
}

TEST(LocalTop, EqualsSortingEverything) {
  test::Random random(1);
  for (const int64_t experts : {1, 15, 256, 257, 1500}) {
    for (const int64_t codewords : {1, 3, 17}) {
      for (const int64_t keep : {1, 10, 300, 5000}) {
        check(Problem(random, codewords, experts, 5, false), keep, std::nullopt);
      }
    }
  }
}

TEST(LocalTop, ExactScoresAgainstAnIndependentDotProduct) {
  // Small integers: the float scores are exact, with many ties.
  test::Random random(2);
  for (const int64_t d : {1, 2, 7}) {
    const Problem problem(random, 5, 3000, d, true);
    const LocalTop top = problem.run(0, problem.experts, 400, std::nullopt);
    for (int64_t g = 0; g < problem.codewords; ++g) {
      std::vector<double> scores(problem.experts);
      for (int64_t e = 0; e < problem.experts; ++e) {
        scores[e] = test::dot(&problem.codebook[g * d], &problem.centroid[e * d], d);
      }
      const std::vector<int32_t> expected = test::ranking(scores);
      for (int64_t i = 0; i < 400; ++i) ASSERT_EQ(top.expert[g * 400 + i], expected[i]);
    }
  }
}

TEST(LocalTop, AscendingScoresAreTheWorstCase) {
  test::Random random(3);
  Problem problem(random, 2, 4000, 1, true);
  problem.codebook = {1.0f, -1.0f};
  for (int64_t e = 0; e < 4000; ++e) problem.centroid[e] = static_cast<float>(e / 3);
  for (const int64_t keep : {1, 16, 255, 256, 257, 1000}) check(problem, keep, std::nullopt);
}

TEST(LocalTop, JitterIsThatOfEveryPair) {
  // Only pairs that may enter are drawn; the list must be as if all had been.
  test::Random random(4);
  for (const float stddev : {0.01f, 0.5f, 20.0f}) {
    const Jitter jitter{RandomStream(7, Purpose::jitter_shortlist, 3), stddev};
    for (const int64_t keep : {1, 40, 700, 3000}) {
      check(Problem(random, 4, 2500, 6, false), keep, jitter);
      check(Problem(random, 4, 2500, 2, true), keep, jitter);
    }
  }
  const Problem problem(random, 2, 100, 3, true);
  check(problem, 10, Jitter{RandomStream(7, Purpose::jitter_shortlist), 0.0f});
}

TEST(LocalTop, MergedOverRanksEqualsOneRank) {
  test::Random random(5);
  for (const bool exact : {false, true}) {
    for (const bool noisy : {false, true}) {
      const Problem problem(random, 6, 1000, 8, exact);
      std::optional<Jitter> jitter;
      if (noisy) jitter = Jitter{RandomStream(1, Purpose::jitter_shortlist), 0.1f};
      const LocalTop whole = problem.run(0, 1000, 300, jitter);
      for (const int64_t ranks : {2, 3, 5, 1500}) {
        // Experts in blocks on the one hand, scattered over ranks on the other.
        const BlockPartition partition{problem.experts, ranks};
        for (const bool scattered : {false, true}) {
          std::vector<LocalTop> parts;
          for (int64_t r = 0; r < ranks; ++r) {
            std::vector<int32_t> own;
            for (int32_t e = 0; e < problem.experts; ++e) {
              const int64_t home = scattered ? (e * 7919) % 1009 % ranks : partition.owner(e);
              if (home == r) own.push_back(e);
            }
            parts.push_back(problem.run(own, 300, jitter));
          }
          for (int64_t g = 0; g < problem.codewords; ++g) {
            std::vector<TopSlice> slices;
            for (const LocalTop& part : parts) {
              const auto size = static_cast<std::size_t>(part.stride);
              slices.push_back({{part.score.data() + g * part.stride, size},
                                {part.expert.data() + g * part.stride, size}});
            }
            std::vector<int32_t> expert(300), taken(slices.size());
            merge_top(slices, expert, taken);
            for (int64_t i = 0; i < 300; ++i) ASSERT_EQ(expert[i], whole.expert[g * 300 + i]);
          }
        }
      }
    }
  }
}

TEST(LocalTop, NothingToList) {
  test::Random random(6);
  const Problem problem(random, 3, 10, 4, false);
  EXPECT_EQ(problem.run(5, 5, 7, std::nullopt).stride, 0);
  const Problem none(random, 0, 10, 4, false);
  EXPECT_EQ(none.run(0, 10, 7, std::nullopt).rows, 0);
}

TEST(LocalTop, EveryExpertNeedsAnId) {
  test::Random random(8);
  const Problem problem(random, 2, 10, 4, false);
  const std::vector<int32_t> own = {3, 4};
  LocalTop top;
  ShortlistWorkspace workspace;
  EXPECT_THROW(
      local_top(test::matrix(problem.codebook, 2, 4), problem.ids,
                test::matrix(problem.centroid, 10, 4), own, 3, std::nullopt, top, workspace),
      Error);
}

TEST(LocalTop, BadNumbersGiveAValidList) {
  test::Random random(7);
  Problem problem(random, 3, 2000, 4, false);
  for (int64_t e = 0; e < 2000; e += 2) {
    problem.centroid[e * 4] = std::numeric_limits<float>::quiet_NaN();
  }
  const LocalTop top = problem.run(0, 2000, 1200, std::nullopt);
  for (int64_t g = 0; g < 3; ++g) {
    std::vector<int32_t> ids(&top.expert[g * 1200], &top.expert[g * 1200] + 1200);
    for (int64_t i = 0; i < 1000; ++i) ASSERT_EQ(ids[i] % 2, 1) << "NaN before a number";
    std::sort(ids.begin(), ids.end());
    EXPECT_EQ(std::unique(ids.begin(), ids.end()), ids.end());
    EXPECT_GE(ids.front(), 0);
    EXPECT_LT(ids.back(), 2000);
  }
}

}  // namespace
}  // namespace airmoe::router
