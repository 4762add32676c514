#pragma once
// Moves elements of device memory between ranks, in stream order.
//
// Collective calls are made by every rank in the same order; counts are elements; all memory is
// device memory of the caller, which must stay valid until the stream has passed the call. What is
// received may be used by whatever comes later on the stream. Backends:
//   nccl     NCCL over NVLink, PCIe or InfiniBand; one GPU per rank. Calls return at once (the
//   first
//            between two ranks waits for their connection).
//   staged   through page-locked host memory and the host's Communicator; several ranks may share a
//            GPU. The host waits for the stream in every call that sends something.
//   direct   as staged, but all_to_all_v and exchange_rows hand device memory to MPI, where that
//            says that it can read it.
//
// The host waits for a stream with communication on it by wait(), which has a deadline: after it,
// or after an error of NCCL, Error(ExitCode::watchdog or failure) names the rank and the phase, the
// communicator is good for nothing but being destroyed and the run should end. Wrong arguments
// throw Error(ExitCode::failure). The phase is that of the host's communicator (ScopedPhase).

#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

#include "comm/base/cuda/device_buffer.hpp"
#include "comm/base/cuda/stream.hpp"
#include "comm/communicator.hpp"
#include "comm/stats_communicator.hpp"

namespace airmoe::comm::cuda {

using airmoe::cuda::DeviceBuffer;

/// Element types of sums.
template <class T>
concept Summable = std::is_same_v<T, float> || std::is_same_v<T, double> ||
    std::is_same_v<T, int32_t> || std::is_same_v<T, int64_t>;

/// Which rows of a table go to which rank. Make it with DeviceCommunicator::plan_rows.
struct RowPlan {
  std::vector<int64_t> send_counts;  ///< rows for each rank. Shape: [size]
  std::vector<int64_t> recv_counts;  ///< rows from each rank. Shape: [size]
  const int32_t* rows = nullptr;     ///< numbers of the rows, by rank; device memory of the caller
  int64_t sent = 0, received = 0;    ///< sums of the counts
};

class DeviceCommunicator {
 public:
  using Stats = std::map<std::string, PhaseStats, std::less<>>;

  virtual ~DeviceCommunicator() = default;
  DeviceCommunicator(const DeviceCommunicator&) = delete;
  DeviceCommunicator& operator=(const DeviceCommunicator&) = delete;

  /// Local.
  int rank() const { return host_.rank(); }
  int size() const { return host_.size(); }
  /// Whose phase labels calls.
  Communicator& host() const { return host_; }
  /// Local: "nccl", "staged" or "direct".
  virtual const char* backend() const = 0;
  /// Local: whether the host's communicator carries the messages, and counts them if it counts.
  virtual bool counted_by_host() const = 0;

  /// Collective. data[i] = sum of data[i] over all ranks, in place; the same bits on every rank. On
  /// staged and direct in rank order, in double, rounded once; with NCCL as NCCL adds, which is
  /// repeatable for one number of ranks. Integers wrap.
  template <Summable T>
  void all_reduce_sum(T* data, int64_t count, cudaStream_t stream) {
    all_reduce_bytes(data, count, dtype_of<T>, stream);
  }

  /// Collective. `data` of `root` replaces `data` of the others.
  template <class T>
  void broadcast(T* data, int64_t count, int root, cudaStream_t stream) {
    static_assert(std::is_trivially_copyable_v<T>);
    broadcast_bytes(as_bytes(data), bytes<T>(count), root, stream);
  }

  /// Collective. recv = send of rank 0, of rank 1, ... Shapes: send [count], recv [size(), count].
  /// send may be the rank's own part of recv.
  template <class T>
  void all_gather(const T* send, int64_t count, T* recv, cudaStream_t stream) {
    static_assert(std::is_trivially_copyable_v<T>);
    all_gather_bytes(as_bytes(send), bytes<T>(count), as_bytes(recv), stream);
  }

  /// Collective. send holds send_counts[r] elements for rank r in rank order; recv gets
  /// recv_counts[r] elements from rank r in rank order; counts are on the host. Pairs with a zero
  /// count cost no message. Without `copies_own` the rank's own part of recv stays as it is.
  /// Shapes: send [sum(send_counts)], recv [sum(recv_counts)], counts [size()].
  template <class T>
  void all_to_all_v(const T* send, std::span<const int64_t> send_counts, T* recv,
                    std::span<const int64_t> recv_counts, cudaStream_t stream,
                    bool copies_own = true) {
    static_assert(std::is_trivially_copyable_v<T>);
    all_to_all_bytes(as_bytes(send), send_counts, as_bytes(recv), recv_counts, bytes<T>(1),
                     copies_own, stream);
  }

  /// Collective, on the host: send_counts[r] rows go to rank r; `rows` (device memory, by rank)
  /// must outlive the plan. Ranks tell each other their counts. A plan that is given again keeps
  /// its memory.
  void plan_rows(std::span<const int64_t> send_counts, const int32_t* rows, RowPlan& plan);

