// Bytes on the wire and the layer's own counters, against a count from the reference's routing.

#include <set>

#include "comm/stats_communicator.hpp"
#include "tests/scheduler/oracle/agree.hpp"
#include "tests/support/mpi_test.hpp"

namespace airmoe::oracle {
namespace {

using scheduler::SumPrecision;

struct Bytes {
  int64_t dispatch = 0, select = 0, combine = 0, backward_dispatch = 0, backward_combine = 0;
};

struct Traffic {
  std::vector<Bytes> of_rank;  ///< sent to other ranks
  std::vector<int64_t> candidate_ranks, selected_ranks;
  int64_t single_covers = 0;  ///< tokens whose codeword has a cover of one rank
};

// Owner of every expert: blocks that differ by at most one, the larger ones first.
std::vector<int> owners(int64_t experts, int ranks) {
  std::vector<int> owner;
  for (int r = 0; r < ranks; ++r) {
    const int64_t size = experts / ranks + (r < experts % ranks ? 1 : 0);
    owner.insert(owner.end(), static_cast<std::size_t>(size), r);
  }
  return owner;
}

// A part of a token's sum returns in `sums`, the whole of it as floats.
Traffic count(const Problem& p, const Forward& f, const std::vector<int>& home, int ranks,
              bool balance, SumPrecision sums) {
  const ModelConfig& c = p.config;
  const std::vector<int> owner = owners(c.experts, ranks);
  const int64_t row = 4 * c.dim;
  Traffic traffic{std::vector<Bytes>(ranks), std::vector<int64_t>(ranks),
                  std::vector<int64_t>(ranks)};
  std::set<std::tuple<int, int, int32_t>> segments;  // (home, candidate rank, codeword)
  for (int64_t t = 0; t < p.tokens; ++t) {
    const int h = home[t];
    std::vector<int64_t> candidates(ranks), selected(ranks);
    for (const int32_t e : f.lists[f.codeword[t]]) ++candidates[owner[e]];
    for (int64_t i = 0; i < c.active; ++i) ++selected[owner[f.expert[t * c.active + i]]];
    const auto cover = ranks - std::count(candidates.begin(), candidates.end(), 0);
    traffic.candidate_ranks[h] += cover;
    traffic.single_covers += cover == 1;
    traffic.selected_ranks[h] += ranks - std::count(selected.begin(), selected.end(), 0);
    for (int r = 0; r < ranks; ++r) {
      if (r == h) continue;
      Bytes& there = traffic.of_rank[r];
      Bytes& here = traffic.of_rank[h];
      if (candidates[r] > 0) {
        here.dispatch += row;
        segments.insert({h, r, f.codeword[t]});
        if (cover > 1) {
          there.select += 4 * std::min(c.active, candidates[r]);
          here.select += 16;
        }
      }
      if (selected[r] > 0) {
        const int64_t width = sums == SumPrecision::f64 && selected[r] < c.active ? 2 : 1;
        there.combine += width * (row + (balance ? 4 : 0));
        here.backward_dispatch += row + 4;
        there.backward_combine += width * row;
      }
    }
  }
  for (const auto& [h, r, g] : segments) traffic.of_rank[h].dispatch += 8;
  return traffic;
}

void check(const Shape& shape, Split split, uint64_t seed, bool skewed,
           SumPrecision sums = SumPrecision::f64) {
  Problem p = random_problem(shape, seed);
  const int ranks = test::world().size();
  const int rank = test::world().rank();
  if (skewed) {  // centroids of a codeword's region on one rank: covers of one rank occur
    const std::vector<int> owner = owners(shape.experts, ranks);
    for (int64_t e = 0; e < shape.experts; ++e) {
      const int64_t g = owner[e] * shape.codewords / ranks;
      for (int64_t k = 0; k < shape.dim; ++k) {
        p.arrays.centroid[e * shape.dim + k] += 8.0f * p.arrays.codebook[g * shape.dim + k];
      }
    }
  }
  const bool balance = shape.balance_weight > 0.0f;
  const float scale = 1.0f / static_cast<float>(shape.tokens);
  const Forward f = Reference(p.config, scale).forward(widen(p.arrays));
  expect_clear(p, f);
  std::vector<int> home(p.tokens);
  for (int r = 0; r < ranks; ++r) {
    const Part part = part_of(split, p.tokens, r, ranks);
    std::fill_n(home.begin() + part.first, part.count, r);
  }
  const Traffic want = count(p, f, home, ranks, balance, sums);

  EXPECT_GE(want.single_covers, skewed ? 1 : 0);

  comm::StatsCommunicator counted(test::world());
  LayerRun run(counted, p, split, experts::Path::dense, sums);
  const auto out = run.forward(p.arrays.hidden, run.batch(true, scale));
  run.backward(p.arrays.d_out);
  EXPECT_EQ(counted.stats("dispatch").bytes_sent, want.of_rank[rank].dispatch);
  EXPECT_EQ(counted.stats("select").bytes_sent, want.of_rank[rank].select);
  EXPECT_EQ(counted.stats("combine").bytes_sent, want.of_rank[rank].combine);
  EXPECT_EQ(counted.stats("backward_dispatch").bytes_sent, want.of_rank[rank].backward_dispatch);
  EXPECT_EQ(counted.stats("backward_combine").bytes_sent, want.of_rank[rank].backward_combine);
  EXPECT_EQ(run.layer.counters().tokens, run.part.count);
  EXPECT_EQ(run.layer.counters().candidate_ranks, want.candidate_ranks[rank]);
  EXPECT_EQ(run.layer.counters().selected_ranks, want.selected_ranks[rank]);
  // Scores and ids of the parts of lists that others merge, and where each list was cut.
  const int64_t local = std::min<int64_t>(shape.shortlist, shape.experts / ranks + 1);
  EXPECT_LE(counted.stats("lists").bytes_sent,
            8 * shape.codewords * local + 4 * shape.codewords * ranks * ranks);

  counted.reset();
  const scheduler::MoeCounters before = run.layer.counters();
  run.layer.begin_micro_batch(run.batch(false, 0.0f));
  std::vector<float> evaluated(out.size());
  run.layer.forward(
      {p.arrays.hidden.data() + run.part.first * shape.dim, run.part.count, shape.dim},
      {evaluated.data(), run.part.count, shape.dim});
  EXPECT_EQ(counted.stats("dispatch").bytes_sent, 0);
  EXPECT_EQ(counted.stats("eval_dispatch").bytes_sent, want.of_rank[rank].dispatch);
  EXPECT_EQ(counted.stats("eval_select").bytes_sent, want.of_rank[rank].select);
  EXPECT_EQ(counted.stats("eval_combine").bytes_sent,
            count(p, f, home, ranks, false, sums).of_rank[rank].combine);
  EXPECT_EQ(run.layer.counters().tokens, before.tokens);
  EXPECT_EQ(run.layer.counters().candidate_ranks, before.candidate_ranks);
}

TEST(MoeTraffic, IsWhatTheRoutingNeeds) {
  for (const Split split : kSplits) check({70, 12, 41, 5, 1, 6, 13}, split, 51, false);
}
TEST(MoeTraffic, IsHalfTheBytesBackInSinglePrecision) {
  check({70, 12, 41, 5, 1, 6, 13}, Split::even, 51, false, SumPrecision::f32);
}
TEST(MoeTraffic, HasNoBalanceColumnWithoutBalance) {
  check({70, 12, 41, 5, 1, 6, 13, ExpertActivation::gelu, 0.0f}, Split::even, 52, false);
}
TEST(MoeTraffic, CoversOfOneRankNeedNoSelectMessages) {
  for (const Split split : kSplits) check({70, 24, 48, 4, 1, 4, 12}, split, 53, true);
}
TEST(MoeTraffic, FewExpertsManyRanks) {
  check({30, 8, 3, 1, 1, 2, 2}, Split::even, 54, false);
}

}  // namespace
}  // namespace airmoe::oracle
