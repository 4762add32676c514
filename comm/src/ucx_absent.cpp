// Stands in for the UCX backend in builds without UCX.

#include "comm/base/error.hpp"
#include "comm/ucx_communicator.hpp"

namespace airmoe::comm {

bool has_ucx() {
  return false;
}

std::string ucx_library_version() {
  return "";
}

std::unique_ptr<Communicator> make_ucx_communicator(const UcxOptions&) {
  fail(ExitCode::config,
       "this airmoe was built without UCX: use the mpi transport, or install UCX (Debian and "
       "Ubuntu: libucx-dev) and configure again with -DAIRMOE_WITH_UCX=ON");
}

}  // namespace airmoe::comm
