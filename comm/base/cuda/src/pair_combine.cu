#include <type_traits>

#include "comm/base/cuda/pair_combine.hpp"
#include "comm/base/cuda/src/pair_combine_tiles.cuh"

namespace airmoe::cuda {
namespace {

constexpr int kSimtThreads = 128;
constexpr int kSimtColumns = 2;  // per thread at a time

/// One place per block, every thread has columns of its own: the specification, and what fp32 uses.
template <class T>
__global__ void __launch_bounds__(kSimtThreads)
    combine_places_kernel(PairTiles tiles, CombineTerms<T> terms, int d, float* __restrict__ out) {
  const int tile = blockIdx.x / kTileTokens;
  if (tile >= *tiles.tokens.tiles) return;
  const int place = tiles.tokens.tile_begin[tile] + static_cast<int>(blockIdx.x) % kTileTokens;
  if (place >= tiles.tokens.tile_end[tile]) return;
  const int active = static_cast<int>(tiles.active);
  const uint16_t* position = tiles.position + static_cast<int64_t>(place) * active;
  const int32_t* row = tiles.lists.row + tiles.tokens.tile_codeword[tile] * tiles.lists.length;
  float* const to = out + static_cast<int64_t>(tiles.tokens.token[place]) * d;
  __shared__ int table_row[kSimtThreads];
  __shared__ float factor[kSimtThreads];
  for (int first = 0; first < d; first += kSimtThreads * kSimtColumns) {
    float sum[kSimtColumns] = {};
    for (int i = 0; i < terms.count; ++i) {
      const CombineTerm<T>& term = terms.term[i];
      const int units = static_cast<int>(term.units), items = active * units;
      const float* coefficient = term.coefficient + static_cast<int64_t>(place) * items;
      for (int base = 0; base < items; base += kSimtThreads) {
        __syncthreads();
        const int item = base + static_cast<int>(threadIdx.x);
        if (item < items) {
          table_row[threadIdx.x] = row[position[item / units]] * units + item % units;
          factor[threadIdx.x] = coefficient[item];
        }
        __syncthreads();
        const int count = min(kSimtThreads, items - base);
#pragma unroll 4
        for (int k = 0; k < count; ++k) {
          const T* from = term.table + static_cast<int64_t>(table_row[k]) * d;
#pragma unroll
          for (int c = 0; c < kSimtColumns; ++c) {
            const int column = first + c * kSimtThreads + static_cast<int>(threadIdx.x);
            if (column < d) sum[c] = fmaf(factor[k], static_cast<float>(from[column]), sum[c]);
          }
        }
      }
    }
#pragma unroll
    for (int c = 0; c < kSimtColumns; ++c) {
      const int column = first + c * kSimtThreads + static_cast<int>(threadIdx.x);
      if (column < d) to[column] = sum[c];
    }
  }
}

template <class T>
void combine_places(const PairTiles& tiles, const CombineTerms<T>& terms, int64_t d, float* out,
                    cudaStream_t stream) {
  combine_places_kernel<T>
      <<<static_cast<unsigned>(tiles.tokens.tile_limit * kTileTokens), kSimtThreads, 0, stream>>>(
          tiles, terms, static_cast<int>(d), out);
}

template <bool kOneUnit>
void combine_tiles(const PairTiles& tiles, const CombineTerms<__nv_bfloat16>& terms, int64_t d,
                   float* out, cudaStream_t stream) {
  const auto kernel = combine_tiles_kernel<kOneUnit>;
  AIRMOE_CUDA(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                   CombineShape::kSharedBytes));
  const int64_t slabs = (d + CombineShape::kColumns - 1) / CombineShape::kColumns;
  kernel<<<static_cast<unsigned>(tiles.tokens.tile_limit * slabs), CombineShape::kThreads,
           CombineShape::kSharedBytes, stream>>>(tiles, terms, static_cast<int>(d),
                                                 static_cast<int>(slabs), out);
}

}  // namespace

template <class T>
void combine_pairs(const PairTiles& tiles, std::span<const CombineTerm<T>> terms, int64_t d,
                   float* out, cudaStream_t stream) {
  AIRMOE_CHECK(std::ssize(terms) >= 1 && std::ssize(terms) <= kMaxCombineTerms,
               "combine_pairs of {} terms: 1 to {}", terms.size(), kMaxCombineTerms);
  if (d <= 0 || d % 8 != 0) {
    fail(ExitCode::config, "--dim {}: a device needs a multiple of 8", d);
  }
  if (tiles.tokens.tokens == 0) return;
  CombineTerms<T> copy{{}, {}, static_cast<int>(terms.size())};
  bool one_unit = true;
  for (std::size_t i = 0; i < terms.size(); ++i) {
    copy.term[i] = terms[i];
    AIRMOE_CHECK(tiles.width * terms[i].units < Divider::kLimit,
                 "{} candidates of {} hidden units are too many for a device", tiles.width,
                 terms[i].units);
    copy.units[i] = Divider(terms[i].units);
    one_unit = one_unit && terms[i].units == 1;
  }
  if constexpr (std::is_same_v<T, float>) {
    combine_places(tiles, copy, d, out, stream);
  } else if (one_unit) {
    combine_tiles<true>(tiles, copy, d, out, stream);
  } else {
    combine_tiles<false>(tiles, copy, d, out, stream);
  }
  AIRMOE_CUDA_LAUNCHED();
}

template void combine_pairs<float>(const PairTiles&, std::span<const CombineTerm<float>>, int64_t,
                                   float*, cudaStream_t);
template void combine_pairs<__nv_bfloat16>(const PairTiles&,
                                           std::span<const CombineTerm<__nv_bfloat16>>, int64_t,
                                           float*, cudaStream_t);

}  // namespace airmoe::cuda
