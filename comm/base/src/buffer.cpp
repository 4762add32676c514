#include "comm/base/buffer.hpp"

#include <cstdlib>
#include <cstring>
#include <new>

#include <sys/mman.h>

namespace airmoe {
namespace {

// glibc gives each of these a mapping of its own, so that calloc need not clear it.
constexpr std::size_t kLarge = std::size_t{32} << 20;
constexpr std::size_t kHugePage = std::size_t{2} << 20;

std::size_t round_up(std::size_t x, std::size_t multiple) {
  return (x + multiple - 1) / multiple * multiple;
}

BufferMemory allocate_small(std::size_t bytes, bool zero) {
  void* data = std::aligned_alloc(kBufferAlignment, round_up(bytes, kBufferAlignment));
  if (data == nullptr) throw std::bad_alloc();
  if (zero) std::memset(data, 0, bytes);
  return {data, data};
}

}  // namespace

BufferMemory allocate_buffer(std::size_t bytes, bool zero) {
  if (bytes < kLarge) return allocate_small(bytes, zero);
  const std::size_t size = bytes + kHugePage;
  if (size < bytes) throw std::bad_alloc();
  void* block = zero ? std::calloc(1, size) : std::malloc(size);
  if (block == nullptr) throw std::bad_alloc();
  void* data =
      reinterpret_cast<void*>(round_up(reinterpret_cast<std::uintptr_t>(block), kHugePage));
  // Advice: where there are no huge pages, small ones do. The last part of one stays small.
  ::madvise(data, bytes / kHugePage * kHugePage, MADV_HUGEPAGE);
  return {block, data};
}

}  // namespace airmoe
