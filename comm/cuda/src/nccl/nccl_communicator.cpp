#include "comm/cuda/src/nccl/nccl_communicator.hpp"

#include <atomic>
#include <cstdio>
#include <cstring>
#include <exception>
#include <memory>
#include <numeric>
#include <thread>

#include "comm/cuda/src/nccl_backend.hpp"
#include "comm/src/mpi_check.hpp"

namespace airmoe::comm::cuda {
namespace {

std::size_t size_of_span(int64_t bytes) {
  return static_cast<std::size_t>(bytes);
}

ncclDataType_t type_of(DType type) {
  switch (type) {
    case DType::f32:
      return ncclFloat32;
    case DType::f64:
      return ncclFloat64;
    case DType::i32:
      return ncclInt32;
    case DType::i64:
      return ncclInt64;
    default:
      fail(ExitCode::failure, "all_reduce_sum of {}", name_of(type));
  }
}

void exclusive_sums(std::span<const int64_t> counts, std::vector<int64_t>& sums) {
  sums.resize(counts.size());
  std::exclusive_scan(counts.begin(), counts.end(), sums.begin(), int64_t{0});
}

/// Collective: ncclCommInitRank, in a thread of its own, since it waits for the other ranks and
/// cannot be called off. Where it does not end in time that thread is left behind; the run ends.
ncclComm_t initialise(const ncclUniqueId& id, const WaitContext& context, int size,
                      const char* phase) {
  struct State {
    ncclComm_t comm = nullptr;
    ncclResult_t result = ncclSuccess;
    std::atomic<bool> done = false;
  };
  const auto state = std::make_shared<State>();
  int device = 0;
  AIRMOE_CUDA(cudaGetDevice(&device));
  std::thread([state, id, size, rank = context.rank, device] {
    state->result = cudaSetDevice(device) == cudaSuccess
                        ? ncclCommInitRank(&state->comm, size, id, rank)
                        : ncclUnhandledCudaError;
    state->done = true;
  }).detach();
  Deadline deadline(context);
  while (!state->done) {
    if (deadline.poll()) deadline.expire(phase, "ncclCommInitRank", "some rank (NCCL)");
  }
  if (state->result != ncclSuccess) {
    fail(ExitCode::failure, "rank {}: phase {}: ncclCommInitRank: {} {}", context.rank, phase,
         ncclGetErrorString(state->result), ncclGetLastError(nullptr));
  }
  return state->comm;
}

}  // namespace

NcclCommunicator::NcclCommunicator(Communicator& host, double deadline_seconds)
    : DeviceCommunicator(host, deadline_seconds) {
  const ncclUniqueId id = share_unique_id();
  comm_ = initialise(id, {rank(), deadline_seconds}, size(), host.phase());
  watch_.emplace(comm_, deadline_seconds);
}

NcclCommunicator::~NcclCommunicator() {
  if (comm_ == nullptr) return;
  if (std::uncaught_exceptions() > 0) {
    give_up();
    return;
  }
  try {
    call("ncclCommFinalize", [&] { return ncclCommFinalize(comm_); });
    ncclCommDestroy(comm_);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "[rank %d] %s\n", rank(), error.what());
  }
}

// A failure on rank 0 must end all ranks, so its result goes along.
ncclUniqueId NcclCommunicator::share_unique_id() {
  struct Message {
    ncclUniqueId id;
    int32_t result;
  } message = {};
  if (rank() == 0) message.result = ncclGetUniqueId(&message.id);
  std::vector<uint8_t> bytes(sizeof(Message));
  std::memcpy(bytes.data(), &message, sizeof(Message));
  host().broadcast(std::span<uint8_t>(bytes), 0);
  std::memcpy(&message, bytes.data(), sizeof(Message));
  if (message.result != ncclSuccess) {
    fail(ExitCode::config, "NCCL does not start on rank 0: {}; try --device-transport staged",
         ncclGetErrorString(static_cast<ncclResult_t>(message.result)));
  }
  return message.id;
}

