// Distributed shortlists: exactly the global top M, ties by id, whatever the rank count and whoever
// owns which experts; routes without copies say the same as the lists.

#include "scheduler/moe/routes.hpp"
#include "scheduler/moe/shortlists.hpp"
#include "tests/scheduler/oracle/agree.hpp"
#include "tests/support/mpi_test.hpp"

namespace airmoe::oracle {
namespace {

using scheduler::ExpertResidency;
using scheduler::Routes;
using scheduler::Shortlists;

class MoeShortlists : public ::testing::TestWithParam<Shape> {
 protected:
  void build(const Arrays<float>& a, std::span<const int32_t> which, ExpertResidency& residency,
             Shortlists& lists, Routes& routes) {
    const int64_t dim = GetParam().dim;
    const ConstMatrix codebook(a.codebook.data(), GetParam().codewords, dim);
    std::vector<float> mine;
    for (const int32_t e : residency.owned_experts()) {
      mine.insert(mine.end(), a.centroid.begin() + e * dim, a.centroid.begin() + (e + 1) * dim);
    }
    lists.rebuild(codebook, {mine.data(), residency.owned(), dim}, residency.owned_experts(), which,
                  std::nullopt);
    routes.update(lists, which);
    routes.bind();
  }

  // All lists, from the ranks that merged them, against `want`; then what each rank knows.
  void expect_lists(const Shortlists& lists, const ExpertResidency& residency, const Routes& routes,
                    const Lists& want) {
    comm::Communicator& comm = test::world();
    const int64_t length = GetParam().shortlist;
    const std::span<const int32_t> merged = lists.merged_lists();
    EXPECT_EQ(std::ssize(merged), lists.merged_codewords().size(comm.rank()) * length);
    std::vector<int32_t> all(GetParam().codewords * length);
    lists.gather_all(all);
    for (int64_t g = 0; g < GetParam().codewords; ++g) {
      const std::vector<int32_t> got(all.begin() + g * length, all.begin() + (g + 1) * length);
      EXPECT_EQ(got, want[g]) << "codeword " << g;
      std::vector<int32_t> sorted = want[g];
      std::sort(sorted.begin(), sorted.end());
      int32_t cover = 0;
      for (int r = 0; r < comm.size(); ++r) {
        std::vector<int32_t> there;
        for (const int32_t e : sorted) {
          if (residency.home(e) == r) there.push_back(e);
        }
        EXPECT_EQ(routes.candidates(g, r), std::ssize(there));
        cover += !there.empty();
        if (r != comm.rank()) continue;
        std::vector<int32_t> resident;
        for (const int32_t row : routes.resident(g)) resident.push_back(residency.expert(row));
        EXPECT_EQ(resident, there);
      }
      EXPECT_EQ(routes.cover_size(g), cover);
    }
  }
};

TEST_P(MoeShortlists, AreTheGlobalTopWithTiesByIdAlsoWhenRebuiltInPart) {
  const Shape& s = GetParam();
  Problem p = tied_problem(s, 91);  // many experts have the same direction: ties are the rule
  normalise_rows(p.arrays.centroid, s.dim);
  const Reference reference(p.config, 0.0);
  double margin = 1.0;
  Lists want = reference.lists(widen(p.arrays), margin);
  EXPECT_TRUE(margin == 0.0 || s.shortlist == s.experts) << "no list ends in a tie";
  Shortlists lists(test::world(), s.codewords, s.experts, s.shortlist);
  ExpertResidency residency(test::world(), s.experts, scheduler::SumPrecision::f64);
  Routes routes(test::world(), residency, s.codewords, s.shortlist);
  std::vector<int32_t> all(s.codewords);
  std::iota(all.begin(), all.end(), 0);
  build(p.arrays, all, residency, lists, routes);
  expect_lists(lists, residency, routes, want);

  // Every third codeword turns round; only those lists follow.
  std::vector<int32_t> turned;
  for (int32_t g = 0; g < s.codewords; g += 3) {
    turned.push_back(g);
    for (int64_t k = 0; k < s.dim; ++k) p.arrays.codebook[g * s.dim + k] *= -1.0f;
  }
  const Lists changed = reference.lists(widen(p.arrays), margin);
  for (const int32_t g : turned) want[g] = changed[g];
  build(p.arrays, turned, residency, lists, routes);
  expect_lists(lists, residency, routes, want);
  build(p.arrays, {}, residency, lists, routes);
  expect_lists(lists, residency, routes, want);

  // Every expert goes to another owner; the lists are the same.
  std::vector<int32_t> homes(s.experts);
  const BlockPartition blocks{s.experts, test::world().size()};
  for (int64_t e = 0; e < s.experts; ++e)
    homes[e] = static_cast<int32_t>(blocks.owner((e * 7 + 3) % s.experts));
  std::vector<int64_t> owned(test::world().size());
  for (const int32_t r : homes) ++owned[r];
  for (int r = 0; r < test::world().size(); ++r) {
    if (owned[r] != blocks.size(r)) return;  // 7 divides E: not a permutation
  }
  residency.set_homes(homes);
  build(p.arrays, all, residency, lists, routes);
  expect_lists(lists, residency, routes, want);
}

INSTANTIATE_TEST_SUITE_P(All, MoeShortlists,
                         ::testing::Values(Shape{1, 4, 50, 1, 1, 7, 16},
                                           Shape{1, 6, 41, 1, 1, 2, 40}, Shape{1, 4, 3, 1, 1, 5, 2},
                                           Shape{1, 5, 20, 1, 1, 1, 20},
                                           Shape{1, 4, 200, 1, 1, 9, 3}));

}  // namespace
}  // namespace airmoe::oracle
