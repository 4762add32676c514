#pragma once
// Rows of a table next to each other, for sending.

#include <cstddef>
#include <cstdint>

#include <cuda_runtime_api.h>

namespace airmoe::comm::cuda {

/// packed[i] = table[rows[i]], rows of row_bytes. Asynchronous.
void pack_rows(const std::byte* table, const int32_t* rows, int64_t count, int64_t row_bytes,
               std::byte* packed, cudaStream_t stream);

}  // namespace airmoe::comm::cuda
