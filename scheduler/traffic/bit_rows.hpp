#pragma once
// Sets of small integers as rows of 64-bit words: ranks of a cover, experts on
// a rank.

#include <algorithm>
#include <bit>
#include <cstdint>
#include <span>
#include <vector>

namespace airmoe::scheduler {

/// `rows` sets of integers in [0, bits). Local; rows * bits / 8 bytes of
/// memory.
class BitRows {
 public:
  BitRows(int64_t rows, int64_t bits)
      : words_((bits + 63) / 64), word_(static_cast<std::size_t>(rows * words_), 0) {}

  std::span<uint64_t> row(int64_t r) {
    return {word_.data() + r * words_, static_cast<std::size_t>(words_)};
  }
  std::span<const uint64_t> row(int64_t r) const {
    return {word_.data() + r * words_, static_cast<std::size_t>(words_)};
  }
  void set(int64_t r, int64_t bit) { word_[r * words_ + bit / 64] |= uint64_t{1} << (bit % 64); }
  bool test(int64_t r, int64_t bit) const {
    return (word_[r * words_ + bit / 64] >> (bit % 64) & 1) != 0;
  }
  void clear() { std::fill(word_.begin(), word_.end(), 0); }

 private:
  int64_t words_;
  std::vector<uint64_t> word_;
};

inline void unite(std::span<uint64_t> set, std::span<const uint64_t> with) {
  for (std::size_t i = 0; i < set.size(); ++i) set[i] |= with[i];
}

inline int64_t size_of(std::span<const uint64_t> set) {
  int64_t n = 0;
  for (const uint64_t w : set) n += std::popcount(w);
  return n;
}

/// Calls visit(element), ascending.
template <class Visit>
void for_each_in(std::span<const uint64_t> set, Visit&& visit) {
  for (std::size_t i = 0; i < set.size(); ++i) {
    for (uint64_t w = set[i]; w != 0; w &= w - 1) {
      visit(static_cast<int64_t>(i) * 64 + std::countr_zero(w));
    }
  }
}

}  // namespace airmoe::scheduler
