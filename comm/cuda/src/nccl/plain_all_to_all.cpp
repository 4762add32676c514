#include "comm/cuda/plain_all_to_all.hpp"

#include <cstring>
#include <vector>

#include <nccl.h>

#include "comm/base/error.hpp"

namespace airmoe::comm::cuda {
namespace {

void check(ncclResult_t result, const char* call) {
  AIRMOE_CHECK(result == ncclSuccess, "{}: {}", call, ncclGetErrorString(result));
}

}  // namespace

struct PlainAllToAll::State {
  ncclComm_t comm = nullptr;
  int rank = 0, size = 1;
};

PlainAllToAll::PlainAllToAll(Communicator& host) : state_(std::make_unique<State>()) {
  state_->rank = host.rank();
  state_->size = host.size();
  ncclUniqueId id = {};
  if (host.rank() == 0) check(ncclGetUniqueId(&id), "ncclGetUniqueId");
  std::vector<uint8_t> bytes(sizeof(id));
  std::memcpy(bytes.data(), &id, sizeof(id));
  host.broadcast(std::span<uint8_t>(bytes), 0);
  std::memcpy(&id, bytes.data(), sizeof(id));
  check(ncclCommInitRank(&state_->comm, state_->size, id, state_->rank), "ncclCommInitRank");
}

PlainAllToAll::~PlainAllToAll() {
  if (state_->comm != nullptr) ncclCommDestroy(state_->comm);
}

void PlainAllToAll::run(const std::byte* send, std::byte* recv, int64_t bytes,
                        cudaStream_t stream) {
  check(ncclGroupStart(), "ncclGroupStart");
  for (int peer = 0; peer < state_->size; ++peer) {
    if (peer == state_->rank) continue;
    const auto count = static_cast<std::size_t>(bytes);
    check(ncclSend(send + peer * bytes, count, ncclInt8, peer, state_->comm, stream), "ncclSend");
    check(ncclRecv(recv + peer * bytes, count, ncclInt8, peer, state_->comm, stream), "ncclRecv");
  }
  check(ncclGroupEnd(), "ncclGroupEnd");
}

}  // namespace airmoe::comm::cuda
