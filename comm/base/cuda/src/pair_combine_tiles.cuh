#pragma once
// combine_pairs on tensor cores: out[tokens, columns] = A[tokens, candidates] * table[candidates,
// columns], where A holds a token's coefficients at the candidates it selected and zeros elsewhere.
// Table rows are gathered into shared memory several chunks ahead; A is spread out of the compact
// coefficients two chunks ahead.

#include <cuda_bf16.h>

#include "comm/base/cuda/divider.hpp"
#include "comm/base/cuda/mma.cuh"
#include "comm/base/cuda/pair_combine.hpp"

namespace airmoe::cuda {

template <class T>
struct CombineTerms {
  CombineTerm<T> term[kMaxCombineTerms];
  Divider units[kMaxCombineTerms];
  int count = 0;
};

struct CombineShape {
  static constexpr int kThreads = 256;
  static constexpr int kStages = 4;
  static constexpr int kRows = 64;  // table rows per chunk
  static constexpr int kColumns = 128;
  static constexpr int kStageBytes = kRows * kColumns * 2;
  static constexpr int kCoefficientBytes = kTileTokens * kRows * 2;
  static constexpr int kSharedBytes = kStages * kStageBytes + 2 * kCoefficientBytes;
};

/// Where chunk `index` of all terms' chunks lies.
struct CombineChunk {
  int term, chunk;
};

template <bool kOneUnit>
class CombineChunks {
 public:
  __device__ CombineChunks(const CombineTerms<__nv_bfloat16>& terms, int used)
      : count_(terms.count) {
#pragma unroll
    for (int i = 0; i < kMaxCombineTerms; ++i) {
      const int units = kOneUnit ? 1 : static_cast<int>(terms.term[i].units);
      chunks_[i] = i < count_ ? (used * units + CombineShape::kRows - 1) / CombineShape::kRows : 0;
    }
  }
  __device__ int total() const {
    return chunks_[0] + chunks_[1] + chunks_[2];
  }
  __device__ CombineChunk at(int index) const {
    if (index < chunks_[0]) return {0, index};
    index -= chunks_[0];
    if (index < chunks_[1]) return {1, index};
    return {2, index - chunks_[1]};
  }

 private:
  int count_;
  int chunks_[kMaxCombineTerms];
};

/// Block = (tile, slab of kColumns columns). Warp w has columns 16 w .. 16 w + 15 of the slab.
/// @tparam kOneUnit  all terms have one unit
template <bool kOneUnit>
__global__ void __launch_bounds__(CombineShape::kThreads, 3)
    combine_tiles_kernel(PairTiles tiles, const __grid_constant__ CombineTerms<__nv_bfloat16> terms,
                         int d, int slabs, float* __restrict__ out) {
  using Shape = CombineShape;
  const int tile = blockIdx.x / slabs;
  if (tile >= *tiles.tokens.tiles) return;
  const int first_column = static_cast<int>(blockIdx.x) % slabs * Shape::kColumns;
  extern __shared__ __align__(128) unsigned char shared[];
  const uint32_t ring = shared_address(shared);
  const uint32_t coefficient_tiles = ring + Shape::kStages * Shape::kStageBytes;

  const int begin = tiles.tokens.tile_begin[tile];
  const int count = tiles.tokens.tile_end[tile] - begin;
  const int used = tiles.used[tile];
  const int active = static_cast<int>(tiles.active);
  const int64_t at = tile * tiles.width;
  const int32_t* const rows = tiles.row + at;
  const uint32_t* const mask = tiles.mask + at;
  const uint16_t* const first = tiles.first + at;
  const CombineChunks<kOneUnit> chunks(terms, used);
  const int total = chunks.total();

  // Copies: a thread has one 16-byte segment of four rows of each chunk.
  const int copy_segment = threadIdx.x % 16, copy_row = threadIdx.x / 16;
  const int copy_column = first_column + copy_segment * 8;
  const bool copy_valid = copy_column < d;
  const auto table_rows = [&](int index, int(&id)[4]) {
    const CombineChunk c = chunks.at(index);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int r = c.chunk * Shape::kRows + copy_row + 16 * i;
      id[i] = -1;
      if (index >= total) continue;
      if constexpr (kOneUnit) {
        id[i] = rows[r];
      } else {
        const Divider& units = terms.units[c.term];
        const int candidate = units.divide(r);
        if (candidate < used) id[i] = rows[candidate] * units.divisor() + units.remainder(r);
      }
    }
  };
  const auto copy = [&](int index, const int(&id)[4]) {
    if (index < total) {
      const uint32_t stage = ring + index % Shape::kStages * Shape::kStageBytes;
      const __nv_bfloat16* table = terms.term[chunks.at(index).term].table + copy_column;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const bool valid = copy_valid && id[i] >= 0;
        copy_async_16(stage + swizzled<16>(copy_row + 16 * i, copy_segment),
                      valid ? table + static_cast<int64_t>(id[i]) * d : table, valid);
      }
    }
    commit_copies();
  };

  // Coefficients: a thread has eight neighbouring candidates of one token.
  const int token = threadIdx.x / 8, octet = threadIdx.x % 8;
  const int64_t first_pair = static_cast<int64_t>(begin + token) * active;
  struct Selected {
    uint32_t word = 0;
    int before = 0;
  };
  const auto selected = [&](int index) {
    Selected s;
    if (index >= total) return s;
    const CombineChunk c = chunks.at(index);
    int candidate = c.chunk * Shape::kRows + octet * 8;
    if constexpr (!kOneUnit) candidate = terms.units[c.term].divide(candidate);
    if (candidate >= used) return s;
    const int i = candidate / 32 * 32 + token;
    s.word = mask[i];
    s.before = first[i];
    return s;
  };
  const auto coefficients = [&](int index, const Selected& s, float(&value)[8]) {
#pragma unroll
    for (float& x : value) x = 0;
    if (index >= total) return;
    const CombineChunk c = chunks.at(index);
    const float* const from = terms.term[c.term].coefficient;
    const Divider& units = terms.units[c.term];
    if (kOneUnit || units.divisor() == 1) {  // eight candidates
      const int shift = octet % 4 * 8;
      const uint32_t byte = s.word >> shift & 0xff;
      const float* here = from + first_pair + s.before + __popc(s.word & ((1u << shift) - 1));
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        if (byte >> j & 1) value[j] = __ldg(here + __popc(byte & ((1u << j) - 1)));
      }
      return;
    }
    const int r0 = c.chunk * Shape::kRows + octet * 8;
    if (units.divisor() % 8 == 0) {  // eight units of one candidate
      const uint32_t bit = 1u << (units.divide(r0) % 32);
      if ((s.word & bit) == 0) return;
      const int64_t pair = first_pair + s.before + __popc(s.word & (bit - 1));
      const auto* here =
          reinterpret_cast<const float4*>(from + pair * units.divisor() + units.remainder(r0));
      const float4 low = __ldg(here), high = __ldg(here + 1);
      value[0] = low.x, value[1] = low.y, value[2] = low.z, value[3] = low.w;
      value[4] = high.x, value[5] = high.y, value[6] = high.z, value[7] = high.w;
      return;
    }
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      const int candidate = units.divide(r0 + j);
      if (candidate >= used) continue;
      const int i = candidate / 32 * 32 + token;
      const uint32_t word = mask[i], bit = 1u << (candidate % 32);
      if ((word & bit) == 0) continue;
      const int64_t pair = first_pair + first[i] + __popc(word & (bit - 1));
      value[j] = from[pair * units.divisor() + units.remainder(r0 + j)];
    }
  };
  const auto store_coefficients = [&](int index, const float(&value)[8]) {
    unsigned char* to = shared + Shape::kStages * Shape::kStageBytes +
                        (index & 1) * Shape::kCoefficientBytes + swizzled<8>(token, octet);
    *reinterpret_cast<uint4*>(to) =
        make_uint4(pack_bf16(value[0], value[1]), pack_bf16(value[2], value[3]),
                   pack_bf16(value[4], value[5]), pack_bf16(value[6], value[7]));
  };

  int id[4];
  table_rows(0, id);
