#pragma once
// Stage 2 of AIR-MoE on a device: the top K of a token's candidates and their gates (paper,
// "Forward" 4 and 5).

#include <cstdint>

#include "comm/base/cuda/device_buffer.hpp"
#include "comm/base/cuda/jitter.hpp"
#include "comm/base/cuda/routed.hpp"

namespace airmoe::router::cuda {

/// What select_experts() writes, in place order. Shapes: [n, K], [n, K], [n].
struct SelectOutput {
  uint16_t* position = nullptr;  ///< positions in the codeword's list, ascending per place
  float* gate = nullptr;         ///< softmax over the K selected scores
  float* log_sum_exp = nullptr;  ///< score = log(gate) + log_sum_exp; nullptr: not wanted
};

/// Scratch: at most 128 MiB and 8 bytes per token.
struct SelectWorkspace {
  airmoe::cuda::DeviceBuffer<uint32_t> keys;
  airmoe::cuda::DeviceBuffer<int32_t> codeword;
  airmoe::cuda::DeviceBuffer<float> bound;
};

/// Scores <hidden(t), unit(row)> of each token against the list of its codeword, plus jitter, and
/// the K largest of them; ties go to the smaller position, which is the smaller expert id.
///
/// float: scores have the bits of panel_scores(), jitter those of add_jitter(), so the selection is
/// that of router::select_top_k(); gates to 1e-6. NaN counts as minus infinity.
/// __nv_bfloat16: scores on tensor cores with sums in fp32, then rounded to multiples of about
/// |hidden(t)| / 16,200, which is less than the error that bf16 operands bring; selection and gates
/// are exact for the rounded scores. The rows of `unit` must not be longer than 1.
///
/// @param hidden  by token, 16-byte aligned. Shape: [tokens, d]
/// @param unit    rows that lists.row names, 16-byte aligned. Shape: [rows, d]
/// @param active  K <= lists.length
/// @param jitter  nullptr: none. Draws at id = first_token + token, b = expert id, c = codeword
/// Local; asynchronous on `stream`. Throws Error naming the option where d is not a multiple of 8
/// or K is not in [1, M].
template <class T>
void select_experts(const T* hidden, int64_t d, const airmoe::cuda::CodewordTokens& tokens,
                    const airmoe::cuda::DeviceLists& lists, const T* unit, int64_t active,
                    const airmoe::cuda::JitterKey* jitter, const SelectOutput& out,
                    SelectWorkspace& workspace, cudaStream_t stream);

}  // namespace airmoe::router::cuda
