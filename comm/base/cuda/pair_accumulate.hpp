#pragma once
// The transpose of pair_combine.hpp: every selected row of a table collects the tokens that
// selected it. These sums are gradients of experts and centroids.

#include <cstdint>
#include <span>

#include <cuda_bf16.h>

#include "comm/base/cuda/pair_bundles.hpp"
#include "comm/base/cuda/pair_grouping.hpp"

namespace airmoe::cuda {

/// Pair p has `units` coefficients; its row r owns gradient rows [r units, (r + 1) units).
template <class T>
struct AccumulateTerm {
  const float* coefficient = nullptr;  ///< place order. Shape: [n, K * units]
  const T* source = nullptr;           ///< token order. Shape: [n, d]
  float* gradient = nullptr;           ///< added to. Shape: [rows * units, d]
  int64_t units = 1;                   ///< m
};

/// Sums of parts of rows that very many tokens have selected. Memory: about
/// pairs / 256 x coefficients per pair x d floats.
/// By bundles: pairs / 512 to pairs / 8192 x terms x 16 d floats, and 4 bytes per 16 rows.
struct AccumulateWorkspace {
  DeviceBuffer<float> partial;
  DeviceBuffer<uint32_t> part_rows, rows_of_bundle;
};

/// Which rows of the gradients hold sums already.
struct WrittenRows {
  int32_t* number = nullptr;  ///< per row; device. nullptr: all rows do
  int32_t now = 0;            ///< rows r with number[r] == now do
};

/// Places per slice (DevicePairGrouping::build) of n tokens, so that what a sum reads of two
/// sources stays in the second-level cache; 0: all.
template <class T>
int64_t accumulate_slice(int64_t tokens, int64_t d);

/// gradient(row(p) * units + j, :) += sum over pairs p of coefficient(p, j) * source(token(p), :)
/// for every term. Rows that hold no sums yet are overwritten, and hold sums afterwards. Sums are
/// fp32 in an order that depends on the grouping alone; rows without pairs are not touched. Terms
/// with the same source read it once. In bf16, terms of 16 and more units have their coefficients
/// rounded to bf16. Asynchronous. Throws Error when d is no multiple of 8.
template <class T>
void accumulate_pairs(const PairGroups& groups, std::span<const AccumulateTerm<T>> terms, int64_t d,
                      AccumulateWorkspace& workspace, cudaStream_t stream,
                      const WrittenRows& written = {});

/// The same by bundles, for one hidden unit per row in bf16: one to three terms with one source,
/// then one with another. A token is read once per bundle of which it selected a row: where tokens
/// share experts, that is several times less. Coefficients are rounded to the sum of two bf16.
/// Needs has_wgmma().
void accumulate_bundles(const PairBundles& bundles,
                        std::span<const AccumulateTerm<__nv_bfloat16>> terms, int64_t d,
                        AccumulateWorkspace& workspace, cudaStream_t stream,
                        const WrittenRows& written = {});

}  // namespace airmoe::cuda
