#pragma once
// Rows of a table next to each other, for sending.

#include <cstddef>
#include <cstdint>

#include <cuda_runtime_api.h>

namespace airmoe::comm::cuda {

/// Rows [begin, end) of those sent, which go elsewhere: to `to`.
struct OwnRange {
  int64_t begin = 0, end = 0;
  std::byte* to = nullptr;
};

/// packed[i] = table[rows[i]], i < count, but for the rank's own range to[i - begin]; rows of
/// row_bytes. Asynchronous.
void pack_rows(const std::byte* table, const int32_t* rows, int64_t count, int64_t row_bytes,
               std::byte* packed, const OwnRange& own, cudaStream_t stream);

}  // namespace airmoe::comm::cuda
