// probe_routing() against exact routing by brute force in double precision.

#include "scheduler/moe/quality_probe.hpp"
#include "tests/scheduler/oracle/agree.hpp"
#include "tests/support/mpi_test.hpp"

namespace airmoe::oracle {
namespace {

using scheduler::RoutingQuality;

// Means over every stride-th token, by the definitions in the header.
RoutingQuality expected(const Problem& p, const Forward& f, int64_t stride) {
  const ModelConfig& c = p.config;
  const Arrays<double> a = widen(p.arrays);
  const std::vector<double> unit = Reference(c, 0.0).unit_rows(a.centroid);
  RoutingQuality q;
  for (int64_t t = 0; t < p.tokens; t += stride) {
    const double* h = &a.hidden[t * c.dim];
    const double* w = &a.codebook[f.codeword[t] * c.dim];
    const double alpha = std::inner_product(h, h + c.dim, w, 0.0);
    double square = 0.0;
    for (int64_t k = 0; k < c.dim; ++k) square += (h[k] - alpha * w[k]) * (h[k] - alpha * w[k]);
    std::vector<double> mass, outside;  // exp(<h, w_e>), exp(alpha <c, w_e>)
    double all = 0.0;
    for (int64_t e = 0; e < c.experts; ++e) {
      const double* u = &unit[e * c.dim];
      mass.push_back(std::exp(std::inner_product(h, h + c.dim, u, 0.0)));
      outside.push_back(std::exp(alpha * std::inner_product(w, w + c.dim, u, 0.0)));
      all += mass.back();
    }
    double listed = 0.0, z_out = 0.0;
    for (int64_t e = 0; e < c.experts; ++e) {
      const auto& list = f.lists[f.codeword[t]];
      const bool in = std::find(list.begin(), list.end(), e) != list.end();
      (in ? listed : z_out) += in ? mass[e] : outside[e];
    }
    std::vector<int32_t> exact(c.experts);
    std::iota(exact.begin(), exact.end(), 0);
    std::stable_sort(exact.begin(), exact.end(),
                     [&](int32_t x, int32_t y) { return mass[x] > mass[y]; });
    exact.resize(c.active);
    double hits = 0.0, chosen = 0.0, best = 0.0;
    for (const int32_t e : exact) best += mass[e];
    for (int64_t i = 0; i < c.active; ++i) {
      const int32_t e = f.expert[t * c.active + i];
      hits += static_cast<double>(std::count(exact.begin(), exact.end(), e));
      chosen += mass[e];
    }
    ++q.tokens;
    q.overlap += hits / static_cast<double>(c.active);
    q.topk_mass_ratio += chosen / best;
    q.mass_recall += listed / all;
    q.mass_recall_bound += listed / (listed + std::exp(std::sqrt(square)) * z_out);
  }
  for (double* x : {&q.overlap, &q.topk_mass_ratio, &q.mass_recall, &q.mass_recall_bound}) {
    *x /= static_cast<double>(q.tokens);
  }
  return q;
}

void expect_quality(const RoutingQuality& got, const RoutingQuality& want, double tolerance) {
  EXPECT_EQ(got.tokens, want.tokens);
  EXPECT_NEAR(got.overlap, want.overlap, tolerance);
  EXPECT_NEAR(got.topk_mass_ratio, want.topk_mass_ratio, tolerance);
  EXPECT_NEAR(got.mass_recall, want.mass_recall, tolerance);
  EXPECT_NEAR(got.mass_recall_bound, want.mass_recall_bound, tolerance);
}

class MoeQuality : public ::testing::TestWithParam<Shape> {};

TEST_P(MoeQuality, IsTheBruteForceMean) {
  const Shape& shape = GetParam();
  const Problem p = random_problem(shape, 81);
  const Forward f = Reference(p.config, 0.0).forward(widen(p.arrays));
  expect_clear(p, f);
  const auto alone = make_alone();
  for (const int64_t max_tokens : {shape.tokens, shape.tokens / 3, int64_t{1}}) {
    SCOPED_TRACE(max_tokens);
    const RoutingQuality want = expected(p, f, (shape.tokens + max_tokens - 1) / max_tokens);
    EXPECT_LE(want.tokens, max_tokens);
    EXPECT_LE(want.mass_recall_bound, want.mass_recall);
    const auto probe = [&](comm::Communicator& comm, Split split) {
      LayerRun run(comm, p, split);
      run.forward(p.arrays.hidden, run.batch(false, 0.0f));
      scheduler::RoutingRecord record;
      run.layer.capture(record);
      const RoutingQuality q = scheduler::probe_routing(comm, run.layer, record, max_tokens);
      run.layer.parameters_changed();  // forgets unit centroids, like a host whose device routes
      const RoutingQuality again = scheduler::probe_routing(comm, run.layer, record, max_tokens);
      EXPECT_EQ(again.overlap, q.overlap);
      EXPECT_EQ(again.topk_mass_ratio, q.topk_mass_ratio);
      EXPECT_EQ(again.mass_recall, q.mass_recall);
      EXPECT_EQ(again.mass_recall_bound, q.mass_recall_bound);
      return q;
    };
    const RoutingQuality one = probe(*alone, Split::even);
    expect_quality(one, want, 1e-5);
    for (const Split split : kSplits) {
      const RoutingQuality got = probe(test::world(), split);
      expect_quality(got, want, 1e-5);
      expect_quality(got, one, 1e-6);
      const double same[] = {got.overlap, got.topk_mass_ratio, got.mass_recall,
                             got.mass_recall_bound};
      const std::vector<double> all = gather(test::world(), same, 4);
      for (std::size_t i = 0; i < all.size(); ++i) EXPECT_EQ(all[i], same[i % 4]);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(All, MoeQuality,
                         ::testing::Values(Shape{60, 16, 90, 6, 1, 4, 20},
                                           Shape{40, 8, 30, 30, 1, 3, 30},
                                           Shape{25, 8, 3, 1, 1, 2, 2},
                                           Shape{12, 6, 40, 3, 1, 1, 3},
                                           Shape{9, 10, 2500, 8, 1, 2, 400},
                                           Shape{4, 24, 33000, 8, 1, 2, 60}));  // in three blocks

}  // namespace
}  // namespace airmoe::oracle
