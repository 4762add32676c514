#pragma once
// The parameters of a model on a device: one array each for values, gradients, moments and the
// copies in the compute type, in which every parameter has its place.

#include <cstdint>
#include <deque>
#include <unordered_map>
#include <vector>

#include "comm/base/cuda/device_buffer.hpp"
#include "scheduler/cuda/expert_rows.hpp"
#include "scheduler/cuda/parameter_tiles.hpp"
#include "scheduler/parameter.hpp"

namespace airmoe::scheduler::cuda {

using airmoe::cuda::DeviceBuffer;

/// One parameter's elements within the arrays.
struct Segment {
  int64_t begin = 0, count = 0;  ///< elements
  bool decay = false;            ///< weight decay applies
};

/// Parameters lie in creation order without gaps, the replicated ones first: neighbours such as wq,
/// wk, wv are one matrix. T: what kernels compute in, float or __nv_bfloat16. Memory: 16 bytes per
/// element, and 2 more for bf16.
template <class T>
class DeviceParameters {
 public:
  /// Local: allocates; copies nothing. Sizes of parameters are multiples of 8 elements; throws
  /// Error naming one that is not. Keeps a reference to `host`, whose arrays are the values before
  /// upload() and after download() only.
  explicit DeviceParameters(ParameterSet& host);

  /// Local: values and moments from the host, gradients zero; waits. Moments that are zero are not
  /// sent: the host's pages of new ones take no memory. Updates are counted anew.
  void upload(cudaStream_t stream);
  /// Local: values and moments to the host, after updates that rows wait for; waits.
  void download(cudaStream_t stream);
  /// Local: the values alone; the host's moments stay what they were.
  void download_values(cudaStream_t stream);
  /// Asynchronous: copies in the compute type from the values (nothing to do for float).
  void refresh_compute(cudaStream_t stream);
  void zero_gradients(cudaStream_t stream) { gradient_.zero(stream); }

  float* value(const Parameter& p) { return value_.data() + segment(p).begin; }
  float* gradient(const Parameter& p) { return gradient_.data() + segment(p).begin; }
  /// The weights that kernels read.
  const T* compute(const Parameter& p) const { return compute_all() + segment(p).begin; }
  const Segment& segment(const Parameter& p) const { return segments_.at(place_.at(&p)); }

  /// Local, before upload(): from now on a row of these parameters has a gradient in an update only
  /// if ExpertRows::written says so, and holds anything otherwise. The address is stable. Compute
  /// copies of `scored` parameters are no longer kept.
  ExpertRows& track_rows(int64_t rows, std::vector<const Parameter*> scored,
                         std::vector<const Parameter*> computed);
  std::deque<ExpertRows>& experts() { return experts_; }
  UpdateHistory& history() { return history_; }
  /// Made by the first call, which therefore waits and must not be captured.
  const ParameterTiles& tiles(cudaStream_t stream);

  /// The whole arrays, for the optimizer, norms and all-reduce. Shape: [size()]
  int64_t size() const { return size_; }
  int64_t replicated_size() const { return replicated_; }  ///< they come first
  float* values() { return value_.data(); }
  float* gradients() { return gradient_.data(); }
  float* moments1() { return moment1_.data(); }
  float* moments2() { return moment2_.data(); }
  /// nullptr for float, which has no copies.
  T* compute_copies();
  const std::vector<Segment>& segments() const { return segments_; }

 private:
  const T* compute_all() const;
  void reset_rows(cudaStream_t stream);

  ParameterSet& host_;
  std::vector<Parameter*> order_;
  std::vector<Segment> segments_;  // neighbours with equal decay are not merged
  std::unordered_map<const Parameter*, std::size_t> place_;
  int64_t size_ = 0, replicated_ = 0;
  DeviceBuffer<float> value_, gradient_, moment1_, moment2_;
  DeviceBuffer<T> compute_;
  std::deque<ExpertRows> experts_;
  UpdateHistory history_;
  ParameterTiles tiles_;
};

}  // namespace airmoe::scheduler::cuda
