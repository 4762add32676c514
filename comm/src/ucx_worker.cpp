#include "comm/src/ucx_worker.hpp"

#include <algorithm>

#include "comm/mpi_backend.hpp"
#include "comm/src/ucx_operations.hpp"

namespace airmoe::comm {
namespace {

// How long a rank that lost a peer waits for the rank that knows why.
constexpr double kSecondsAfterLoss = 2;
constexpr double kSecondsToLeaveAfterFailure = 0.5;
constexpr double kSecondsToClose = 1;
// The least patience with ranks that start; libraries are loaded and devices opened meanwhile.
constexpr double kSecondsToStart = 60;
constexpr double kSecondsToCancel = 0.02;

double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

void ucx_check(ucs_status_t status, const char* call) {
  if (status != UCS_OK) throw Error(ExitCode::config, ucx_error_text(status, call));
}

}  // namespace

std::string ucx_error_text(ucs_status_t status, const char* call) {
  return fmt::format("{}: {}", call, ucs_status_string(status));
}

UcxWorker::UcxWorker(MPI_Comm parent, const UcxOptions& options) {
  mpi_check(MPI_Comm_dup(parent, &comm_), "MPI_Comm_dup");
  mpi_check(MPI_Comm_set_errhandler(comm_, MPI_ERRORS_RETURN), "MPI_Comm_set_errhandler");
  mpi_check(MPI_Comm_rank(comm_, &context_.rank), "MPI_Comm_rank");
  mpi_check(MPI_Comm_size(comm_, &size_), "MPI_Comm_size");
  context_.deadline_seconds = options.deadline_seconds;
  peers_.resize(static_cast<std::size_t>(size_));
  for (int r = 0; r < size_; ++r) {
    peers_[r].worker = this;
    peers_[r].rank = r;
  }
  WaitContext starting = context_;
  starting.deadline_seconds = std::max(options.deadline_seconds, kSecondsToStart);
  std::string problem;
  try {
    start_worker();
  } catch (const Error& error) {
    problem = error.what();
  }
  exchange_addresses(starting, problem);
  const NodeMap nodes = find_nodes(comm_, options.ranks_per_node);
  for (const int r : nodes.ranks_of[nodes.node_of[rank()]]) peers_[r].is_near = true;
}

void UcxWorker::start_worker() {
  ucp_config_t* config = nullptr;
  ucx_check(ucp_config_read(nullptr, nullptr, &config), "ucp_config_read");
  ucp_params_t params{};
  params.field_mask = UCP_PARAM_FIELD_FEATURES | UCP_PARAM_FIELD_ESTIMATED_NUM_EPS;
  params.features = UCP_FEATURE_TAG;
  params.estimated_num_eps = static_cast<std::size_t>(size_);
  const ucs_status_t status = ucp_init(&params, config, &ucp_);
  ucp_config_release(config);
  ucx_check(status, "ucp_init");
  ucp_worker_params_t worker{};
  worker.field_mask = UCP_WORKER_PARAM_FIELD_THREAD_MODE;
  worker.thread_mode = UCS_THREAD_MODE_SINGLE;
  ucx_check(ucp_worker_create(ucp_, &worker, &worker_), "ucp_worker_create");
}

// A rank without a worker has an address of no bytes, so that all ranks learn of it.
void UcxWorker::exchange_addresses(const WaitContext& starting, const std::string& problem) {
  ucp_address_t* address = nullptr;
  std::size_t length = 0;
  if (problem.empty()) {
    ucx_check(ucp_worker_get_address(worker_, &address, &length), "ucp_worker_get_address");
  }
  const int bytes = static_cast<int>(length);
  std::vector<int> lengths(static_cast<std::size_t>(size_));
  MPI_Request request = MPI_REQUEST_NULL;
  mpi_check(MPI_Iallgather(&bytes, 1, MPI_INT, lengths.data(), 1, MPI_INT, comm_, &request),
            "MPI_Iallgather");
  wait_collective(&request, starting, "start", "lengths of UCX addresses");
  address_offsets_.assign(1, 0);
  for (const int l : lengths) address_offsets_.push_back(address_offsets_.back() + l);
  addresses_.resize(static_cast<std::size_t>(address_offsets_.back()));
  mpi_check(MPI_Iallgatherv(address, bytes, MPI_BYTE, addresses_.data(), lengths.data(),
                            address_offsets_.data(), MPI_BYTE, comm_, &request),
            "MPI_Iallgatherv");
  wait_collective(&request, starting, "start", "UCX addresses");
  if (address != nullptr) ucp_worker_release_address(worker_, address);
  const auto failed = std::find(lengths.begin(), lengths.end(), 0) - lengths.begin();
  if (failed < size_) {
    fail(ExitCode::config,
         "UCX does not start on rank {} ({}); look at UCX_TLS and UCX_NET_DEVICES", failed,
         problem.empty() ? "that rank says why" : problem);
  }
}

ucp_ep_h UcxWorker::endpoint(int peer) {
  Peer& to = peers_[peer];
  if (to.endpoint != nullptr) return to.endpoint;
  ucp_ep_params_t params{};
  params.field_mask = UCP_EP_PARAM_FIELD_REMOTE_ADDRESS | UCP_EP_PARAM_FIELD_ERR_HANDLING_MODE;
  params.address = reinterpret_cast<const ucp_address_t*>(&addresses_[address_offsets_[peer]]);
  params.err_mode = UCP_ERR_HANDLING_MODE_NONE;
  if (!to.is_near) {
    params.field_mask |= UCP_EP_PARAM_FIELD_ERR_HANDLER;
    params.err_mode = UCP_ERR_HANDLING_MODE_PEER;
    params.err_handler.arg = &to;
    params.err_handler.cb = [](void* arg, ucp_ep_h, ucs_status_t status) {
      Peer& lost = *static_cast<Peer*>(arg);
      lost.worker->note_loss(lost.rank, status);
    };
  }
  const ucs_status_t status = ucp_ep_create(worker_, &params, &to.endpoint);
  if (status != UCS_OK) {
    to.endpoint = nullptr;
    fail(ExitCode::config,
         "rank {}: UCX has no way to rank {} ({}); look at UCX_TLS and "
         "UCX_NET_DEVICES",
         context_.rank, peer, ucs_status_string(status));
  }
  return to.endpoint;
}

void UcxWorker::check_usable() const {
  if (abandoned_) {
    fail(ExitCode::failure, "rank {}: a call of this communicator has failed; it can only be ended",
         context_.rank);
  }
}

void UcxWorker::note_loss(int peer, ucs_status_t status) noexcept {
  if (peers_[peer].loss == UCS_OK) peers_[peer].loss = status;
  if (!some_lost_) first_loss_ = std::chrono::steady_clock::now();
  some_lost_ = true;
}

bool UcxWorker::lost_for_long() const {
  return some_lost_ && seconds_since(first_loss_) > kSecondsAfterLoss;
}

std::string UcxWorker::losses() const {
  std::string text;
  for (const Peer& p : peers_) {
    if (p.loss == UCS_OK) continue;
    text += fmt::format("{} rank {}: {}", text.empty() ? " (lost connections:" : ",", p.rank,
                        ucs_status_string(p.loss));
  }
  return text.empty() ? text : text + ")";
}

void UcxWorker::abandon() noexcept {
  if (abandoned_) return;
  abandoned_ = true;
  for (UcxOperations* operations : operations_) operations->cancel();
  close_endpoints(UCP_EP_CLOSE_FLAG_FORCE, kSecondsToCancel);
}

// Returns whether all that were to be closed are. UCX closes by force only endpoints with error
// handling.
bool UcxWorker::close_endpoints(unsigned flags, double seconds) noexcept {
  const auto start = std::chrono::steady_clock::now();
  ucp_request_param_t param{};
  param.op_attr_mask = UCP_OP_ATTR_FIELD_FLAGS;
  param.flags = flags;
  std::size_t open = 0;
  std::vector<void*> requests(peers_.size());
  for (Peer& p : peers_) {
    const bool by_force = (flags & UCP_EP_CLOSE_FLAG_FORCE) != 0;
    if (p.endpoint == nullptr || (by_force && p.is_near)) continue;
    ucs_status_ptr_t request = ucp_ep_close_nbx(p.endpoint, &param);
    p.endpoint = nullptr;
    if (request != nullptr && !UCS_PTR_IS_ERR(request)) requests[open++] = request;
  }
  std::size_t closed = 0;
  do {
    progress();
    closed = 0;
    for (std::size_t i = 0; i < open; ++i) {
      if (ucp_request_check_status(requests[i]) != UCS_INPROGRESS) ++closed;
    }
    sched_yield();
  } while (closed < open && seconds_since(start) < seconds);
  if (closed < open) return false;
  for (std::size_t i = 0; i < open; ++i) ucp_request_free(requests[i]);
  return true;
}

// True when every rank is here, none has failed, and nothing of this rank is under way.
bool UcxWorker::leave_together() noexcept {
  struct Farewell {  // left behind when it does not end
    int well = 0;
    int all_well = 0;
    MPI_Request request = MPI_REQUEST_NULL;
  };
  auto* farewell = new Farewell;
  farewell->well = abandoned_ || some_lost_ ? 0 : 1;
  const double seconds = abandoned_
                             ? std::min(context_.deadline_seconds, kSecondsToLeaveAfterFailure)
                             : context_.deadline_seconds;
  const auto start = std::chrono::steady_clock::now();
  void* flush = nullptr;
  if (!abandoned_) {
    const ucp_request_param_t param{};
    flush = ucp_worker_flush_nbx(worker_, &param);
    if (UCS_PTR_IS_ERR(flush)) return false;
  }
  bool announced = false;
  while (seconds_since(start) < seconds) {
    if (!abandoned_) progress();
    if (flush != nullptr && ucp_request_check_status(flush) != UCS_INPROGRESS) {
      ucp_request_free(flush);
      flush = nullptr;
    }
    if (flush == nullptr && !announced) {
      announced = true;
      if (MPI_Iallreduce(&farewell->well, &farewell->all_well, 1, MPI_INT, MPI_MIN, comm_,
                         &farewell->request) != MPI_SUCCESS) {
        return false;
      }
    }
    int done = 0;
    if (announced && MPI_Test(&farewell->request, &done, MPI_STATUS_IGNORE) != MPI_SUCCESS) {
      return false;
    }
    if (done != 0) {
      const bool all_well = farewell->all_well == 1;
      delete farewell;
      return all_well;
    }
    sched_yield();
  }
  return false;
}

UcxWorker::~UcxWorker() {
  int ended = 0;
  MPI_Finalized(&ended);
  if (ended != 0 || std::uncaught_exceptions() > 0 || worker_ == nullptr) return;
  if (!leave_together() || !close_endpoints(0, kSecondsToClose)) return;
  ucp_worker_destroy(worker_);
  ucp_cleanup(ucp_);
  MPI_Comm_free(&comm_);
}

}  // namespace airmoe::comm
