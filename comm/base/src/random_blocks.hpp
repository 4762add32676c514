#pragma once
// Word d of the counter keeps the draws of uniform(), fill_normal() and permutations apart from
// each other and from the blocks (d = 0 by default) that callers address themselves.

#include <cstdint>

namespace airmoe {

inline constexpr uint32_t kUniformBlocks = 0x756e6966;
inline constexpr uint32_t kNormalBlocks = 0x6e6f726d;
inline constexpr uint32_t kPermutationBlocks = 0x7065726d;

}  // namespace airmoe
