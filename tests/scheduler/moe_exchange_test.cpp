// Every exchange strategy, placement and chunking gives the bits of one rank.

#include <numeric>

#include "comm/base/random.hpp"
#include "tests/scheduler/oracle/agree.hpp"
#include "tests/support/mpi_test.hpp"

namespace airmoe::oracle {
namespace {

using experts::Path;
using scheduler::Exchange;
using scheduler::ExchangeConfig;
using scheduler::Placement;

/// Homes are a random permutation; codewords have 1 to 3 parts; with copies every candidate of
/// every part is scored on a random rank of a random cover, without on its owner.
Placement random_placement(const ModelConfig& c, int ranks, uint64_t seed, bool copies) {
  const RandomStream draw(seed, Purpose::test_data, 21);
  uint64_t next = 0;
  const auto uniform = [&](int64_t n) {
    return std::min(n - 1, static_cast<int64_t>(draw.uniform(next++) * static_cast<double>(n)));
  };
  Placement p;
  p.ranks = ranks;
  p.copies = copies;
  p.home.resize(c.experts);
  const BlockPartition blocks{c.experts, ranks};
  for (int r = 0; r < ranks; ++r) {
    std::fill(p.home.begin() + blocks.begin(r), p.home.begin() + blocks.end(r), r);
  }
  for (int64_t e = c.experts - 1; e > 0; --e) std::swap(p.home[e], p.home[uniform(e + 1)]);
  p.part_begin = {0};
  for (int64_t g = 0; g < c.codewords; ++g) {
    p.part_begin.push_back(p.part_begin.back() + 1 + static_cast<int32_t>(uniform(3)));
  }
  for (int64_t part = 0; part < p.parts(); ++part) {
    p.primary.push_back(static_cast<int32_t>(uniform(ranks)));
    if (!copies) continue;
    const int64_t cover = 1 + uniform(ranks);
    const int64_t first = uniform(ranks);
    for (int64_t j = 0; j < c.shortlist; ++j) {
      p.candidate_rank.push_back(static_cast<uint16_t>((first + uniform(cover)) % ranks));
    }
  }
  return p;
}

struct Setting {
  const char* name;
  Exchange exchange;
  bool fixed, copies;
  int64_t chunks;
};
const Setting kSettings[] = {
    {"blocks_in_chunks", Exchange::cover, false, false, 3},
    {"scattered_homes", Exchange::cover, true, false, 2},
    {"copies", Exchange::cover, true, true, 1},
    {"copies_in_chunks", Exchange::cover, true, true, 4},
    {"gather", Exchange::gather, false, false, 1},
    {"gather_in_chunks", Exchange::gather, false, false, 3},
    {"selected", Exchange::selected, false, false, 1},
    {"selected_scattered_in_chunks", Exchange::selected, true, false, 3},
};

struct Case {
  const char* name;
  Shape shape;
  bool tied = false;
};
void PrintTo(const Setting& s, std::ostream* out) {
  *out << s.name;
}
void PrintTo(const Case& c, std::ostream* out) {
  *out << c.name;
}

// tokens, d, E, K, m, G, M
const Case kCases[] = {
    {"plain", {61, 24, 40, 4, 1, 5, 12}},
    {"swiglu_m3", {50, 21, 23, 3, 3, 4, 9, ExpertActivation::swiglu}},
    {"relu_one_active", {40, 5, 30, 1, 1, 7, 11, ExpertActivation::relu}},
    {"all_experts_active", {20, 12, 9, 9, 1, 2, 9}},
    {"one_codeword", {150, 17, 64, 7, 1, 1, 20}},
    {"more_codewords_than_tokens", {6, 16, 20, 4, 1, 16, 10}},
    {"no_tokens", {0, 16, 20, 4, 1, 3, 10}},
    {"ties", {80, 6, 31, 5, 1, 9, 13}, true},
    {"ties_one_active", {80, 4, 26, 1, 1, 3, 26, ExpertActivation::relu}, true},
};

class MoeExchange : public ::testing::TestWithParam<std::tuple<Case, Setting>> {};

TEST_P(MoeExchange, HasTheBitsOfOneRank) {
  const auto& [c, setting] = GetParam();
  Problem p = c.tied ? tied_problem(c.shape, 11) : random_problem(c.shape, 11);
  const float scale = 1.0f / static_cast<float>(std::max<int64_t>(1, p.tokens));
  for (float& x : p.arrays.d_out) x *= scale;  // as a mean loss has it
  const auto alone = make_alone();
  for (const Path path : {Path::dense, Path::grouped}) {
    SCOPED_TRACE(path == Path::dense ? "dense" : "grouped");
    LayerRun one_rank(*alone, p, Split::even, path);
    const Outcome one = one_rank.run(p.arrays, one_rank.batch(true, scale), true);
    for (const Split split : kSplits) {
      SCOPED_TRACE("split " + std::to_string(static_cast<int>(split)));
      ExchangeConfig exchange;
      exchange.exchange = setting.exchange;
      exchange.overlap_chunks = setting.chunks;
      exchange.move_homes = false;
      LayerRun run(test::world(), p, split, path, scheduler::SumPrecision::f64, exchange);
      if (setting.fixed) {
        Placement placement = random_placement(p.config, test::world().size(), 5, setting.copies);
        if (setting.exchange == Exchange::selected) {
          placement.part_begin.resize(p.config.codewords + 1);
          std::iota(placement.part_begin.begin(), placement.part_begin.end(), 0);
          placement.primary.assign(p.config.codewords, 0);
        }
        run.layer.placement().fix(std::move(placement), setting.exchange);
      }
      const Outcome got = run.run(p.arrays, run.batch(true, scale), true);
      EXPECT_EQ(run.layer.exchange(), setting.exchange);
      expect_same_rounding(got, one);
      expect_same("captured hidden", got.hidden, p.arrays.hidden);
      expect_same("captured output", run.recorded_output, got.output);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(All, MoeExchange,
                         ::testing::Combine(::testing::ValuesIn(kCases),
                                            ::testing::ValuesIn(kSettings)),
                         [](const auto& test) {
                           return std::string(std::get<0>(test.param).name) + "_" +
                                  std::get<1>(test.param).name;
                         });

}  // namespace
}  // namespace airmoe::oracle
