#pragma once
// Stage 1 of AIR-MoE on a device: the codeword of a token (paper, "Forward" 2).

#include <cstdint>

#include <cuda_runtime_api.h>

namespace airmoe::router::cuda {

/// codeword[t] = argmax_g <hidden(t), codebook(g)>; ties go to the smaller g, NaN is never larger.
/// float: scores are chains of fused multiply-adds in index order, so the result equals that of
/// router::assign_codewords(). __nv_bfloat16: products on tensor cores, sums in fp32. No tokens x
/// codewords array, no workspace.
/// @param hidden    16-byte aligned. Shape: [n, d]
/// @param codebook  unit rows, 16-byte aligned. Shape: [codewords, d]
/// @param codeword  out. Shape: [n]
/// Local; asynchronous on `stream`. Throws Error naming --dim where d is not a multiple of 8.
template <class T>
void assign_codewords(const T* hidden, const T* codebook, int64_t n, int64_t d, int64_t codewords,
                      int32_t* codeword, cudaStream_t stream);

}  // namespace airmoe::router::cuda
