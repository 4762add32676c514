#pragma once
// Stage 2 of AIR-MoE: the top K of a token's candidates and their gates (paper, "Forward" 4 and 5).
// Ties go to the earlier position; candidates stand in ascending expert id, so ties go to the
// smaller id.

#include <cstdint>
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
/// @param scores  slice r = scores that rank r reported, in ascending expert id; ranks in ascending
/// expert id
/// @param sizes   entries per slice. Shape: [slices]
/// @param cuts    out, one per slice. Shape: [slices]
/// @param taken   out: selected entries per slice. Shape: [slices]
/// The sum of exponentials runs over the selected scores in that order in double precision, so it
/// does not depend on how experts are spread over ranks. With k >= total everything is selected; an
/// empty slice gets a cut that selects nothing. NaN counts as minus infinity. Local.
void cut_top_k(std::span<const float> scores, std::span<const int64_t> sizes, int64_t k,
               std::span<Cut> cuts, std::span<int32_t> taken, CutWorkspace& workspace);

/// Keeps the entries that the cut selects, in place order: writes position and gate, returns how
/// many. position_out may be position and gate_out may be score. Shapes: [count] each; what lies
/// behind the returned number is undefined. Local.
int64_t apply_cut(const Cut& cut, const int32_t* position, const float* score, int64_t count,
                  int32_t* position_out, float* gate_out);

}  // namespace airmoe::router
