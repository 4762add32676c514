#pragma once
// How rows are dealt to warps: a warp holds a row in registers, as chunks of eight elements per
// lane.

#include <cstdint>
#include <type_traits>

#include "comm/base/error.hpp"

namespace airmoe::scheduler::cuda {

inline constexpr int64_t kChunk = 256;  ///< elements of a row per chunk of one warp
inline constexpr int64_t kWidestRow = 32 * kChunk;
inline constexpr int kWarpsPerBlock = 8;

template <int kValue>
using ChunkCount = std::integral_constant<int, kValue>;

/// Calls launch(ChunkCount<c>) with the smallest instantiated c that covers a row of `dim`
/// elements. Above 4 chunks rows spill to local memory: right, but slower. Throws
/// Error(ExitCode::config) naming --dim if it is not a multiple of 8 or above 8,192.
template <class Launch>
void with_chunks(int64_t dim, Launch launch) {
  if (dim < 8 || dim % 8 != 0 || dim > kWidestRow) {
    fail(ExitCode::config, "--dim {}: on a device it is a multiple of 8 from 8 to {}, choose {}",
         dim, kWidestRow, dim > kWidestRow ? kWidestRow : (dim + 7) / 8 * 8);
  }
  if (dim <= kChunk) return launch(ChunkCount<1>{});
  if (dim <= 2 * kChunk) return launch(ChunkCount<2>{});
  if (dim <= 3 * kChunk) return launch(ChunkCount<3>{});
  if (dim <= 4 * kChunk) return launch(ChunkCount<4>{});
  if (dim <= 8 * kChunk) return launch(ChunkCount<8>{});
  launch(ChunkCount<32>{});
}

}  // namespace airmoe::scheduler::cuda
