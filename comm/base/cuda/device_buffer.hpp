#pragma once
// Device memory that grows only, as Buffer does on the host: the step loop calls ensure() and
// allocates only until every buffer has reached its largest size.

#include <cstdint>
#include <span>
#include <type_traits>
#include <utility>

#include "comm/base/cuda/device.hpp"
#include "comm/base/matrix_view.hpp"

namespace airmoe::cuda {

/// Bytes that DeviceBuffers of this process hold now, and the most they ever held.
int64_t device_bytes();
int64_t device_bytes_peak();

namespace detail {
void* allocate(int64_t bytes);
void release(void* data, int64_t bytes) noexcept;
}  // namespace detail

/// Owns `size()` elements of a trivially copyable type on the device that was current at the first
/// ensure(); 256-byte aligned. Not copyable. Growing waits for the device.
template <class T>
class DeviceBuffer {
  static_assert(std::is_trivially_copyable_v<T>);

 public:
  DeviceBuffer() = default;
  explicit DeviceBuffer(int64_t size) { ensure(size); }
  DeviceBuffer(DeviceBuffer&& other) noexcept { swap(other); }
  DeviceBuffer& operator=(DeviceBuffer&& other) noexcept {
    swap(other);
    return *this;
  }
  DeviceBuffer(const DeviceBuffer&) = delete;
  DeviceBuffer& operator=(const DeviceBuffer&) = delete;
  ~DeviceBuffer() { detail::release(data_, capacity_bytes()); }

  /// Sets size() to `size` elements. Contents are undefined after the capacity had to grow.
  void ensure(int64_t size) {
    if (size > capacity_) {
      detail::release(data_, capacity_bytes());
      data_ = nullptr;
      capacity_ = 0;
      data_ = static_cast<T*>(detail::allocate(size * static_cast<int64_t>(sizeof(T))));
      capacity_ = size;
    }
    size_ = size;
  }

  /// Asynchronous on `stream`: all bytes zero.
  void zero(cudaStream_t stream) {
    if (size_ > 0) AIRMOE_CUDA(cudaMemsetAsync(data_, 0, bytes(), stream));
  }
  /// Sets the size to that of `from` and copies; asynchronous only from pinned memory.
  void upload(std::span<const T> from, cudaStream_t stream) {
    ensure(std::ssize(from));
    if (size_ == 0) return;
    AIRMOE_CUDA(cudaMemcpyAsync(data_, from.data(), bytes(), cudaMemcpyHostToDevice, stream));
  }
  /// Copies size() elements; asynchronous only to pinned memory.
  void download(std::span<T> to, cudaStream_t stream) const {
    AIRMOE_CHECK(std::ssize(to) == size_, "download of {} elements to {}", size_, to.size());
    if (size_ == 0) return;
    AIRMOE_CUDA(cudaMemcpyAsync(to.data(), data_, bytes(), cudaMemcpyDeviceToHost, stream));
  }

  void swap(DeviceBuffer& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    std::swap(capacity_, other.capacity_);
  }
  /// Device addresses: host code must not read them.
  T* data() { return data_; }
  const T* data() const { return data_; }
  int64_t size() const { return size_; }
  std::size_t bytes() const { return static_cast<std::size_t>(size_) * sizeof(T); }
  int64_t capacity_bytes() const { return capacity_ * static_cast<int64_t>(sizeof(T)); }

 private:
  T* data_ = nullptr;
  int64_t size_ = 0;
  int64_t capacity_ = 0;
};

}  // namespace airmoe::cuda
