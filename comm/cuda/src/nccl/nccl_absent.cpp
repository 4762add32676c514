// Stands in for the NCCL backend in builds without NCCL.

#include "comm/base/error.hpp"
#include "comm/cuda/plain_all_to_all.hpp"
#include "comm/cuda/src/nccl_backend.hpp"

namespace airmoe::comm::cuda {
namespace {

[[noreturn]] void fail_without_nccl() {
  fail(ExitCode::config,
       "this airmoe was built without NCCL: use --device-transport staged, or install NCCL "
       "(libnccl-dev) and configure again with -DAIRMOE_WITH_NCCL=ON");
}

}  // namespace

struct PlainAllToAll::State {};

PlainAllToAll::PlainAllToAll(Communicator&) {
  fail_without_nccl();
}
PlainAllToAll::~PlainAllToAll() = default;
void PlainAllToAll::run(const std::byte*, std::byte*, int64_t, cudaStream_t) {
  fail_without_nccl();
}

bool has_nccl() {
  return false;
}

std::string nccl_library_version() {
  return "";
}

std::unique_ptr<DeviceCommunicator> make_nccl_communicator(Communicator&, double) {
  fail_without_nccl();
}

}  // namespace airmoe::comm::cuda
