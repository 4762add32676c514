#pragma once
// What kernels read of the experts, and where their gradients add up. One rank: the parameters
// themselves. Several: every rank has the values of all experts in the compute type (owners send
// them once per optimizer step) and a full array of gradients, of which owners collect their part
// once per optimizer step; moments and master values stay with the owners.

#include <cstdint>
#include <vector>

#include "comm/base/cuda/device_buffer.hpp"
#include "comm/cuda/device_communicator.hpp"
#include "scheduler/cuda/device_parameters.hpp"

namespace airmoe::scheduler::cuda {

template <class T>
class ExpertTables {
 public:
  /// Local. Memory on several ranks, per table: E rows in T, E rows of float, and another E rows
  /// of float for what is under way, shared by the tables.
  ExpertTables(comm::cuda::DeviceCommunicator* comm, DeviceParameters<T>& parameters,
               int64_t experts);

  /// Local: adds a table of parameter rows; returns its number. Rows per expert: any.
  int add(const Parameter& parameter);
  /// Local: adds a table whose owned rows are not a parameter's copies (unit centroids), while its
  /// gradient is the parameter's.
  int add(const Parameter& gradient_of, const T* owned);

  /// Device memory: all experts. Shape: [E, row size]
  const T* values(int table) const;
  float* gradients(int table);

  /// Collective, after owned values changed.
  void share_values(cudaStream_t stream);
  /// Collective, once per optimizer step: gradients of owned rows over all ranks, in rank order,
  /// are added to the parameters' gradients; the full arrays are zero again.
  void collect_gradients(cudaStream_t stream);

 private:
  struct Table {
    const Parameter* parameter = nullptr;
    const T* owned = nullptr;  // nullptr: the parameter's copies
    int64_t owned_size = 0;    // elements
    DeviceBuffer<T> values;
    DeviceBuffer<float> gradients;
  };

  comm::cuda::DeviceCommunicator* comm_;  // nullptr: one rank
  DeviceParameters<T>& parameters_;
  std::vector<Table> tables_;
  DeviceBuffer<float> received_;
  std::vector<int64_t> counts_;  // [ranks]
};

}  // namespace airmoe::scheduler::cuda
