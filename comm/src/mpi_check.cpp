#include "comm/src/mpi_check.hpp"

namespace airmoe::comm {

std::string mpi_error_text(int code, const char* call) {
  char text[MPI_MAX_ERROR_STRING] = "";
  int length = 0;
  MPI_Error_string(code, text, &length);
  return fmt::format("{}: {}", call, text);
}

void Deadline::expire(const char* phase, const char* operation, const std::string& missing) const {
  fail(ExitCode::watchdog, "rank {}: phase {}: {}: no answer from {} within {:.3g} s",
       context_.rank, phase, operation, missing, seconds());
}

void wait_collective(MPI_Request* request, const WaitContext& context, const char* phase,
                     const char* operation) {
  Deadline deadline(context);
  int done = 0;
  while (true) {
    mpi_check(MPI_Test(request, &done, MPI_STATUS_IGNORE), operation);
    if (done != 0) return;
    if (deadline.poll()) deadline.expire(phase, operation, "some rank (a collective)");
  }
}

}  // namespace airmoe::comm
