#include "comm/src/ordered_reduce.hpp"

#include <algorithm>
#include <array>

#include "comm/base/error.hpp"

namespace airmoe::comm::ordered_reduce {
namespace {

constexpr int64_t kStrip = 512;  // elements whose sums stay in the first-level cache

template <class T, class Combine>
void reduce(const T* parts, int num_parts, int64_t count, T* out, Combine combine) {
  std::array<double, kStrip> sum;
  for (int64_t begin = 0; begin < count; begin += kStrip) {
    const int64_t n = std::min(kStrip, count - begin);
    for (int64_t i = 0; i < n; ++i) sum[i] = parts[begin + i];
    for (int p = 1; p < num_parts; ++p) {
      const T* part = parts + p * count + begin;
      for (int64_t i = 0; i < n; ++i) sum[i] = combine(sum[i], static_cast<double>(part[i]));
    }
    for (int64_t i = 0; i < n; ++i) out[begin + i] = static_cast<T>(sum[i]);
  }
}

template <class T>
void reduce(Reduction op, const std::byte* parts, int num_parts, int64_t count, std::byte* out) {
  const T* in = reinterpret_cast<const T*>(parts);
  T* result = reinterpret_cast<T*>(out);
  switch (op) {
    case Reduction::sum:
      return reduce(in, num_parts, count, result, [](double a, double b) { return a + b; });
    case Reduction::max:
      return reduce(in, num_parts, count, result,
                    [](double a, double b) { return b > a || b != b ? b : a; });
    case Reduction::min:
      return reduce(in, num_parts, count, result,
                    [](double a, double b) { return b < a || b != b ? b : a; });
  }
}

}  // namespace

void reduce_parts(DType type, Reduction op, const std::byte* parts, int num_parts, int64_t count,
                  std::byte* out) {
  AIRMOE_ASSERT(applies_to(type));
  if (type == DType::f32) return reduce<float>(op, parts, num_parts, count, out);
  reduce<double>(op, parts, num_parts, count, out);
}

Traffic traffic(int rank, int size, int64_t count, DType type) {
  const int64_t others = size - 1;
  const int64_t bytes = count * size_of(type);
  if (others == 0 || count == 0) return {};
  if (bytes <= kShortBytes) return {others * bytes, others};
  Traffic result;
  const int64_t block = kBlockBytes / size_of(type);
  for (int64_t begin = 0; begin < count; begin += block) {
    const BlockPartition parts{std::min(block, count - begin), size};
    const int64_t mine = parts.size(rank);
    result.bytes += (parts.total - mine + others * mine) * size_of(type);
    const int64_t receivers = std::min<int64_t>(parts.total, size);  // ranks with a part
    result.messages += receivers - (mine > 0 ? 1 : 0) + (mine > 0 ? others : 0);
  }
  return result;
}

}  // namespace airmoe::comm::ordered_reduce
