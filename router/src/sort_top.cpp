// Sorting short lists of (score, id): a stable radix sort on the bits of the score.

#include <algorithm>
#include <array>
#include <bit>
#include <limits>
#include <utility>

#include "router/src/top_k_kernels.hpp"

namespace airmoe::router::detail {
namespace {

constexpr int kDigitBits = 11, kDigits = 3;
constexpr uint32_t kBuckets = 1u << kDigitBits;
constexpr int64_t kSmall = 256;  // below, the histograms cost more than comparing

// Ascending keys are descending scores.
uint32_t key_of(float score) {
  const float value = score == score ? score + 0.0f : -std::numeric_limits<float>::infinity();
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  return (bits >> 31) != 0 ? bits : ~(bits | 0x80000000u);
}
float score_of(uint32_t key) {
  return std::bit_cast<float>((key >> 31) != 0 ? key : ~key & 0x7fffffffu);
}

}  // namespace

void sort_top(float* score, int32_t* id, int64_t count, uint64_t* scratch) {
  uint64_t *from = scratch, *to = scratch + count;
  for (int64_t i = 0; i < count; ++i) {
    from[i] = uint64_t{key_of(score[i])} << 32 | static_cast<uint32_t>(id[i]);
  }
  if (count < kSmall) {
    std::sort(from, from + count);
  } else {
    std::array<std::array<uint32_t, kBuckets>, kDigits> begin{};
    const auto digit = [](uint64_t entry, int pass) {
      return static_cast<uint32_t>(entry >> (32 + pass * kDigitBits)) & (kBuckets - 1);
    };
    for (int64_t i = 0; i < count; ++i) {
      for (int pass = 0; pass < kDigits; ++pass) ++begin[pass][digit(from[i], pass)];
    }
    for (int pass = 0; pass < kDigits; ++pass) {
      uint32_t sum = 0;
      for (uint32_t& b : begin[pass]) sum += std::exchange(b, sum);
      for (int64_t i = 0; i < count; ++i) to[begin[pass][digit(from[i], pass)]++] = from[i];
      std::swap(from, to);
    }
  }
  for (int64_t i = 0; i < count; ++i) {
    score[i] = score_of(static_cast<uint32_t>(from[i] >> 32));
    id[i] = static_cast<int32_t>(from[i]);
  }
}

}  // namespace airmoe::router::detail
