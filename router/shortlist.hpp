#pragma once
// Shortlists: the M experts with the largest <c_g, w_e> + jitter over ALL experts (paper, "Forward"
// 3). Owners score codewords against their own centroids and keep their best; the merge is exact.
// The order everywhere is (score descending, expert id ascending). No array of codewords x experts.

#include <cstdint>
#include <optional>
#include <span>

#include "comm/base/panel.hpp"
#include "comm/base/random.hpp"

namespace airmoe::router {

struct Jitter {
  RandomStream stream;
  float stddev = 0.0f;
};

/// Best local experts of n codewords: row i has count(i) entries at [i * stride, i * stride +
/// count(i)).
struct LocalTop {
  int64_t rows = 0;
  int64_t stride = 0;      ///< = min(keep, local experts); every row has exactly this many entries
  Buffer<float> score;     ///< Shape: [rows, stride], descending
  Buffer<int32_t> expert;  ///< global expert ids. Shape: [rows, stride]
};

struct ShortlistWorkspace {
  PanelWorkspace panel;
  Buffer<float> tile, threshold, candidate_score;
  Buffer<int32_t> rows, candidate_expert;
  Buffer<int64_t> candidate_count;
};

/// @param codewords       the codewords to list (all, or the revived ones). Shape: [n, d]
/// @param codeword_ids    their global ids, keys of the jitter. Shape: [n]
/// @param unit_centroids  local experts. Shape: [local experts, d]
/// @param first_expert    global id of local expert 0
/// @param keep            M
/// @param jitter          nullopt: none. Drawn at (expert, codeword id) from its stream, only for
/// pairs that
///                        could still enter the list (its draws are bounded, see kJitterBound).
/// Local. Work: n * local experts * d; memory: O(n * keep).
void local_top(ConstMatrix codewords, std::span<const int32_t> codeword_ids,
               ConstMatrix unit_centroids, int32_t first_expert, int64_t keep,
               const std::optional<Jitter>& jitter, LocalTop& out, ShortlistWorkspace& workspace);

/// One rank's sorted entries for one codeword.
struct TopSlice {
  std::span<const float> score;
  std::span<const int32_t> expert;
};

/// Exact merge of the slices of all ranks to the global top M of one codeword.
/// @param expert        out: merged expert ids in list order. Shape: [min(M, total entries)]
/// @param taken         out: how many entries of each slice made it (a prefix of the slice). Shape:
/// [slices] Local.
void merge_top(std::span<const TopSlice> slices, std::span<int32_t> expert,
               std::span<int32_t> taken);

/// unit(e) = centroid(e) / |centroid(e)|; inverse_norm[e] = 1 / |centroid(e)| (0 for a zero row,
/// whose unit row is zero). Shapes: [n, d], [n].
void project_to_sphere(ConstMatrix centroid, Matrix unit, std::span<float> inverse_norm);
/// Gradient through the projection: d_centroid += (d_unit - <d_unit, unit> unit) * inverse_norm.
void project_to_sphere_backward(ConstMatrix unit, std::span<const float> inverse_norm,
                                ConstMatrix d_unit, Matrix d_centroid);

}  // namespace airmoe::router
