// Scores of tiles of tokens against their lists as 15-bit keys, as select_fixed.cu does it, for
// long rows: score_stream.cuh. Blocks stay; each team of warps takes every so many tiles of a piece
// of the lists, then of the next piece, so that blocks which run together read a narrow range of
// the table.

#include <type_traits>

#include "comm/base/cuda/device.hpp"
#include "router/cuda/src/keys.cuh"
#include "router/cuda/src/norm.cuh"
#include "router/cuda/src/score_stream.cuh"
#include "router/cuda/src/select_pass.cuh"

namespace airmoe::router::cuda {
namespace {

constexpr int kTokenTiles = airmoe::cuda::kTileTokens / 8;
constexpr int kRows = 16;           // of a group; two groups are a block of keys
constexpr int64_t kShortest = 640;  // d; with shorter rows select_fixed.cu is faster

/// The groups of candidates of one warp, in order: every kTeam-th of a piece of a tile's list.
template <int kTeam>
struct Walk {
  int tile, piece, group, end;
  int begin, count, codeword;  // of the tile: its first place and its places in the pass

  /// Goes on to the next group, or to the first one; false where there is none.
  __device__ bool next(const SelectRequest& a, const SelectPass& pass, int tiles, bool first) {
    const int groups = (static_cast<int>(a.lists.length) + 31) / 32 * 2;
    const int teams = static_cast<int>(gridDim.x * blockDim.x) / (32 * kTeam);
    const int member = static_cast<int>(threadIdx.x) / 32 % kTeam;
    group += kTeam;
    while (first || group >= end) {
      if (!first) tile += teams;
      first = false;
      while (tile >= tiles) {
        tile -= tiles;
        ++piece;
      }
      if (piece * kPieceGroups >= groups) return false;
      begin = max(__ldg(a.tokens.tile_begin + tile), pass.first);
      count = min(__ldg(a.tokens.tile_end + tile), pass.end) - begin;
      codeword = __ldg(a.tokens.tile_codeword + tile);
      group = piece * kPieceGroups + member;
      end = count > 0 ? min((piece + 1) * kPieceGroups, groups) : 0;
    }
    return true;
  }

