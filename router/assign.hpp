#pragma once
// Stage 1 of AIR-MoE: the codeword of a token (paper, "Forward" 2).

#include <cstdint>
#include <span>

#include "comm/base/panel.hpp"

namespace airmoe::router {

struct AssignWorkspace {
  PanelWorkspace panel;
  Buffer<float> tile;
  Buffer<int32_t> rows;
};

/// codeword[t] = argmax_g <hidden(t), codebook(g)>; equal to the argmax of the cosine because
/// codewords are unit vectors. Ties go to the smaller g. No tokens x codewords array: blocks of 64
/// tokens.
/// @param hidden    Shape: [n, d]
/// @param codebook  unit rows. Shape: [G, d]
/// Local.
void assign_codewords(ConstMatrix hidden, ConstMatrix codebook, std::span<int32_t> codeword,
                      AssignWorkspace& workspace);

/// Stable counting sort of tokens by codeword.
struct CodewordOrder {
  Buffer<int32_t> token;    ///< local tokens, by codeword, then by index. Shape: [n]
  Buffer<int32_t> present;  ///< codewords with at least one token, ascending
  Buffer<int64_t>
      begin;  ///< tokens of present[i] are [begin[i], begin[i + 1]). Shape: [present + 1]
  Buffer<int64_t> scratch;
  void build(std::span<const int32_t> codeword, int64_t codewords);
};

}  // namespace airmoe::router
