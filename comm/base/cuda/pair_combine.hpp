#pragma once
// Weighted sums of table rows over each token's selected pairs: what comm/base/pair_combine.hpp
// does on the host, as dense products of tiles on tensor cores.

#include <cstdint>
#include <span>

#include "comm/base/cuda/pair_tiles.hpp"

namespace airmoe::cuda {

/// Pair p of a place has `units` coefficients and its row r the table rows [r units, (r + 1)
/// units).
template <class T>
struct CombineTerm {
  const float* coefficient = nullptr;  ///< place order. Shape: [n, K * units]
  const T* table = nullptr;            ///< Shape: [rows * units, d]
  int64_t units = 1;                   ///< m
};

/// Most terms of one call.
inline constexpr int kMaxCombineTerms = 3;

/// out(t, :) = sum over terms, pairs p of token t and units j of
///             coefficient(p, j) * table(row(p) * units + j, :)
/// @param out  token order, overwritten. Shape: [n, d]
/// T = float: fp32, one chain of fused multiply-adds in the order terms, pairs, units.
/// T = __nv_bfloat16: coefficients rounded to bf16, sums in fp32. Both are deterministic.
/// Asynchronous; no memory of its own. Throws Error when d is no multiple of 8 or there are no
/// terms or too many.
template <class T>
void combine_pairs(const PairTiles& tiles, std::span<const CombineTerm<T>> terms, int64_t d,
                   float* out, cudaStream_t stream);

}  // namespace airmoe::cuda
