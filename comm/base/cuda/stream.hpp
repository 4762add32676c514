#pragma once
// Owners of CUDA streams and events, and pinned host memory.

#include <cstdint>
#include <utility>

#include "comm/base/cuda/device.hpp"

namespace airmoe::cuda {

/// A stream of its own, not synchronised with the default stream. `high_priority`: its kernels go
/// first where both wait.
class Stream {
 public:
  explicit Stream(bool high_priority = false);
  ~Stream();
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;

  operator cudaStream_t() const { return stream_; }
  cudaStream_t get() const { return stream_; }
  /// Waits for everything put on the stream so far.
  void synchronize() const { AIRMOE_CUDA(cudaStreamSynchronize(stream_)); }

 private:
  cudaStream_t stream_ = nullptr;
};

/// A mark in a stream. Without `timed` it is cheaper and good for ordering only.
class Event {
 public:
  explicit Event(bool timed = false);
  ~Event();
  Event(const Event&) = delete;
  Event& operator=(const Event&) = delete;

  operator cudaEvent_t() const { return event_; }
  void record(cudaStream_t stream) { AIRMOE_CUDA(cudaEventRecord(event_, stream)); }
  /// What comes later on `stream` waits until the recorded point has been reached.
  void block(cudaStream_t stream) const { AIRMOE_CUDA(cudaStreamWaitEvent(stream, event_, 0)); }
  /// The host waits.
  void synchronize() const { AIRMOE_CUDA(cudaEventSynchronize(event_)); }
  /// Milliseconds since `start`; both timed and reached.
  float milliseconds_since(const Event& start) const;

 private:
  cudaEvent_t event_ = nullptr;
};

/// Page-locked host memory of `size()` elements: copies to and from it are asynchronous.
template <class T>
class PinnedBuffer {
 public:
  PinnedBuffer() = default;
  PinnedBuffer(const PinnedBuffer&) = delete;
  PinnedBuffer& operator=(const PinnedBuffer&) = delete;
  ~PinnedBuffer() {
    if (data_ != nullptr) cudaFreeHost(data_);
  }
  /// Contents are undefined after the capacity had to grow.
  void ensure(int64_t size) {
    if (size > capacity_) {
      if (data_ != nullptr) AIRMOE_CUDA(cudaFreeHost(std::exchange(data_, nullptr)));
      capacity_ = 0;
      void* data = nullptr;
      AIRMOE_CUDA(cudaMallocHost(&data, static_cast<std::size_t>(size) * sizeof(T)));
      data_ = static_cast<T*>(data);
      capacity_ = size;
    }
    size_ = size;
  }
  T* data() { return data_; }
  const T* data() const { return data_; }
  int64_t size() const { return size_; }
  T& operator[](int64_t i) { return data_[i]; }
  const T& operator[](int64_t i) const { return data_[i]; }

 private:
  T* data_ = nullptr;
  int64_t size_ = 0;
  int64_t capacity_ = 0;
};

}  // namespace airmoe::cuda
