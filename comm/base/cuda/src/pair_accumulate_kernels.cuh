#pragma once
// One warp sums the pairs of the rows that start in its segment of the sorted pairs. A row of at
// most kSegment pairs is summed whole by one warp; longer rows are cut at segment boundaries, each
// part goes to `partial`, and a second kernel adds the parts in order.

#include <cstdint>

#include <cuda_bf16.h>

#include "comm/base/cuda/pair_accumulate.hpp"

namespace airmoe::cuda {

inline constexpr int kSegment = 256;
inline constexpr int kWarpsPerBlock = 4;

/// One unit of one term.
struct AccumulateJob {
  const float* coefficient = nullptr;  // of pair p at [p * units]
  float* gradient = nullptr;           // of row r at [r * units * d]
  int64_t units = 1;
};

/// kFirst jobs with source[0], then kSecond with source[1].
template <class T, int kFirst, int kSecond>
struct AccumulateJobs {
  const T* source[2] = {};
  AccumulateJob job[kFirst + kSecond];
};

__device__ __forceinline__ float low_bf16(uint32_t pair) {
  return __uint_as_float(pair << 16);
}
__device__ __forceinline__ float high_bf16(uint32_t pair) {
  return __uint_as_float(pair & 0xffff0000u);
}

/// Whether sums are added to what the row's gradients hold.
__device__ __forceinline__ bool holds_sums(const WrittenRows& written, int row) {
  return written.number == nullptr || written.number[row] == written.now;
}

/// kColumns neighbouring elements of a row, kept as loaded until they are used.
template <class T, int kColumns>
struct RowPart;

template <int kColumns>
struct RowPart<__nv_bfloat16, kColumns> {
  uint32_t word[kColumns / 2];
  __device__ __forceinline__ void load(const __nv_bfloat16* from) {
    if constexpr (kColumns == 8) {
      const uint4 x = __ldg(reinterpret_cast<const uint4*>(from));
      word[0] = x.x, word[1] = x.y, word[2] = x.z, word[3] = x.w;
    } else {
      const uint2 x = __ldg(reinterpret_cast<const uint2*>(from));
      word[0] = x.x, word[1] = x.y;
    }
  }
  __device__ __forceinline__ float operator[](int i) const {
    return i % 2 == 0 ? low_bf16(word[i / 2]) : high_bf16(word[i / 2]);
  }
};

template <int kColumns>
struct RowPart<float, kColumns> {
  float4 quad[kColumns / 4];
  __device__ __forceinline__ void load(const float* from) {
#pragma unroll
    for (int i = 0; i < kColumns / 4; ++i)
      quad[i] = __ldg(reinterpret_cast<const float4*>(from) + i);
  }
  __device__ __forceinline__ float operator[](int i) const {
    const float4& q = quad[i / 4];
    return i % 4 == 0 ? q.x : i % 4 == 1 ? q.y : i % 4 == 2 ? q.z : q.w;
  }
};

/// Which sorted pairs a segment's warp or block sums: [begin, end).
struct SegmentRange {
  int begin = 0, end = 0;
  bool part = false;  // the first group of the range is a part of a long one
};

/// Pairs are sorted by group, a group being kRows rows: all pairs of at most `segment` belong to
/// the segment where the group starts; a longer group is cut at segment boundaries.
/// @param row     of a pair
/// @param offset  first pair of a group
template <int kRows>
__device__ __forceinline__ SegmentRange segment_range(const int32_t* row, const int32_t* offset,
                                                      int64_t pairs, int index, int segment) {
  const int from = index * segment;
  const int to = min(from + segment, static_cast<int>(pairs));
  const int first = row[from] / kRows, last = row[to - 1] / kRows;
  const int first_begin = offset[first], first_end = offset[first + 1];
  const int last_begin = offset[last], last_end = offset[last + 1];
  SegmentRange range{from, last_end, false};
  if (first_begin < from) {
    // A long group's pairs in the segment where it starts belong to its next segment.
    range.part = first_end - first_begin > segment;
    if (!range.part) {
      range.begin = first_end;
    } else if (first_begin >= from - segment) {
      range.begin = first_begin;
    }
  }
  if (last_end - last_begin > segment) range.end = last_begin >= from ? last_begin : to;
  return range;
}

/// What the lanes of a warp know of 32 neighbouring pairs, one each.
template <int kJobs>
struct PairWindow {
  int token = 0, row = 0;
  float coefficient[kJobs] = {};
  uint32_t last = 0;  // pairs that end their row's sum
  uint32_t add = 0;   // those of them whose rows hold sums