  /// Collective: rows of `table` to the ranks of the plan. received holds the rows in the order of
  /// their source ranks. Shapes: table [any, width], received [plan.received, width]. Packing takes
  /// plan.sent * width elements of memory.
  template <class T>
  void exchange_rows(const RowPlan& plan, const T* table, int64_t width, T* received,
                     cudaStream_t stream) {
    static_assert(std::is_trivially_copyable_v<T>);
    exchange_row_bytes(plan, as_bytes(table), bytes<T>(width), as_bytes(received), stream);
  }
  /// Collective: one row back for each that exchange_rows brought; returned[i] answers the i-th row
  /// of the plan. copies_own: as in all_to_all_v. Shapes: results [plan.received, width], returned
  /// [plan.sent, width].
  template <class T>
  void return_rows(const RowPlan& plan, const T* results, int64_t width, T* returned,
                   cudaStream_t stream, bool copies_own = true) {
    static_assert(std::is_trivially_copyable_v<T>);
    all_to_all_bytes(as_bytes(results), plan.recv_counts, as_bytes(returned), plan.send_counts,
                     bytes<T>(width), copies_own, stream);
  }

  /// Local: the host waits until `stream` has done all it was given, or has reached the event.
  void wait(cudaStream_t stream);
  void wait(const airmoe::cuda::Event& event);

  /// Local: what this rank sent to other ranks, by phase, since construction or reset_stats().
  /// Exact for all_to_all_v and rows; all_gather counts one message to each other rank, broadcast
  /// its payload once at the root, all_reduce_sum its payload once at every rank. seconds: of the
  /// host, inside calls.
  const Stats& stats() const { return stats_; }
  PhaseStats stats(std::string_view phase) const;
  void reset_stats();

 protected:
  DeviceCommunicator(Communicator& host, double deadline_seconds);

  double deadline_seconds() const { return deadline_seconds_; }

  // What a backend implements; never called for one rank, nor with nothing to move on any rank.
  virtual void do_all_reduce(void* data, int64_t count, DType type, cudaStream_t stream) = 0;
  virtual void do_broadcast(std::byte* data, int64_t bytes, int root, cudaStream_t stream) = 0;
  virtual void do_all_gather(const std::byte* send, int64_t bytes, std::byte* recv,
                             cudaStream_t stream) = 0;
  /// Counts in bytes. The part for the rank itself is already copied.
  virtual void do_all_to_all(const std::byte* send, std::span<const int64_t> send_bytes,
                             std::byte* recv, std::span<const int64_t> recv_bytes,
                             cudaStream_t stream) = 0;
  /// Throws when communication under way has failed.
  virtual void check_progress() {}
  /// Ends what is under way: the deadline has passed.
  virtual void give_up() noexcept {}

 private:
  class Counted;

  template <class T>
  static int64_t bytes(int64_t count) {
    return count * static_cast<int64_t>(sizeof(T));
  }
  template <class T>
  static std::byte* as_bytes(T* data) requires(!std::is_const_v<T>) {
    return reinterpret_cast<std::byte*>(data);
  }
  template <class T>
  static const std::byte* as_bytes(const T* data) {
    return reinterpret_cast<const std::byte*>(data);
  }
  void all_reduce_bytes(void* data, int64_t count, DType type, cudaStream_t stream);
  void broadcast_bytes(std::byte* data, int64_t count, int root, cudaStream_t stream);
  void all_gather_bytes(const std::byte* send, int64_t count, std::byte* recv, cudaStream_t stream);
  void all_to_all_bytes(const std::byte* send, std::span<const int64_t> send_counts,
                        std::byte* recv, std::span<const int64_t> recv_counts,
                        int64_t element_bytes, bool copies_own, cudaStream_t stream);
  void exchange_row_bytes(const RowPlan& plan, const std::byte* table, int64_t row_bytes,
                          std::byte* received, cudaStream_t stream);
  template <class Query>
  void wait_until(Query query, const char* what);
  void check_counts(std::span<const int64_t> counts, const char* what) const;

  Communicator& host_;
  double deadline_seconds_;
  Stats stats_;
  DeviceBuffer<std::byte> packed_;
  std::vector<int64_t> send_bytes_, recv_bytes_;
  std::vector<int64_t> ones_;  // [size]
};

enum class DeviceTransport : uint8_t { automatic, nccl, staged, direct };

/// "auto", "nccl", "staged", "direct"; throws Error(ExitCode::usage) naming --device-transport.
DeviceTransport parse_device_transport(std::string_view name);

struct DeviceCommunicatorOptions {
  /// automatic: nccl where it was built in and every rank has a GPU of its own, else staged.
  DeviceTransport transport = DeviceTransport::automatic;
  /// Longest wait inside one call before Error(ExitCode::watchdog).
  double deadline_seconds = 600;
};

/// Collective over the ranks of `host`, which must outlive the result; the current device is the
/// one whose memory will move. Throws Error(ExitCode::config) on all ranks for a transport that
/// cannot work here.
std::unique_ptr<DeviceCommunicator> make_device_communicator(
    Communicator& host, const DeviceCommunicatorOptions& options = {});

/// Local: whether airmoe was built with NCCL, and its version at run time ("" without).
bool has_nccl();
std::string nccl_library_version();
/// Local: whether the MPI library says that it reads and writes device memory.
bool mpi_reads_device_memory();

}  // namespace airmoe::comm::cuda
