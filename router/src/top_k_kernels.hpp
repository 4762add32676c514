#pragma once
// The selection kernels that every top-k of this folder is made of. All work on one contiguous
// array of scores. Order everywhere: larger score first, ties to the earlier entry. -0 equals +0,
// and NaN counts as minus infinity, so that bad numbers can neither crash nor loop.

#include <cstdint>

namespace airmoe::router::detail {

/// Where the best k of an array end: every score above `threshold`, and the first k - above of
/// those equal to it.
struct KthLargest {
  float threshold;
  int64_t above;  ///< scores greater than threshold, < k
  int64_t equal;  ///< scores that count as equal to it
};

/// The k-th largest of x, 1 <= k <= count. A binary search on values, then on the bits of the
/// float, each pass counting x >= pivot over the whole array; stops as soon as few candidates are
/// left. At most 12 + 32 passes, about 8 on usual data. Local, no memory.
KthLargest kth_largest(const float* x, int64_t count, int64_t k);

/// An ordered run of entries to filter: scores with ids id[i], or first_id + i where id is null.
struct Entries {
  const float* score;
  const int32_t* id;
  int32_t first_id;
  int64_t count;
};

/// Appends, in order, the entries above `threshold` and the first `ties` equal to it to the
/// outputs; returns how many, and subtracts the ties it took from `ties`. Threshold minus infinity
/// with ties >= count keeps everything. Writes nothing at or behind `capacity`; what lies between
/// the returned count and capacity is undefined. The outputs may be the inputs.
int64_t compress(const Entries& entries, float threshold, int64_t& ties, float* score_out,
                 int32_t* id_out, int64_t capacity);

/// columns[t * stride + i] = tile[i * ld + t], i < count, t < 16. stride >= count rounded up to 4.
void transpose_lanes(const float* tile, int64_t ld, int64_t count, float* columns, int64_t stride);

/// Sorts by (score descending, id ascending); ids must be ascending on entry. -0 becomes +0, NaN
/// becomes minus infinity. scratch: 2 * count words.
void sort_top(float* score, int32_t* id, int64_t count, uint64_t* scratch);

}  // namespace airmoe::router::detail
