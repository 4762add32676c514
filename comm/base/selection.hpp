#pragma once
// The selected (token, candidate) pairs of tokens that share a codeword; router makes them, experts
// compute them, scheduler carries them from one to the other.

#include <cstdint>

namespace airmoe {

/// Token t of a block of n tokens has pairs [offset[t], offset[t + 1]) of the arrays.
struct SelectionView {
  int64_t tokens = 0;               ///< n
  const int64_t* offset = nullptr;  ///< Shape: [n + 1]; indices into position and gate
  const int32_t* position =
      nullptr;  ///< place in the codeword's resident candidates, ascending per token
  const float* gate = nullptr;  ///< weight of the pair
};

}  // namespace airmoe