template <class Body>
void NcclCommunicator::call(const char* name, Body body) {
  AIRMOE_CHECK(comm_ != nullptr, "{} after an error of NCCL", name);
  watch_->begin();
  const ncclResult_t result = body();
  if (!watch_->end()) {
    comm_ = nullptr;
    fail(ExitCode::watchdog,
         "rank {}: phase {}: {}: no answer from some rank (NCCL) within {:.3g} s", rank(),
         host().phase(), name, deadline_seconds());
  }
  if (result != ncclSuccess) fail_with(result, name);
}

void NcclCommunicator::fail_with(ncclResult_t result, const char* call) {
  const char* detail = comm_ == nullptr ? "" : ncclGetLastError(comm_);
  const std::string text = fmt::format("rank {}: phase {}: {}: {} {}", rank(), host().phase(), call,
                                       ncclGetErrorString(result), detail == nullptr ? "" : detail);
  give_up();
  fail(ExitCode::failure, "{}", text);
}

void NcclCommunicator::check_progress() {
  AIRMOE_CHECK(comm_ != nullptr, "NCCL after an error");
  ncclResult_t result = ncclSuccess;
  const ncclResult_t status = ncclCommGetAsyncError(comm_, &result);
  if (status != ncclSuccess) fail_with(status, "ncclCommGetAsyncError");
  if (result != ncclSuccess && result != ncclInProgress) fail_with(result, "NCCL on a stream");
}

void NcclCommunicator::give_up() noexcept {
  if (comm_ != nullptr) ncclCommAbort(comm_);
  comm_ = nullptr;
}

void NcclCommunicator::do_all_reduce(void* data, int64_t count, DType type, cudaStream_t stream) {
  call("ncclAllReduce", [&] {
    return ncclAllReduce(data, data, size_of_span(count), type_of(type), ncclSum, comm_, stream);
  });
}

void NcclCommunicator::do_broadcast(std::byte* data, int64_t bytes, int root, cudaStream_t stream) {
  call("ncclBroadcast", [&] {
    return ncclBroadcast(data, data, size_of_span(bytes), ncclInt8, root, comm_, stream);
  });
}

void NcclCommunicator::do_all_gather(const std::byte* send, int64_t bytes, std::byte* recv,
                                     cudaStream_t stream) {
  call("ncclAllGather",
       [&] { return ncclAllGather(send, recv, size_of_span(bytes), ncclInt8, comm_, stream); });
}

void NcclCommunicator::do_all_to_all(const std::byte* send, std::span<const int64_t> send_bytes,
                                     std::byte* recv, std::span<const int64_t> recv_bytes,
                                     cudaStream_t stream) {
  exclusive_sums(send_bytes, send_begin_);
  exclusive_sums(recv_bytes, recv_begin_);
  call("ncclSend and ncclRecv", [&] {
    ncclResult_t result = ncclGroupStart();
    const auto keep = [&](ncclResult_t r) {
      if (result == ncclSuccess) result = r;
    };
    for (int i = 1; i < size(); ++i) {  // in another order on every rank
      const int to = (rank() + i) % size(), from = (rank() + size() - i) % size();
      if (send_bytes[to] > 0) {
        keep(ncclSend(send + send_begin_[to], size_of_span(send_bytes[to]), ncclInt8, to, comm_,
                      stream));
      }
      if (recv_bytes[from] > 0) {
        keep(ncclRecv(recv + recv_begin_[from], size_of_span(recv_bytes[from]), ncclInt8, from,
                      comm_, stream));
      }
    }
    keep(ncclGroupEnd());
    return result;
  });
}

bool has_nccl() {
  return true;
}

std::string nccl_library_version() {
  int version = 0;
  if (ncclGetVersion(&version) != ncclSuccess) return "";
  return fmt::format("{}.{}.{}", version / 10000, version / 100 % 100, version % 100);
}

std::unique_ptr<DeviceCommunicator> make_nccl_communicator(Communicator& host,
                                                           double deadline_seconds) {
  return std::make_unique<NcclCommunicator>(host, deadline_seconds);
}

}  // namespace airmoe::comm::cuda
