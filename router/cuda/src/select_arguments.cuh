#pragma once
// What the selection kernels get by value.

#include <cstdint>

#include "comm/base/cuda/jitter.cuh"
#include "comm/base/cuda/routed.hpp"
#include "router/cuda/select.hpp"
#include "router/cuda/src/warp_select.cuh"

namespace airmoe::router::cuda {

template <class T>
struct SelectArguments {
  const T* hidden;
  const T* unit;
  int d;
  int active;
  airmoe::cuda::CodewordTokens tokens;
  airmoe::cuda::DeviceLists lists;
  airmoe::cuda::JitterKey jitter;
  bool jittered;
  SelectOutput out;
  RowLayout layout;

  __device__ Selection selection(int codeword, int64_t place) const {
    return {active,
            lists.id + codeword * lists.length,
            airmoe::cuda::jitter_id(jitter, tokens.token[place]),
            static_cast<uint32_t>(codeword),
            out.position + place * active,
            out.gate + place * active,
            out.log_sum_exp == nullptr ? nullptr : out.log_sum_exp + place};
  }
};

/// Selection with scores in shared memory, all in one kernel. Returns false, having done nothing,
/// where a tile of 16 tokens does not fit. select_tile.cu
bool select_in_tiles(const SelectArguments<__nv_bfloat16>& arguments, cudaStream_t stream);

/// Selection with scores in `workspace`: any shape, exact products. select_exact.cu
template <class T>
void select_exactly(const SelectArguments<T>& arguments, SelectWorkspace& workspace,
                    cudaStream_t stream);

}  // namespace airmoe::router::cuda
