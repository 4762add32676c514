#pragma once
// Codewords of tokens with warp-group products.

#include <cstdint>

#include <cuda_bf16.h>
#include <cuda_runtime_api.h>

namespace airmoe::router::cuda {

/// What assign_codewords() does, on Hopper; for thousands of tokens. Returns false, having done
/// nothing, on other devices and where a block's tokens do not fit into shared memory (d > 1,024).
bool try_assign_wgmma(const __nv_bfloat16* hidden, const __nv_bfloat16* codebook, int64_t n,
                      int64_t d, int64_t codewords, int32_t* codeword, cudaStream_t stream);

}  // namespace airmoe::router::cuda
