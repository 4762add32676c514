#include "scheduler/cuda/gradient_buckets.hpp"

#include <algorithm>

namespace airmoe::scheduler::cuda {

std::vector<GradientBucket> gradient_buckets(std::span<const int64_t> layer_begin, int64_t size) {
  constexpr int64_t kEnough = int64_t{4} << 20;  // 16 MB: the links are at their full speed
  const int64_t wanted = std::min(kEnough, size / 4);
  std::vector<GradientBucket> buckets;
  int64_t end = size;
  for (int64_t layer = std::ssize(layer_begin) - 1; layer >= 0; --layer) {
    const int64_t begin = layer_begin[static_cast<std::size_t>(layer)];
    if (end - begin < wanted) continue;
    buckets.push_back({layer, begin, end});
    end = begin;
  }
  if (end > 0) buckets.push_back({-1, 0, end});
  return buckets;
}

}  // namespace airmoe::scheduler::cuda
