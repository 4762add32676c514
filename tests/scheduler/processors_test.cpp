#include "scheduler/processors.hpp"

#include <algorithm>
#include <vector>

#include <sched.h>
#include <unistd.h>

#include "tests/support/mpi_test.hpp"

namespace airmoe::scheduler {
namespace {

ProcessorSet on(uint64_t machine, int first, int count) {
  ProcessorSet s;
  s.machine = machine;
  for (int i = first; i < first + count; ++i) {
    s.processors[static_cast<std::size_t>(i / 64)] |= uint64_t{1} << (i % 64);
  }
  return s;
}

TEST(Processors, AreSharedByThoseThatMayRunOnThem) {
  // All on all: even shares, at least one each.
  EXPECT_EQ(processor_share(std::vector<ProcessorSet>(1, on(1, 0, 16)), 0), 16);
  EXPECT_EQ(processor_share(std::vector<ProcessorSet>(4, on(1, 0, 16)), 3), 4);
  EXPECT_EQ(processor_share(std::vector<ProcessorSet>(64, on(1, 0, 64)), 63), 1);
  EXPECT_EQ(processor_share(std::vector<ProcessorSet>(3, on(1, 0, 2)), 0), 1);
  EXPECT_EQ(processor_share(std::vector<ProcessorSet>(3, on(1, 0, 192)), 1), 64);
  // Bound to sockets of 12 processors, across a word of the set: two ranks on one, three on the
  // other.
  const std::vector<ProcessorSet> sockets = {on(1, 58, 12), on(1, 58, 12), on(1, 70, 12),
                                             on(1, 70, 12), on(1, 70, 12)};
  const std::vector<int64_t> expected = {6, 6, 4, 4, 4};
  for (int64_t r = 0; r < 5; ++r) {
    EXPECT_EQ(processor_share(sockets, r), expected[static_cast<std::size_t>(r)]) << r;
  }
  // Rank 0 has half of processors 0 to 7, and 8 to 15 alone; other machines do not matter.
  const std::vector<ProcessorSet> overlap = {on(1, 0, 16), on(1, 0, 8), on(2, 0, 16), on(2, 4, 1)};
  EXPECT_EQ(processor_share(overlap, 0), 12);
  EXPECT_EQ(processor_share(overlap, 1), 4);
  EXPECT_EQ(processor_share(overlap, 2), 15);
  EXPECT_EQ(processor_share(overlap, 3), 1);
  // Nothing is known.
  EXPECT_EQ(processor_share(std::vector<ProcessorSet>(2), 0), 1);
}

TEST(Processors, OfThisProcessAreThoseOfItsAffinity) {
  cpu_set_t before, one;
  ASSERT_EQ(sched_getaffinity(0, sizeof(before), &before), 0);
  EXPECT_EQ(allowed_processors(), CPU_COUNT(&before));
  int last = 0;
  for (int i = 0; i < CPU_SETSIZE; ++i) last = CPU_ISSET(i, &before) ? i : last;
  CPU_ZERO(&one);
  CPU_SET(last, &one);
  ASSERT_EQ(sched_setaffinity(0, sizeof(one), &one), 0);
  EXPECT_EQ(allowed_processors(), 1);
  EXPECT_EQ(allowed_processor_set().processors, on(0, last, 1).processors);
  EXPECT_EQ(processor_share(test::world()), 1);
  ASSERT_EQ(sched_setaffinity(0, sizeof(before), &before), 0);
}

TEST(Processors, RanksOfAMachineShareThem) {
  // All ranks of a test are on one machine; they may be bound to processors.
  const int64_t share = processor_share(test::world());
  const int64_t sum = test::world().all_reduce_value(share, comm::Reduction::sum);
  EXPECT_GE(share, 1);
  EXPECT_LE(share, allowed_processors());
  EXPECT_LE(sum, std::max<int64_t>(test::world().size(), sysconf(_SC_NPROCESSORS_ONLN)));
}

}  // namespace
}  // namespace airmoe::scheduler
