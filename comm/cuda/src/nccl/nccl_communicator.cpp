#include "comm/cuda/src/nccl/nccl_communicator.hpp"

#include <cstring>
#include <exception>
#include <numeric>

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

}  // namespace

NcclCommunicator::NcclCommunicator(Communicator& host, double deadline_seconds)
    : DeviceCommunicator(host, deadline_seconds) {
  const ncclUniqueId id = share_unique_id();
  ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
  config.blocking = 0;
  finish(ncclCommInitRankConfig(&comm_, size(), id, rank(), &config), "ncclCommInitRankConfig");
}

NcclCommunicator::~NcclCommunicator() {
  if (comm_ == nullptr) return;
  if (std::uncaught_exceptions() > 0) {
    give_up();
    return;
  }
  try {
    finish(ncclCommFinalize(comm_), "ncclCommFinalize");
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

void NcclCommunicator::finish(ncclResult_t result, const char* call) {
  if (result == ncclSuccess) return;
  const WaitContext context{rank(), deadline_seconds()};
  Deadline deadline(context);
  while (result == ncclInProgress) {
    const ncclResult_t status = ncclCommGetAsyncError(comm_, &result);
    if (status != ncclSuccess) result = status;
    if (result != ncclInProgress || !deadline.poll()) continue;
    give_up();
    deadline.expire(host().phase(), call, "some rank (NCCL)");
  }
  if (result != ncclSuccess) fail_with(result, call);
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
  finish(ncclAllReduce(data, data, size_of_span(count), type_of(type), ncclSum, comm_, stream),
         "ncclAllReduce");
}

void NcclCommunicator::do_broadcast(std::byte* data, int64_t bytes, int root, cudaStream_t stream) {
  finish(ncclBroadcast(data, data, size_of_span(bytes), ncclInt8, root, comm_, stream),
         "ncclBroadcast");
}

void NcclCommunicator::do_all_gather(const std::byte* send, int64_t bytes, std::byte* recv,
                                     cudaStream_t stream) {
  finish(ncclAllGather(send, recv, size_of_span(bytes), ncclInt8, comm_, stream), "ncclAllGather");
}

void NcclCommunicator::do_all_to_all(const std::byte* send, std::span<const int64_t> send_bytes,
                                     std::byte* recv, std::span<const int64_t> recv_bytes,
                                     cudaStream_t stream) {
  exclusive_sums(send_bytes, send_begin_);
  exclusive_sums(recv_bytes, recv_begin_);
  const auto issue = [&](ncclResult_t result, const char* call) {
    if (result != ncclSuccess && result != ncclInProgress) fail_with(result, call);
  };
  issue(ncclGroupStart(), "ncclGroupStart");
  for (int i = 1; i < size(); ++i) {  // in another order on every rank
    const int to = (rank() + i) % size(), from = (rank() + size() - i) % size();
    if (send_bytes[to] > 0) {
      issue(ncclSend(send + send_begin_[to], size_of_span(send_bytes[to]), ncclInt8, to, comm_,
                     stream),
            "ncclSend");
    }
    if (recv_bytes[from] > 0) {
      issue(ncclRecv(recv + recv_begin_[from], size_of_span(recv_bytes[from]), ncclInt8, from,
                     comm_, stream),
            "ncclRecv");
    }
  }
  finish(ncclGroupEnd(), "ncclGroupEnd");
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