  template <class Jobs>
  __device__ __forceinline__ void load(const PairGroups& groups, const Jobs& jobs,
                                       const WrittenRows& written, int base, int end) {
    const int i = base + static_cast<int>(threadIdx.x) % 32;
    token = 0;
    bool ends = false;
#pragma unroll
    for (float& c : coefficient) c = 0;
    if (i < end) {
      const int pair = groups.pair[i];
      row = groups.row[i];
      ends = i + 1 == end || groups.row[i + 1] != row;
      token = groups.token[pair / static_cast<int>(groups.active)];
#pragma unroll
      for (int j = 0; j < kJobs; ++j) {
        coefficient[j] = jobs.job[j].coefficient[pair * jobs.job[j].units];
      }
    }
    last = __ballot_sync(0xffffffffu, ends);
    add = __ballot_sync(0xffffffffu, ends && holds_sums(written, row));
  }
};

/// Warp = segment, blockIdx.y = slab of 32 kColumns columns.
template <class T, int kFirst, int kSecond, int kColumns>
__global__ void __launch_bounds__(kWarpsPerBlock * 32)
    accumulate_kernel(const __grid_constant__ PairGroups groups,
                      const __grid_constant__ AccumulateJobs<T, kFirst, kSecond> jobs,
                      const WrittenRows written, int segments, int d, float* __restrict__ partial) {
  constexpr int kJobs = kFirst + kSecond;
  constexpr int kAhead = 32 / kColumns;  // pairs whose rows are loaded before the first is used
  constexpr uint32_t kAll = 0xffffffffu;
  const int lane = threadIdx.x % 32;
  const int segment =
      static_cast<int>(blockIdx.x) * kWarpsPerBlock + static_cast<int>(threadIdx.x) / 32;
  if (segment >= segments) return;
  SegmentRange range = segment_range<1>(groups.row, groups.offset, groups.pairs, segment, kSegment);
  if (range.begin >= range.end) return;
  const int column = static_cast<int>(blockIdx.y) * 32 * kColumns + lane * kColumns;
  const bool inside = column < d;
  const T* const first = jobs.source[0] + (inside ? column : 0);
  const T* const second = kSecond > 0 ? jobs.source[1] + (inside ? column : 0) : nullptr;

  float sum[kJobs][kColumns] = {};
  const auto flush = [&](int row, bool add) {
    if (inside) {
      add = add && !range.part;
      float4* to[kJobs];
      float4 old[kJobs][kColumns / 4];  // all are on their way before the first is needed
#pragma unroll
      for (int j = 0; j < kJobs; ++j) {
        to[j] = reinterpret_cast<float4*>(
            range.part ? partial + (static_cast<int64_t>(segment) * kJobs + j) * d + column
                       : jobs.job[j].gradient + row * jobs.job[j].units * d + column);
#pragma unroll
        for (int i = 0; i < kColumns / 4; ++i) {
          old[j][i] = add ? to[j][i] : make_float4(0, 0, 0, 0);
        }
      }
#pragma unroll
      for (int j = 0; j < kJobs; ++j) {
#pragma unroll
        for (int i = 0; i < kColumns / 4; ++i) {
          to[j][i] = make_float4(old[j][i].x + sum[j][4 * i], old[j][i].y + sum[j][4 * i + 1],
                                 old[j][i].z + sum[j][4 * i + 2], old[j][i].w + sum[j][4 * i + 3]);
        }
      }
    }
#pragma unroll
    for (auto& columns : sum) {
#pragma unroll
      for (float& x : columns) x = 0;
    }
    range.part = false;
  };

  PairWindow<kJobs> window, next;
  window.load(groups, jobs, written, range.begin, range.end);
  for (int base = range.begin; base < range.end; base += 32) {
    next.load(groups, jobs, written, base + 32, range.end);
    const int count = min(32, range.end - base);
    for (int q = 0; q < count; q += kAhead) {
      RowPart<T, kColumns> x[kAhead], y[kSecond > 0 ? kAhead : 1];
#pragma unroll
      for (int u = 0; u < kAhead; ++u) {  // behind the last pair: token 0 with coefficients 0
        const int64_t from = static_cast<int64_t>(__shfl_sync(kAll, window.token, q + u)) * d;
        x[u].load(first + from);
        if constexpr (kSecond > 0) y[u].load(second + from);
      }
#pragma unroll
      for (int u = 0; u < kAhead; ++u) {
#pragma unroll
        for (int j = 0; j < kJobs; ++j) {
          const float c = __shfl_sync(kAll, window.coefficient[j], q + u);
#pragma unroll
          for (int i = 0; i < kColumns; ++i) {
            sum[j][i] = fmaf(c, j < kFirst ? x[u][i] : y[kSecond > 0 ? u : 0][i], sum[j][i]);
          }
        }
        if (window.last >> (q + u) & 1) {
          flush(__shfl_sync(kAll, window.row, q + u), window.add >> (q + u) & 1);
        }
      }
    }
    window = next;
  }
}

/// Block = segment with the first part of a long row: adds all its parts, in order.
template <class T, int kFirst, int kSecond>
__global__ void __launch_bounds__(128)
    add_parts_kernel(const __grid_constant__ PairGroups groups,
                     const __grid_constant__ AccumulateJobs<T, kFirst, kSecond> jobs,
                     const WrittenRows written, int d, const float* __restrict__ partial) {
  constexpr int kJobs = kFirst + kSecond;
  const int segment = blockIdx.x;
  const int from = segment * kSegment;
  const int row = groups.row[from];
  const int begin = groups.offset[row], end = groups.offset[row + 1];
  if (begin >= from || begin < from - kSegment || end - begin <= kSegment) return;
  const int last = (end - 1) / kSegment;
  const bool add = holds_sums(written, row);
#pragma unroll
  for (int j = 0; j < kJobs; ++j) {
    float* gradient = jobs.job[j].gradient + row * jobs.job[j].units * d;
    for (int column = threadIdx.x; column < d; column += 128) {
      float sum = 0;
      for (int s = segment; s <= last; ++s) {
        sum += partial[(static_cast<int64_t>(s) * kJobs + j) * d + column];
      }
      gradient[column] = add ? gradient[column] + sum : sum;
    }
  }
}

}  // namespace airmoe::cuda
