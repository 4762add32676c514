#include <gtest/gtest.h>

#include "comm/base/error.hpp"
#include "router/data.hpp"
#include "router/select.hpp"

namespace airmoe::router {
namespace {

struct Routed {
  std::vector<int32_t> index;  // into the concatenated scores
  std::vector<float> gate;
  std::vector<Cut> cuts;
};

// Cuts the slices, which stand in ascending order, applies each cut in place, and returns what is
// selected.
Routed route(const std::vector<float>& scores, const std::vector<int64_t>& sizes, int64_t k) {
  Routed out;
  out.cuts.resize(sizes.size());
  std::vector<int32_t> taken(sizes.size(), -1);
  CutWorkspace workspace;
  cut_top_k(scores, sizes, k, out.cuts, taken, workspace);
  int64_t begin = 0;
  for (std::size_t r = 0; r < sizes.size(); ++r) {
    std::vector<float> score(scores.begin() + begin, scores.begin() + begin + sizes[r]);
    std::vector<int32_t> position(score.size());
    std::iota(position.begin(), position.end(), static_cast<int32_t>(begin));
    const int64_t kept = apply_cut(out.cuts[r], position.data(), score.data(), sizes[r],
                                   position.data(), score.data());
    EXPECT_EQ(kept, taken[r]) << "slice " << r;
    out.index.insert(out.index.end(), position.begin(), position.begin() + kept);
    out.gate.insert(out.gate.end(), score.begin(), score.begin() + kept);
    begin += sizes[r];
  }
  return out;
}

// 1 to 5 slices, some of them empty.
std::vector<int64_t> random_split(test::Random& random, int64_t total, int64_t slices) {
  std::vector<int64_t> edge = {0, total};
  for (int64_t r = 1; r < slices; ++r) edge.push_back(random.integer(0, 2) * total / 2);
  if (slices > 2) edge.back() = random.integer(0, total);
  std::sort(edge.begin(), edge.end());
  std::vector<int64_t> sizes;
  for (std::size_t r = 1; r < edge.size(); ++r) sizes.push_back(edge[r] - edge[r - 1]);
  return sizes;
}

void check(const std::vector<float>& scores, const std::vector<int64_t>& sizes, int64_t k) {
  SCOPED_TRACE(::testing::Message()
               << scores.size() << " scores, k " << k << ", slices " << sizes.size());
  const Routed routed = route(scores, sizes, k);
  const std::vector<int32_t> expected =
      test::top_indices(std::vector<double>(scores.begin(), scores.end()), k);
  ASSERT_EQ(routed.index, expected);
  double sum = 0.0;
  for (const int32_t i : expected) sum += std::exp(static_cast<double>(scores[i]));
  for (std::size_t j = 0; j < expected.size(); ++j) {
    const double gate = std::exp(static_cast<double>(scores[expected[j]])) / sum;
    ASSERT_NEAR(routed.gate[j], gate, 1e-6 * gate + 1e-30);
  }
}

TEST(CutTopK, RandomScoresOverOneToFiveSlices) {
  test::Random random(1);
  for (const int64_t total : {1, 2, 15, 16, 40, 513, 2048}) {
    for (int64_t slices = 1; slices <= 5; ++slices) {
      for (const int64_t k : {int64_t{1}, total / 4, total - 1, total, total + 3}) {
        if (k >= 1) check(random.normals(total), random_split(random, total, slices), k);
      }
    }
  }
}

TEST(CutTopK, TiesGoToTheEarlierEntryAcrossSlices) {
  test::Random random(2);
  for (const int64_t k : {1, 7, 30, 63, 64}) {
    for (int64_t slices = 1; slices <= 5; ++slices) {
      check(random.integers(64, 0, 2), random_split(random, 64, slices), k);
      check(std::vector<float>(64, 2.0f), random_split(random, 64, slices), k);
      check(std::vector<float>(64, -0.0f), random_split(random, 64, slices), k);
    }
  }
}

TEST(CutTopK, GatesDoNotDependOnTheSplit) {
  test::Random random(3);
  for (const int64_t k : {5, 100, 512}) {
    const std::vector<float> scores = random.normals(700);
    const Routed whole = route(scores, {700}, k);
    for (int64_t slices = 2; slices <= 5; ++slices) {
      const Routed split = route(scores, random_split(random, 700, slices), k);
      ASSERT_EQ(split.index, whole.index);
      ASSERT_EQ(split.gate, whole.gate);  // the same bits
      ASSERT_EQ(split.cuts[0].inverse_sum, whole.cuts[0].inverse_sum);
    }
  }
}

// Candidates whose experts live anywhere; slice r reports the best min(k, size) of its own.
struct Scattered {
  std::vector<float> all;                  // [candidates], in ascending expert id
  std::vector<int32_t> slice_of;           // [candidates]
  std::vector<float> scores;               // reported, slice by slice
  std::vector<int32_t> ids;                // of the reported
  std::vector<int64_t> sizes;              // reported per slice
  bool tied_across = false, tied = false;  // as an independent count says