  static constexpr int kPieceGroups = kTeam;
};

/// Position in the list of row `row` of a group: word i of a block of keys holds positions i and
/// 16 + i, which become rows r and r + 8 of one lane's sums.
__device__ __forceinline__ int position_of(int group, int row) {
  return group / 2 * 32 + group % 2 * 8 + row % 8 + row / 8 * 16;
}

// The bounds and codewords of the pass's places, a warp per place of a tile.
__global__ void __launch_bounds__(32 * airmoe::cuda::kTileTokens)
    bound_kernel(const SelectRequest a, const __nv_bfloat16* hidden, const SelectPass pass) {
  const int tile = static_cast<int>(blockIdx.x);
  if (tile >= *a.tokens.tiles) return;
  const int lane = static_cast<int>(threadIdx.x) & 31, warp = static_cast<int>(threadIdx.x) >> 5;
  const int place = a.tokens.tile_begin[tile] + warp;
  if (place < pass.first || place >= min(a.tokens.tile_end[tile], pass.end)) return;
  const __nv_bfloat16* source = hidden + static_cast<int64_t>(a.tokens.token[place]) * a.d;
  float squares = 0.0f;
#pragma unroll 4
  for (int s = lane; s < a.d / 8; s += 32) {
    squares = add_squares(squares, *reinterpret_cast<const uint4*>(source + s * 8));
  }
#pragma unroll
  for (int step = 16; step > 0; step /= 2) squares += __shfl_xor_sync(~0u, squares, step);
  if (lane == 0) {
    pass.bound[place - pass.first] = score_bound(a, squares);
    pass.codeword[place - pass.first] = a.tokens.tile_codeword[tile];
  }
}

template <int kWarps, int kTeam, int kPiece, int kStages>
__global__ void __launch_bounds__(32 * kWarps, 1)
    stream_kernel(const SelectRequest a, const __nv_bfloat16* hidden, const __nv_bfloat16* unit,
                  const SelectPass pass) {
  using Ring = RowRing<kPiece, kStages>;
  extern __shared__ __align__(128) char shared[];
  const int lane = static_cast<int>(threadIdx.x) & 31, warp = static_cast<int>(threadIdx.x) >> 5;
  const int row = lane >> 2, quad = lane & 3;
  const int length = static_cast<int>(a.lists.length), row_bytes = 2 * a.d;
  const int tiles = *a.tokens.tiles;
  if (tiles == 0) return;

  Ring ring(airmoe::cuda::shared_address(shared) + warp * Ring::kBytes, unit, row_bytes);
  Walk<kTeam> ahead{}, here{};
  ahead.tile = here.tile = static_cast<int>(blockIdx.x) * (kWarps / kTeam) + warp / kTeam;
  int32_t coming = 0;  // row of the group behind the one that is being brought
  bool more = false;
  const auto look_ahead = [&](bool first) {
    more = ahead.next(a, pass, tiles, first);
    if (!more) return;
    const int position = min(position_of(ahead.group, lane % kRows), length - 1);
    coming = __ldg(a.lists.row + static_cast<int64_t>(ahead.codeword) * length + position);
  };
  const auto next_rows = [&](int32_t& rows) {
    rows = coming;
    const bool any = more;
    if (any) look_ahead(false);
    return any;
  };
  look_ahead(true);
  for (int s = 0; s < kStages; ++s) ring.bring(next_rows);

  for (bool first = true; here.next(a, pass, tiles, first); first = false) {
    int32_t token[kTokenTiles];
    float sum[kTokenTiles][4];
#pragma unroll
    for (int j = 0; j < kTokenTiles; ++j) {
      // Columns without a token repeat the last one.
      token[j] = __ldg(a.tokens.token + here.begin + min(8 * j + row, here.count - 1));
#pragma unroll
      for (int i = 0; i < 4; ++i) sum[j][i] = 0.0f;
    }
    for (int at = 0; at < row_bytes; at += kPiece) {
      const int steps = min(kPiece, row_bytes - at) / 64;
      const auto multiply = [&](auto n_tiles) {
        multiply_piece<kPiece, decltype(n_tiles)::value>(
            sum, reinterpret_cast<const char*>(hidden) + quad * 16 + at, row_bytes, token, steps,
            [&] { return ring.await(); });
      };
      switch ((here.count + 7) / 8) {
        case 1:
          multiply(std::integral_constant<int, 1>());
          break;
        case 2:
          multiply(std::integral_constant<int, 2>());
          break;
        case 3:
          multiply(std::integral_constant<int, 3>());
          break;
        default:
          multiply(std::integral_constant<int, kTokenTiles>());
      }
      __syncwarp();
      ring.bring(next_rows);
    }
    const int position = position_of(here.group, row);
    const uint32_t mask =
        (position < length ? 0x0000FFFFu : 0u) | (position + 16 < length ? 0xFFFF0000u : 0u);
    const int place = here.begin - pass.first;
    uint32_t* const keys = pass.keys + here.group * 8 + row;
#pragma unroll
    for (int j = 0; j < kTokenTiles; ++j) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const int t = 8 * j + 2 * quad + e;
        if (t >= here.count) continue;
        const float half = FixedKeys::of_bound(__ldg(pass.bound + place + t)).half_per_bound();
        keys[(place + t) * pass.words] =
            mask & __byte_perm(FixedKeys::low_half(sum[j][e], half),
                               FixedKeys::low_half(sum[j][2 + e], half), 0x5410);
      }
    }
  }
}

template <int kWarps, int kTeam, int kPiece, int kStages>
void launch(const SelectRequest& request, const __nv_bfloat16* hidden, const __nv_bfloat16* unit,
            const SelectPass& pass, cudaStream_t stream) {
  constexpr int kBytes = kWarps * RowRing<kPiece, kStages>::kBytes;
  const auto kernel = stream_kernel<kWarps, kTeam, kPiece, kStages>;
  AIRMOE_CUDA(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes));
  bound_kernel<<<static_cast<unsigned>(request.tokens.tile_limit), 32 * airmoe::cuda::kTileTokens,
                 0, stream>>>(request, hidden, pass);
  AIRMOE_CUDA_LAUNCHED();
  const auto blocks = static_cast<unsigned>(airmoe::cuda::device_properties().multiprocessors);
  kernel<<<blocks, 32 * kWarps, kBytes, stream>>>(request, hidden, unit, pass);
  AIRMOE_CUDA_LAUNCHED();
}

}  // namespace

bool can_score_stream(int64_t d) {
  const airmoe::cuda::DeviceProperties& device = airmoe::cuda::device_properties();
  return d >= kShortest && d % 32 == 0 && device.compute_capability >= 90;
}

void score_stream(const SelectRequest& request, const __nv_bfloat16* hidden,
                  const __nv_bfloat16* unit, const SelectPass& pass, cudaStream_t stream) {
  launch<16, 4, 256, 2>(request, hidden, unit, pass, stream);
}

}  // namespace airmoe::router::cuda
