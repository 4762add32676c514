#pragma once
// Contiguous, balanced split of a global index range over parts (ranks, micro-batches, blocks).

#include <cstdint>

namespace airmoe {

/// Part p of `parts` holds [begin(p), end(p)) of `total` items; sizes differ by at most one.
/// Works for total < parts (some parts are empty).
struct BlockPartition {
  int64_t total = 0;
  int64_t parts = 1;

  int64_t begin(int64_t part) const {
    return total / parts * part + (part < total % parts ? part : total % parts);
  }
  int64_t end(int64_t part) const { return begin(part + 1); }
  int64_t size(int64_t part) const { return end(part) - begin(part); }
  /// The part that holds `item`.
  int64_t owner(int64_t item) const {
    const int64_t small = total / parts;
    const int64_t large_parts = total % parts;
    const int64_t boundary = large_parts * (small + 1);
    return item < boundary ? item / (small + 1) : large_parts + (item - boundary) / small;
  }
};

}  // namespace airmoe
