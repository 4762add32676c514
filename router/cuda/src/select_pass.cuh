#pragma once
// Selection goes in passes over the places, so that its keys need bounded memory. Per pass one
// kernel scores and leaves the keys in device memory, another one selects.

#include <cstdint>

#include <cuda_bf16.h>

#include "comm/base/cuda/jitter.hpp"
#include "comm/base/cuda/routed.hpp"
#include "router/cuda/select.hpp"

namespace airmoe::router::cuda {

struct SelectRequest {
  airmoe::cuda::CodewordTokens tokens;
  airmoe::cuda::DeviceLists lists;
  int d;
  int active;
  bool jittered;
  airmoe::cuda::JitterKey jitter;
  SelectOutput out;
};

/// What no |score| of a token exceeds, from the sum of its squares. Unit vectors in bf16 may be a
/// little longer than 1.
__device__ __forceinline__ float score_bound(const SelectRequest& request, float squares) {
  return sqrtf(squares) * 1.01f + (request.jittered ? request.jitter.stddev * 4.5f : 0.0f);
}

/// Places [first, end). Row p - first of the arrays belongs to place p.
struct SelectPass {
  int first, end;
  int64_t words;      ///< of a row of keys: blocks of 32 positions without gaps, a multiple of 32
                      ///< blocks, of which those behind M are not written
  uint32_t* keys;     ///< Shape: [places, words]
  int32_t* codeword;  ///< Shape: [places]
  float* bound;       ///< of |score|, for FixedKeys. Shape: [places]
};

/// Whether score_fixed() can do this width: 16 tokens fit into shared memory.
bool can_score_fixed(int64_t d);
/// Scores on tensor cores as FixedKeys. select_fixed.cu
void score_fixed(const SelectRequest& request, const __nv_bfloat16* hidden,
                 const __nv_bfloat16* unit, const SelectPass& pass, cudaStream_t stream);
/// The same keys, for long rows of tables that the second-level cache does not hold; where
/// can_score_stream(). select_stream.cu
bool can_score_stream(int64_t d);
void score_stream(const SelectRequest& request, const __nv_bfloat16* hidden,
                  const __nv_bfloat16* unit, const SelectPass& pass, cudaStream_t stream);
/// Exact products as FloatKeys, any shape. select_exact.cu
template <class T>
void score_exact(const SelectRequest& request, const T* hidden, const T* unit,
                 const SelectPass& pass, cudaStream_t stream);
/// The second kernel. Keys: FixedKeys or FloatKeys. select_rows.cu
template <class Keys>
void select_rows(const SelectRequest& request, const SelectPass& pass, cudaStream_t stream);

}  // namespace airmoe::router::cuda
