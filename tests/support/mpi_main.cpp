// main() of multi-rank tests. The exit code is the largest over the ranks. Where every test skipped
// itself on every rank, rank 0 ends with kSkippedLine.

#include <cstdio>
#include <memory>

#include <gtest/gtest.h>

#include "comm/base/blas.hpp"
#include "comm/mpi_communicator.hpp"
#include "comm/mpi_environment.hpp"
#include "tests/support/mpi_listener.hpp"
#include "tests/support/mpi_test.hpp"
#include "tests/support/skipped.hpp"

namespace airmoe::test {
namespace {

constexpr double kDeadlineSeconds = 60;

const comm::MpiEnvironment* the_environment = nullptr;
comm::Communicator* the_world = nullptr;

int run_all_tests(const comm::MpiEnvironment& mpi) {
  auto& listeners = ::testing::UnitTest::GetInstance()->listeners();
  listeners.Append(new MpiListener(mpi, listeners.Release(listeners.default_result_printer())));
  if (mpi.rank() != 0) delete listeners.Release(listeners.default_xml_generator());

  const auto world = comm::make_mpi_communicator({.deadline_seconds = kDeadlineSeconds});
  the_environment = &mpi;
  the_world = world.get();
  const int code = mpi.max_over_ranks(RUN_ALL_TESTS());
  the_world = nullptr;
  if (code != 0 && mpi.rank() == 0) std::fputs("FAILED on at least one rank\n", stderr);
  return code;
}

}  // namespace

const comm::MpiEnvironment& environment() {
  return *the_environment;
}
comm::Communicator& world() {
  return *the_world;
}
bool on_all_ranks(bool condition) {
  return environment().max_over_ranks(condition ? 0 : 1) == 0;
}

}  // namespace airmoe::test

int main(int argc, char** argv) {
  airmoe::blas::prepare_process(argv);
  int code = 0;
  bool skipped = false;
  {
    const airmoe::comm::MpiEnvironment mpi(&argc, &argv);
    ::testing::InitGoogleTest(&argc, argv);
    code = airmoe::test::run_all_tests(mpi);
    const bool all = code == 0 && mpi.max_over_ranks(airmoe::test::all_skipped() ? 0 : 1) == 0;
    skipped = all && mpi.rank() == 0;
  }
  if (skipped) std::puts(airmoe::test::kSkippedLine);
  return code;
}
