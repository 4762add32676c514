// Distributed shortlists: exactly the global top M, ties by id, whatever the rank count; the cover
// and the resident part say the same as the lists.

#include "scheduler/moe/shortlists.hpp"
#include "tests/scheduler/oracle/agree.hpp"
#include "tests/support/mpi_test.hpp"

namespace airmoe::oracle {
namespace {

using scheduler::Shortlists;

class MoeShortlists : public ::testing::TestWithParam<Shape> {
 protected:
  void build(const Arrays<float>& a, std::span<const int32_t> which, Shortlists& lists) {
    const int64_t dim = GetParam().dim;
    const BlockPartition& part = lists.experts();
    const int rank = test::world().rank();
    const ConstMatrix codebook(a.codebook.data(), GetParam().codewords, dim);
    const ConstMatrix mine(a.centroid.data() + part.begin(rank) * dim, part.size(rank), dim);
    lists.rebuild(codebook, mine, which, std::nullopt);
  }

  // All lists, from the ranks that merged them, against `want`; then what each rank knows.
  void expect_lists(const Shortlists& lists, const Lists& want) {
    comm::Communicator& comm = test::world();
    const int64_t length = GetParam().shortlist;
    const std::span<const int32_t> merged = lists.merged_lists();
    EXPECT_EQ(std::ssize(merged), lists.merged_codewords().size(comm.rank()) * length);
    const std::vector<int32_t> all = gather(comm, merged.data(), std::ssize(merged));
    for (int64_t g = 0; g < GetParam().codewords; ++g) {
      const std::vector<int32_t> got(all.begin() + g * length, all.begin() + (g + 1) * length);
      EXPECT_EQ(got, want[g]) << "codeword " << g;
      std::vector<int32_t> sorted = want[g];
      std::sort(sorted.begin(), sorted.end());
      int32_t cover = 0;
      for (int r = 0; r < comm.size(); ++r) {
        const BlockPartition& part = lists.experts();
        std::vector<int32_t> there;
        for (const int32_t e : sorted) {
          if (part.owner(e) == r) there.push_back(static_cast<int32_t>(e - part.begin(r)));
        }
        EXPECT_EQ(lists.candidates(g, r), std::ssize(there));
        cover += !there.empty();
        if (r != comm.rank()) continue;
        const std::span<const int32_t> resident = lists.resident(g);
        EXPECT_EQ(std::vector<int32_t>(resident.begin(), resident.end()), there);
      }
      EXPECT_EQ(lists.cover_size(g), cover);
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
  std::vector<int32_t> all(s.codewords);
  std::iota(all.begin(), all.end(), 0);
  build(p.arrays, all, lists);
  expect_lists(lists, want);

  // Every third codeword turns round; only those lists follow.
  std::vector<int32_t> turned;
  for (int32_t g = 0; g < s.codewords; g += 3) {
    turned.push_back(g);
    for (int64_t k = 0; k < s.dim; ++k) p.arrays.codebook[g * s.dim + k] *= -1.0f;
  }
  const Lists changed = reference.lists(widen(p.arrays), margin);
  for (const int32_t g : turned) want[g] = changed[g];
  build(p.arrays, turned, lists);
  expect_lists(lists, want);
  build(p.arrays, {}, lists);
  expect_lists(lists, want);
}

INSTANTIATE_TEST_SUITE_P(All, MoeShortlists,
                         ::testing::Values(Shape{1, 4, 50, 1, 1, 7, 16},
                                           Shape{1, 6, 41, 1, 1, 2, 40}, Shape{1, 4, 3, 1, 1, 5, 2},
                                           Shape{1, 5, 20, 1, 1, 1, 20},
                                           Shape{1, 4, 200, 1, 1, 9, 3}));

}  // namespace
}  // namespace airmoe::oracle
