// The counters of the whole layer, forward, backward and list rebuild, against what this process
// handed to MPI.

#include "comm/mpi_communicator.hpp"
#include "tests/comm/support/wire_check.hpp"
#include "tests/scheduler/oracle/agree.hpp"
#include "tests/support/mpi_test.hpp"

namespace airmoe::oracle {
namespace {

void check(const Shape& shape, Split split, uint64_t seed) {
  const Problem p = random_problem(shape, seed);
  const auto mpi = comm::make_mpi_communicator(
      {.deadline_seconds = 60, .sparse_algorithm = comm::SparseAlgorithm::nbx});
  test::PhaseTap tap(*mpi);
  comm::StatsCommunicator counted(tap);
  test::mpi_counts().clear();
  LayerRun run(counted, p, split);
  run.forward(p.arrays.hidden, run.batch(true, 1.0f));
  run.backward(p.arrays.d_out);
  run.layer.finish_gradients();
  run.forward(p.arrays.hidden, run.batch(false, 0.0f));
  test::expect_equal_counts(counted, {});
  int64_t sent = 0;
  for (const auto& [phase, stats] : counted.stats()) sent += stats.bytes_sent;
  const int64_t over_ranks = counted.all_reduce_value(sent, comm::Reduction::sum);
  EXPECT_EQ(over_ranks > 0, counted.size() > 1);
}

TEST(MoeWire, EveryPhaseSendsWhatIsCounted) {
  for (const Split split : kSplits) check({70, 12, 41, 5, 1, 6, 13}, split, 61);
}
/// Rows long enough that they travel behind their headers.
TEST(MoeWire, LongMessagesToo) {
  check({400, 64, 60, 4, 1, 8, 20}, Split::even, 62);
}

}  // namespace
}  // namespace airmoe::oracle