#pragma unroll
  for (int s = 0; s < Shape::kStages - 1; ++s) {
    int next[4];
    table_rows(s + 1, next);
    copy(s, id);
#pragma unroll
    for (int i = 0; i < 4; ++i) id[i] = next[i];
  }
  float value[8];
  coefficients(0, selected(0), value);
  store_coefficients(0, value);
  coefficients(1, selected(1), value);
  Selected ahead = selected(2);

  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int halves = count > 16 ? 2 : 1;
  float sum[2][2][4] = {};
  for (int index = 0; index < total; ++index) {
    wait_copies<Shape::kStages - 2>();
    __syncthreads();
    int next[4];
    table_rows(index + Shape::kStages, next);
    copy(index + Shape::kStages - 1, id);
#pragma unroll
    for (int i = 0; i < 4; ++i) id[i] = next[i];
    store_coefficients(index + 1, value);
    coefficients(index + 2, ahead, value);
    ahead = selected(index + 3);

    const uint32_t stage = ring + index % Shape::kStages * Shape::kStageBytes;
    const uint32_t left = coefficient_tiles + (index & 1) * Shape::kCoefficientBytes;
#pragma unroll
    for (int k = 0; k < Shape::kRows; k += 16) {
      uint32_t b[4];
      load_matrix_x4_transposed(
          b, stage + swizzled<16>(k + lane % 16, static_cast<uint32_t>(warp * 2 + lane / 16)));
      const uint32_t b0[2] = {b[0], b[1]}, b1[2] = {b[2], b[3]};
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        if (half >= halves) break;
        uint32_t a[4];
        load_matrix_x4(a, left + swizzled<8>(half * 16 + lane % 16, k / 8 + lane / 16));
        mma_bf16(sum[half][0], a, b0);
        mma_bf16(sum[half][1], a, b1);
      }
    }
  }

#pragma unroll
  for (int half = 0; half < 2; ++half) {
#pragma unroll
    for (int upper = 0; upper < 2; ++upper) {
      const int t = half * 16 + upper * 8 + lane / 4;
      if (t >= count) continue;
      float* to = out + static_cast<int64_t>(tiles.tokens.token[begin + t]) * d;
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        const int column = first_column + warp * 16 + j * 8 + lane % 4 * 2;
        if (column >= d) continue;
        *reinterpret_cast<float2*>(to + column) =
            make_float2(sum[half][j][upper * 2], sum[half][j][upper * 2 + 1]);
      }
    }
  }
}

}  // namespace airmoe::cuda
