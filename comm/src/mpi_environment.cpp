#include "comm/mpi_environment.hpp"

#include <cstdlib>
#include <exception>

#include <mpi.h>

#include "comm/src/mpi_check.hpp"

namespace airmoe::comm {

MpiEnvironment::MpiEnvironment(int* argc, char*** argv) {
  int provided = 0;
  mpi_check(MPI_Init_thread(argc, argv, MPI_THREAD_FUNNELED, &provided), "MPI_Init_thread");
  AIRMOE_CHECK(provided >= MPI_THREAD_FUNNELED, "the MPI library does not allow other threads");
  mpi_check(MPI_Comm_rank(MPI_COMM_WORLD, &rank_), "MPI_Comm_rank");
  mpi_check(MPI_Comm_size(MPI_COMM_WORLD, &size_), "MPI_Comm_size");
}

MpiEnvironment::~MpiEnvironment() {
  if (std::uncaught_exceptions() > 0) abort_all(static_cast<int>(ExitCode::failure));
  MPI_Finalize();
}

int MpiEnvironment::max_over_ranks(int value) const {
  int result = value;
  mpi_check(MPI_Allreduce(&value, &result, 1, MPI_INT, MPI_MAX, MPI_COMM_WORLD), "MPI_Allreduce");
  return result;
}

void MpiEnvironment::abort_all(int code) {
  int started = 0;
  int ended = 0;
  MPI_Initialized(&started);
  MPI_Finalized(&ended);
  if (started != 0 && ended == 0) MPI_Abort(MPI_COMM_WORLD, code);
  std::_Exit(code);
}

}  // namespace airmoe::comm
