#pragma once
// Shortlists: the M experts with the largest <c_g, w_e> + jitter over ALL experts (paper, "Forward"
// 3). Owners score codewords against their own centroids and keep their best; the merge is exact.
// The order everywhere is (score descending, expert id ascending). No array of codewords x experts.

#include <cstdint>
#include <optional>
#include <span>

#include "comm/base/panel.hpp"
#include "comm/base/random.hpp"
#include "router/running_top.hpp"

namespace airmoe::router {

struct Jitter {
  RandomStream stream;
  float stddev = 0.0f;
};

/// Best local experts of n codewords, row i at [i * stride, (i + 1) * stride).
struct LocalTop {
  int64_t rows = 0;
  int64_t stride = 0;      ///< min(keep, local experts); every row has exactly this many entries
  Buffer<float> score;     ///< Shape: [rows, stride], descending
  Buffer<int32_t> expert;  ///< global expert ids. Shape: [rows, stride]
};

struct ShortlistWorkspace {
  PanelWorkspace panel;
  RunningTop top;
  Buffer<float> tile, hit_score;
  Buffer<int32_t> rows, hit_expert;
};

/// The best `keep` local experts of each codeword, exactly: the result depends neither on blocks
/// nor on which rank has which experts.
/// @param codewords       the codewords to list (all, or the revived ones). Shape: [n, d]
/// @param codeword_ids    their global ids, keys of the jitter. Shape: [n]
/// @param unit_centroids  local experts. Shape: [local experts, d]
/// @param expert_ids      global ids of the local experts, ascending. Shape: [local experts]
/// @param keep            M
/// @param jitter          nullopt: none. add_jitter with id = global expert id, b = codeword id,
///                        c = 0, only for pairs that could still enter the list (its draws are
///                        bounded, see kJitterBound)
/// Local. Work: n * local experts * d; memory: O(n * keep). Scores of -0 are listed as +0, NaN as
/// minus infinity. Throws Error when shapes disagree or keep < 1.
void local_top(ConstMatrix codewords, std::span<const int32_t> codeword_ids,
               ConstMatrix unit_centroids, std::span<const int32_t> expert_ids, int64_t keep,
               const std::optional<Jitter>& jitter, LocalTop& out, ShortlistWorkspace& workspace);

/// One rank's sorted entries for one codeword.
struct TopSlice {
  std::span<const float> score;
  std::span<const int32_t> expert;
};

/// Exact merge of the slices of all ranks to the global top M of one codeword. Slices are sorted by
/// (score descending, id ascending), may be empty, and may hold any ids in any order of ranks.
/// @param expert  out: merged expert ids in list order. Shape: [min(M, total entries)]
/// @param taken   out: how many entries of each slice made it (a prefix of it). Shape: [slices]
/// Local. Throws Error when there are fewer entries than expert.size().
void merge_top(std::span<const TopSlice> slices, std::span<int32_t> expert,
               std::span<int32_t> taken);

/// unit(e) = centroid(e) / |centroid(e)|; inverse_norm[e] = 1 / |centroid(e)| (0 for a zero row,
/// whose unit row is zero; so is a row too short for 1 / |row| to be a float). Norms in double
/// precision. Shapes: [n, d], [n, d], [n]. Local.
void project_to_sphere(ConstMatrix centroid, Matrix unit, std::span<float> inverse_norm);
/// Gradient through the projection, in place: turns the gradient of unit rows into that of centroid
/// rows, g <- (g - <g, unit> unit) * inverse_norm. Shapes: [n, d], [n], [n, d]. Local.
void project_to_sphere_backward(ConstMatrix unit, std::span<const float> inverse_norm,
                                Matrix gradient);

}  // namespace airmoe::router