  Scattered(test::Random& random, std::vector<float> scores_of_all, int64_t slices, int64_t k)
      : all(std::move(scores_of_all)), sizes(slices) {
    for (std::size_t i = 0; i < all.size(); ++i) {
      slice_of.push_back(static_cast<int32_t>(random.integer(0, slices - 1)));
    }
    for (int64_t r = 0; r < slices; ++r) {
      std::vector<double> own;
      std::vector<int32_t> own_id;
      for (std::size_t i = 0; i < all.size(); ++i) {
        if (slice_of[i] != r) continue;
        own.push_back(all[i]);
        own_id.push_back(static_cast<int32_t>(i));
      }
      for (const int32_t j : test::top_indices(own, k)) {
        scores.push_back(all[own_id[j]]);
        ids.push_back(own_id[j]);
        ++sizes[r];
      }
    }
    const int64_t total = std::ssize(scores);
    if (k >= total) return;
    const std::vector<int32_t> order = test::ranking({scores.begin(), scores.end()});
    const auto same = [&](float a, float b) { return a == b || (std::isnan(a) && std::isnan(b)); };
    const float threshold = scores[order[k - 1]];
    tied = same(scores[order[k]], threshold);
    std::vector<bool> has(slices, false);
    int64_t begin = 0;
    for (int64_t r = 0; r < slices; ++r) {
      for (int64_t i = begin; i < begin + sizes[r]; ++i)
        has[r] = has[r] || same(scores[i], threshold);
      begin += sizes[r];
    }
    tied_across = tied && std::count(has.begin(), has.end(), true) > 1;
  }
};

void check_scattered(test::Random& random, const std::vector<float>& all, int64_t slices, int64_t k,
                     int64_t& ties_seen) {
  SCOPED_TRACE(::testing::Message()
               << all.size() << " candidates, " << slices << " slices, k " << k);
  const Scattered s(random, all, slices, k);
  std::vector<Cut> cuts(slices);
  std::vector<int32_t> taken(slices, -1);
  CutWorkspace workspace;
  ASSERT_EQ(cut_top_k(s.scores, s.sizes, k, cuts, taken, workspace), s.tied_across);
  if (s.tied_across) {
    ++ties_seen;
    std::vector<int32_t> needed(s.ids.size(), -1000);  // only those that may be read
    for (std::size_t i = 0; i < needed.size(); ++i) {
      if (is_tied(s.scores[i], cuts[0].threshold)) needed[i] = s.ids[i];
    }
    resolve_ties(s.scores, needed, s.sizes, cuts, taken, workspace);
  }
  std::vector<int32_t> selected;
  std::vector<float> gate_of(all.size(), -1.0f);
  int64_t begin = 0;
  for (int64_t r = 0; r < slices; ++r) {
    std::vector<int32_t> id(s.ids.begin() + begin, s.ids.begin() + begin + s.sizes[r]);
    std::vector<float> score(s.scores.begin() + begin, s.scores.begin() + begin + s.sizes[r]);
    const int64_t kept =
        apply_cut(cuts[r], id.data(), score.data(), s.sizes[r], id.data(), score.data());
    EXPECT_EQ(kept, taken[r]) << "slice " << r;
    for (int64_t j = 0; j < kept; ++j) gate_of[id[j]] = score[j];
    selected.insert(selected.end(), id.begin(), id.begin() + kept);
    begin += s.sizes[r];
  }
  std::sort(selected.begin(), selected.end());
  ASSERT_EQ(selected, test::top_indices({all.begin(), all.end()}, k));
  // The same bits as where one rank has everything.
  const Routed whole = route(all, {std::ssize(all)}, k);
  ASSERT_EQ(whole.index, selected);
  for (std::size_t j = 0; j < selected.size(); ++j) {
    if (std::isnan(whole.gate[j])) continue;
    ASSERT_EQ(gate_of[selected[j]], whole.gate[j]);
  }
}

TEST(CutTopK, ExpertsMayLiveAnywhere) {
  test::Random random(8);
  int64_t ties_seen = 0;
  for (int repeat = 0; repeat < 40; ++repeat) {
    for (const int64_t k : {1, 2, 7, 30, 63, 64, 70}) {
      for (int64_t slices = 1; slices <= 5; ++slices) {
        check_scattered(random, random.integers(64, -3, 3), slices, k, ties_seen);
        check_scattered(random, random.normals(64), slices, k, ties_seen);
      }
    }
  }
  EXPECT_GT(ties_seen, 500);
  check_scattered(random, std::vector<float>(64, 2.0f), 3, 20, ties_seen);
  check_scattered(random, std::vector<float>(64, std::numeric_limits<float>::quiet_NaN()), 3, 20,
                  ties_seen);
  std::vector<float> zeros(64, 0.0f);
  for (std::size_t i = 0; i < 64; i += 3) zeros[i] = -0.0f;
  check_scattered(random, zeros, 4, 11, ties_seen);
}

TEST(CutTopK, TheNormaliserIsTheSumInWhateverOrder) {
  test::Random random(9);
  std::vector<float> scores = random.normals(5000);
  const Routed one = route(scores, {5000}, 4000);
  std::reverse(scores.begin(), scores.end());
  const Routed other = route(scores, {1, 2499, 2500}, 4000);
  EXPECT_EQ(one.cuts[0].inverse_sum, other.cuts[0].inverse_sum);
  const float max = *std::max_element(scores.begin(), scores.end());
  std::sort(scores.begin(), scores.end(), std::greater<>());
  double sum = 0.0;
  for (int64_t i = 0; i < 4000; ++i) sum += std::exp(static_cast<double>(scores[i] - max));
  EXPECT_NEAR(one.cuts[0].inverse_sum, 1.0 / sum, 2e-7 / sum);
}

TEST(ResolveTies, NeedsAnIdPerScore) {
  const std::vector<float> scores = {1.0f, 1.0f};
  const std::vector<int32_t> ids = {0};
  const std::vector<int64_t> sizes = {1, 1};
  std::vector<Cut> cuts(2);
  std::vector<int32_t> taken(2);
  CutWorkspace workspace;
  EXPECT_TRUE(cut_top_k(scores, sizes, 1, cuts, taken, workspace));
  EXPECT_THROW(resolve_ties(scores, ids, sizes, cuts, taken, workspace), Error);
}

TEST(CutTopK, LargeScoresDoNotOverflow) {
  std::vector<float> scores = {900.0f, -900.0f, 899.0f, 100.0f};
  const Routed routed = route(scores, {1, 0, 3}, 2);
  EXPECT_EQ(routed.index, (std::vector<int32_t>{0, 2}));
  EXPECT_NEAR(routed.gate[0], 1.0 / (1.0 + std::exp(-1.0)), 1e-6);
}

TEST(CutTopK, NothingToSelect) {
  EXPECT_TRUE(route({}, {}, 3).index.empty());
  EXPECT_TRUE(route({}, {0, 0, 0}, 3).index.empty());
}

TEST(CutTopK, NotANumberNeitherCrashesNorHides) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const float infinity = std::numeric_limits<float>::infinity();
  EXPECT_EQ(route({nan, 1.0f, nan, 2.0f}, {2, 2}, 2).index, (std::vector<int32_t>{1, 3}));
  EXPECT_EQ(route({nan, 1.0f, nan, -infinity}, {2, 2}, 3).index, (std::vector<int32_t>{0, 1, 2}));
  const Routed all = route(std::vector<float>(40, nan), {20, 20}, 30);
  EXPECT_EQ(all.index.size(), 30u);
  for (const float gate : all.gate) EXPECT_TRUE(std::isnan(gate));
}

TEST(ApplyCut, MayWriteElsewhere) {
  test::Random random(4);
  const std::vector<float> scores = random.normals(100);
  std::vector<int32_t> position(100), position_out(100);
  std::iota(position.begin(), position.end(), 1000);
  std::vector<float> gate(100);
  const Routed in_place = route(scores, {100}, 37);
  const int64_t kept = apply_cut(in_place.cuts[0], position.data(), scores.data(), 100,
                                 position_out.data(), gate.data());
  ASSERT_EQ(kept, 37);
  for (int64_t j = 0; j < kept; ++j) {
    EXPECT_EQ(position_out[j], in_place.index[j] + 1000);
    EXPECT_EQ(gate[j], in_place.gate[j]);
  }
}

}  // namespace
}  // namespace airmoe::router
