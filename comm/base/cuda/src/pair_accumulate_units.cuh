#pragma once
// accumulate_pairs for rows of many units, on tensor cores: gradient[units, columns] +=
// coefficient[pairs, units]^T * source[pairs, columns] over the pairs of a row. Tokens are gathered
// into shared memory several chunks of pairs ahead, coefficients one chunk ahead.

#include <cuda_bf16.h>

#include "comm/base/cuda/mma.cuh"
#include "comm/base/cuda/pair_accumulate.hpp"

namespace airmoe::cuda {

struct AccumulateShape {
  static constexpr int kThreads = 256;
  static constexpr int kStages = 3;
  static constexpr int kPairs = 64;  // per chunk
  static constexpr int kColumns = 128;
  static constexpr int kUnits = 64;
  static constexpr int kStageBytes = kPairs * kColumns * 2;
  static constexpr int kCoefficientBytes = kPairs * kUnits * 2;
  static constexpr int kSharedBytes = kStages * kStageBytes + 2 * kCoefficientBytes;
};

/// Block = (row, part of its units, slab of columns); blockIdx.y = part * slabs + slab. Warp w has
/// columns 16 w .. 16 w + 15 of the slab.
__global__ void __launch_bounds__(AccumulateShape::kThreads, 2)
    accumulate_units_kernel(const __grid_constant__ PairGroups groups,
                            const float* __restrict__ coefficient,
                            const __nv_bfloat16* __restrict__ source, float* __restrict__ gradient,
                            const WrittenRows written, int units, int d, int slabs) {
  using Shape = AccumulateShape;
  const int row = blockIdx.x;
  const int begin = groups.offset[row], end = groups.offset[row + 1];
  if (begin == end) return;
  const int first_unit = static_cast<int>(blockIdx.y) / slabs * Shape::kUnits;
  const int first_column = static_cast<int>(blockIdx.y) % slabs * Shape::kColumns;
  const int total = (end - begin + Shape::kPairs - 1) / Shape::kPairs;
  const int active = static_cast<int>(groups.active);
  extern __shared__ __align__(128) unsigned char shared[];
  const uint32_t ring = shared_address(shared);

  // Copies: a thread has one 16-byte segment of four tokens of each chunk.
  const int copy_segment = threadIdx.x % 16, copy_row = threadIdx.x / 16;
  const int copy_column = first_column + copy_segment * 8;
  const auto tokens = [&](int index, int(&token)[4]) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int at = begin + index * Shape::kPairs + copy_row + 16 * i;
      token[i] = at < end ? groups.token[groups.pair[at] / active] : -1;
    }
  };
  const auto copy = [&](int index, const int(&token)[4]) {
    if (index < total) {
      const uint32_t stage = ring + index % Shape::kStages * Shape::kStageBytes;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const bool valid = token[i] >= 0 && copy_column < d;
        copy_async_16(stage + swizzled<16>(copy_row + 16 * i, copy_segment),
                      valid ? source + static_cast<int64_t>(token[i]) * d + copy_column : source,
                      valid);
      }
    }
    commit_copies();
  };

  // Coefficients: a thread has 16 units of one pair of each chunk.
  const int pair_row = threadIdx.x / 4, quarter = threadIdx.x % 4;
  const auto coefficients = [&](int index, float(&value)[16]) {
    const int at = begin + index * Shape::kPairs + pair_row;
    const int unit = first_unit + quarter * 16;
    const float* from =
        at < end ? coefficient + static_cast<int64_t>(groups.pair[at]) * units + unit : nullptr;
#pragma unroll
    for (int i = 0; i < 16; ++i)
      value[i] = from != nullptr && unit + i < units ? __ldg(from + i) : 0;
  };
  const auto store_coefficients = [&](int index, const float(&value)[16]) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      unsigned char* to = shared + Shape::kStages * Shape::kStageBytes +
                          (index & 1) * Shape::kCoefficientBytes +
                          swizzled<8>(pair_row, quarter * 2 + i);
      const float* v = value + 8 * i;
      *reinterpret_cast<uint4*>(to) = make_uint4(pack_bf16(v[0], v[1]), pack_bf16(v[2], v[3]),
                                                 pack_bf16(v[4], v[5]), pack_bf16(v[6], v[7]));
    }
  };

  int token[4], next[4];
  tokens(0, token);
#pragma unroll
  for (int s = 0; s < Shape::kStages - 1; ++s) {
    tokens(s + 1, next);
    copy(s, token);
#pragma unroll
    for (int i = 0; i < 4; ++i) token[i] = next[i];
  }
  float value[16];
  coefficients(0, value);
  store_coefficients(0, value);

  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int parts = (min(units - first_unit, Shape::kUnits) + 15) / 16;
  float sum[4][2][4] = {};
  for (int index = 0; index < total; ++index) {
    wait_copies<Shape::kStages - 2>();
    __syncthreads();
    tokens(index + Shape::kStages, next);
    copy(index + Shape::kStages - 1, token);
#pragma unroll
    for (int i = 0; i < 4; ++i) token[i] = next[i];
    coefficients(index + 1, value);

    const uint32_t stage = ring + index % Shape::kStages * Shape::kStageBytes;
    const uint32_t left =
        ring + Shape::kStages * Shape::kStageBytes + (index & 1) * Shape::kCoefficientBytes;
#pragma unroll
    for (int k = 0; k < Shape::kPairs; k += 16) {
      uint32_t b[4];
      load_matrix_x4_transposed(
          b, stage + swizzled<16>(k + lane % 16, static_cast<uint32_t>(warp * 2 + lane / 16)));
      const uint32_t b0[2] = {b[0], b[1]}, b1[2] = {b[2], b[3]};
#pragma unroll
      for (int part = 0; part < 4; ++part) {
        if (part >= parts) break;
        uint32_t a[4];
        load_matrix_x4_transposed(
            a, left + swizzled<8>(k + lane / 16 * 8 + lane % 8, part * 2 + lane / 8 % 2));
        mma_bf16(sum[part][0], a, b0);
        mma_bf16(sum[part][1], a, b1);
      }
    }
    store_coefficients(index + 1, value);
  }

  // Old values are all on their way before the first is needed.
  float2 old[4][2][2];
  const auto each = [&](auto body) {
#pragma unroll
    for (int part = 0; part < 4; ++part) {
#pragma unroll
      for (int upper = 0; upper < 2; ++upper) {
        const int unit = first_unit + part * 16 + upper * 8 + lane / 4;
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          const int column = first_column + warp * 16 + j * 8 + lane % 4 * 2;
          if (unit >= units || column >= d) continue;
          float* to = gradient + (static_cast<int64_t>(row) * units + unit) * d + column;
          body(*reinterpret_cast<float2*>(to), old[part][upper][j], sum[part][j][upper * 2],
               sum[part][j][upper * 2 + 1]);
        }
      }
    }
  };
  const bool add = holds_sums(written, row);
  each([add](const float2& element, float2& kept, float, float) {
    kept = add ? element : make_float2(0, 0);
  });
  each([](float2& element, const float2& kept, float x, float y) {
    element = make_float2(kept.x + x, kept.y + y);
  });
}

}  // namespace airmoe::cuda
