#pragma once
// Descriptions of arrays for the copies of tma.cuh. Plain C++.

#include <cstdint>
#include <initializer_list>

#include <cuda.h>

namespace airmoe::cuda {

struct TensorDimension {
  int64_t size;    ///< what lies outside is read as zeros
  int64_t stride;  ///< bytes from one to the next, a multiple of 16; of the first one not used
  int box;         ///< how many a copy brings, at most 256
};

/// Local: a bf16 array for kernels that copy boxes of it to shared memory, rows of 64 elements in
/// the order of swizzled<8> (mma.cuh), or of 32 in that of the 64-byte swizzle. The first dimension
/// is contiguous, its box 64 or 32 elements; up to four more may have any strides. A box lies in
/// shared memory with the first dimensions innermost. Kernels take it as a __grid_constant__
/// parameter.
/// @param data  device memory, 16-byte aligned
/// Throws Error when the driver refuses.
CUtensorMap describe_bf16(const void* data, std::initializer_list<TensorDimension> dimensions);

}  // namespace airmoe::cuda
