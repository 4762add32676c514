// A program outside the repository: uses installed headers and libraries only, one thing of each.
#include <cstdio>

#include "comm/base/error.hpp"
#include "comm/mpi_communicator.hpp"
#include "comm/mpi_environment.hpp"
#include "router/select.hpp"
#include "scheduler/model_config.hpp"
#include "scheduler/store/stored_file.hpp"

int main(int argc, char** argv) {
  const airmoe::comm::MpiEnvironment mpi(&argc, &argv);
  const auto comm = airmoe::comm::make_mpi_communicator();
  const int ranks = comm->all_reduce_value(1, airmoe::comm::Reduction::sum);
  AIRMOE_CHECK(ranks == comm->size(), "{} ranks counted", ranks);

  airmoe::scheduler::preset("tiny").validate();
  try {
    airmoe::scheduler::read_stored_file("no-such-file.h5");
    AIRMOE_CHECK(false, "a missing file was read");
  } catch (const airmoe::Error& error) {
    AIRMOE_CHECK(error.code() != airmoe::ExitCode::failure, "{}", error.what());
  }
  std::printf("consumer of airmoe: ok\n");
  return 0;
}
