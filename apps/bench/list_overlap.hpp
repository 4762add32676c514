#pragma once
// How much the shortlists of similar codewords share, which decides how many bytes routing reads.

#include <cstdint>
#include <span>

#include <nlohmann/json.hpp>

namespace airmoe::bench {

/// Of the codewords that have tokens: how many experts any of their lists holds, how many of the
/// lists the most listed expert is in, and for k = 2, 4, ... 32 the union of the lists of a
/// codeword and the k - 1 most similar ones as a share of their sum, the mean over 64 codewords.
/// @param codebook  unit rows. Shape: [G, d]
/// @param lists     expert ids. Shape: [G, M]
/// @param begin     first place of a codeword. Shape: [G + 1]
nlohmann::json list_overlap(std::span<const float> codebook, std::span<const int32_t> lists,
                            std::span<const int32_t> begin, int64_t dim, int64_t experts);

}  // namespace airmoe::bench
