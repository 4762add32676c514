#pragma once
// All-reduce of floating-point numbers in rank order. Every element is reduced by one rank, or by
// all of them alike, from rank 0 upwards in double precision, and rounded once: the same bits
// everywhere.
//
// Short arrays: all-gather, then every rank reduces everything. Long arrays, in blocks that bound
// the scratch memory: part p of a block goes to rank p, which reduces it and sends the result to
// all.

#include <cstddef>
#include <cstdint>

#include "comm/base/dtype.hpp"
#include "comm/base/partition.hpp"
#include "comm/communicator.hpp"

namespace airmoe::comm::ordered_reduce {

/// Arrays up to this many bytes are all-gathered.
inline constexpr int64_t kShortBytes = 4096;
/// Bytes of one block of a long array; also the scratch memory of a rank.
inline constexpr int64_t kBlockBytes = int64_t{32} << 20;

/// True for the types that need the order.
constexpr bool applies_to(DType type) {
  return type == DType::f32 || type == DType::f64;
}

/// out[i] = part_0[i] op part_1[i] op ..., the parts one after the other in memory. Local.
/// @param parts  Shape: [num_parts, count] of `type`, f32 or f64
void reduce_parts(DType type, Reduction op, const std::byte* parts, int num_parts, int64_t count,
                  std::byte* out);

/// What one rank sends to others.
struct Traffic {
  int64_t bytes = 0;
  int64_t messages = 0;
};
Traffic traffic(int rank, int size, int64_t count, DType type);

}  // namespace airmoe::comm::ordered_reduce
