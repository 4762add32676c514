#pragma once
// Cache-line aligned, uninitialised, grow-only memory: the step loop calls ensure() and allocates
// only until every buffer has reached its largest size. Large buffers are pages of their own, huge
// ones where the system has them, which take memory only once they are written to.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <span>
#include <type_traits>
#include <utility>

namespace airmoe {

inline constexpr std::size_t kBufferAlignment = 64;

/// An allocation: `data` lies in `block`, which std::free() takes.
struct BufferMemory {
  void* block = nullptr;
  void* data = nullptr;
};

/// Local. kBufferAlignment aligned; all zero if `zero`. From 32 MiB on, zeros are fresh pages that
/// take no memory before they are written to, and pages are huge (2 MiB) where the system allows.
/// Throws std::bad_alloc.
BufferMemory allocate_buffer(std::size_t bytes, bool zero);

/// Owns `size()` elements of a trivially copyable type, 64-byte aligned. Not copyable.
template <class T>
class Buffer {
  static_assert(std::is_trivially_copyable_v<T>);

 public:
  static constexpr std::size_t kAlignment = kBufferAlignment;

  Buffer() = default;
  explicit Buffer(int64_t size) { ensure(size); }
  /// Zeros of numbers are not written where the memory is large (allocate_buffer()).
  Buffer(int64_t size, T value) {
    bool zero = false;
    if constexpr (std::is_arithmetic_v<T>) {
      constexpr T kZero{};
      zero = std::memcmp(&value, &kZero, sizeof(T)) == 0;
    }
    allocate(size, zero);
    if (!zero) fill(value);
  }
  Buffer(Buffer&& other) noexcept { swap(other); }
  Buffer& operator=(Buffer&& other) noexcept {
    swap(other);
    return *this;
  }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  ~Buffer() { std::free(block_); }

  /// Sets size() to `size` elements. Contents are undefined after the capacity had to grow.
  void ensure(int64_t size) {
    if (size > capacity_) allocate(size, false);
    size_ = size;
  }

  void fill(T value) { std::fill_n(data_, size_, value); }
  void swap(Buffer& other) noexcept {
    std::swap(block_, other.block_);
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    std::swap(capacity_, other.capacity_);
  }

  T* data() { return data_; }
  const T* data() const { return data_; }
  int64_t size() const { return size_; }
  int64_t capacity_bytes() const { return capacity_ * static_cast<int64_t>(sizeof(T)); }
  T& operator[](int64_t i) { return data_[i]; }
  const T& operator[](int64_t i) const { return data_[i]; }
  T* begin() { return data_; }
  T* end() { return data_ + size_; }
  const T* begin() const { return data_; }
  const T* end() const { return data_ + size_; }
  std::span<T> span() { return {data_, static_cast<std::size_t>(size_)}; }
  std::span<const T> span() const { return {data_, static_cast<std::size_t>(size_)}; }

 private:
  void allocate(int64_t size, bool zero) {
    std::free(block_);
    block_ = nullptr;
    data_ = nullptr;
    size_ = capacity_ = 0;
    if (size == 0) return;
    const BufferMemory memory = allocate_buffer(static_cast<std::size_t>(size) * sizeof(T), zero);
    block_ = memory.block;
    data_ = static_cast<T*>(memory.data);
    size_ = capacity_ = size;
  }

  void* block_ = nullptr;
  T* data_ = nullptr;
  int64_t size_ = 0;
  int64_t capacity_ = 0;
};

}  // namespace airmoe
