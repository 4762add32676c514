#pragma once
// Stage 2 of AIR-MoE: the top K of a token's candidates and their gates (paper, "Forward" 4 and 5).
// Ties go to the earlier position; candidates stand in ascending expert id, so ties go to the
// smaller id. So they do across ranks, whichever experts live where.

#include <cmath>
#include <cstdint>
#include <limits>
#include <span>

#include "comm/base/buffer.hpp"

namespace airmoe::router {

/// For each token (column) of an expert-major tile (comm/base/panel.hpp), the min(k, count) largest
/// scores.
/// @param tile      Shape: [count, tile_ld(n)]
/// @param position  out: rows of the tile, ascending per token. Shape: [n, min(k, count)]
/// @param score     out: their scores. Shape: [n, min(k, count)]
/// NaN counts as minus infinity and is reported as it is. Local; scratch of 16 * count floats per
/// thread, kept. About 2 us per token at count = 2048, k = 512 with AVX-512.
void select_top_k(const float* tile, int64_t count, int64_t n, int64_t k, int32_t* position,
                  float* score);

/// What a home rank tells a candidate rank about one token: take every score above threshold and
/// the first `ties` scores equal to it; gate = exp(score - max) * inverse_sum.
struct Cut {
  float threshold;
  int32_t ties;
  float max;
  float inverse_sum;
};

struct CutWorkspace {
  Buffer<float> selected;
  Buffer<int32_t> ids;
};

/// The exact global top k of one token's scores from several ranks.
/// @param scores  slice r = scores that rank r reported, in ascending expert id
/// @param sizes   entries per slice: min(k, candidates there). Shape: [slices]
/// @param cuts    out, one per slice. Shape: [slices]
/// @param taken   out: selected entries per slice. Shape: [slices]
/// @return whether several slices hold scores equal to the threshold and not all of these fit. Ties
/// have gone to the earlier slices then, which is right if the ids of each slice are above those of
/// the slices before it; else resolve_ties() sets it right.
/// The normaliser is an exact sum (kNormaliserQuantum), so it does not depend on how experts are
/// spread over ranks. With k >= total everything is selected; an empty slice gets a cut that
/// selects nothing. NaN counts as minus infinity. Local.
bool cut_top_k(std::span<const float> scores, std::span<const int64_t> sizes, int64_t k,
               std::span<Cut> cuts, std::span<int32_t> taken, CutWorkspace& workspace);

/// After cut_top_k() returned true: gives the ties to the smallest expert ids of all slices, by
/// changing `ties` of the cuts, and `taken`. Thresholds, max and normaliser stay as they are.
/// That the reported scores are enough: a rank that left out a tie reported k scores at or above
/// the threshold, so its own reported ties, which have smaller ids, suffice to fill the top k.
/// @param ids  expert id of each score; read only where the score is tied, see is_tied()
/// Local. Other arguments as cut_top_k() had and left them.
void resolve_ties(std::span<const float> scores, std::span<const int32_t> ids,
                  std::span<const int64_t> sizes, std::span<Cut> cuts, std::span<int32_t> taken,
                  CutWorkspace& workspace);

/// Whether a score stands exactly at a cut's threshold. NaN counts as minus infinity.
inline bool is_tied(float score, float threshold) {
  return score == threshold ||
         (std::isnan(score) && threshold == -std::numeric_limits<float>::infinity());
}

/// Keeps the entries that the cut selects, in place order: writes position and gate, returns how
/// many. position_out may be position and gate_out may be score. Shapes: [count] each; what lies
/// behind the returned number is undefined. Local.
int64_t apply_cut(const Cut& cut, const int32_t* position, const float* score, int64_t count,
                  int32_t* position_out, float* gate_out);

}  // namespace airmoe::router
