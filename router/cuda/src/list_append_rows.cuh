#pragma once
// What becomes of the sums of a warp-group product (comm/base/cuda/wgmma.cuh): a thread has two
// rows, codewords, and 32 experts of each per 128 columns; four lanes share a row. Jitter where it
// can matter; what reaches the codeword's threshold is appended.
//
// A hit is a sign bit, two instructions per score, and appending goes from hit to hit: for that
// scores lie in shared memory, where a thread can choose one by number.

#include <cstdint>

#include "comm/base/cuda/jitter.cuh"
#include "comm/base/cuda/philox.cuh"
#include "router/cuda/src/list_kernels.hpp"

namespace airmoe::router::cuda {

inline constexpr int kScoreBytes = 64;  // of shared memory per thread

template <bool kJitter>
class ThreadRows {
  static constexpr float kTailEnd = 5.02f;

 public:
  /// Rows `row` and row + 8 of the task, of which `rows` are in use. `scores`: shared address of 16
  /// bytes of this thread, with three more of them `stride` bytes on each.
  __device__ __forceinline__ ThreadRows(const ScoreTask<__nv_bfloat16>& task, int row, int rows,
                                        uint32_t scores, int stride)
      : row_(row), scores_(scores), stride_(stride) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const bool used = row + 8 * h < rows;
      const float threshold =
          used ? task.threshold[task.first_codeword + row + 8 * h] : NAN;  // nothing reaches NaN
      below_[h] = nextafterf(threshold, -INFINITY);
      near_[h] = threshold - fabsf(threshold) * 1e-6f;
    }
    if (kJitter) per_tail_ = 1.0f / (kTailEnd * task.jitter.stddev);
  }

  /// Sums of experts from first_expert on: sums[4 w + t][2 h + b] is of row h and expert
  /// 32 w + 8 q + 2 t + b, q = lane % 4. All lanes of a warp.
  template <int kTiles>
  __device__ __forceinline__ void append(float (&sums)[kTiles][4], int first_expert,
                                         const ScoreTask<__nv_bfloat16>& task) const {
    const int quad = threadIdx.x & 3;
    first_expert += quad * 8;
    if (kJitter) {
#pragma unroll
      for (int w = 0; w < kTiles / 4; ++w) {
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          add_jitter(sums[4 * w], sums[4 * w + 1], sums[4 * w + 2], sums[4 * w + 3], h,
                     first_expert + 32 * w, task);
        }
      }
    }
    uint32_t hits[kTiles / 8] = {};  // bit 4 (t % 8) + i of t / 8: sums[t][i]
#pragma unroll
    for (int i = 31; i >= 0; --i) {
#pragma unroll
      for (int m = 0; m < kTiles / 8; ++m) {
        const float above = below_[i / 2 % 2] - sums[8 * m + i / 4][i % 4];  // NaN is positive
        hits[m] = __funnelshift_l(__float_as_uint(above), hits[m], 1);
      }
    }
    const int blocks = (static_cast<int>(task.experts) - first_expert + quad * 8) / 32;
    if (blocks < kTiles / 4) {  // the last tile
#pragma unroll
      for (int m = 0; m < kTiles / 8; ++m) {
        hits[m] &= blocks >= 2 * m + 2 ? ~0u : blocks == 2 * m + 1 ? 0xFFFFu : 0u;
      }
    }
    uint32_t place[2];
    take_places(hits, place, task);
#pragma unroll
    for (int w = 0; w < kTiles / 4; ++w) {
      uint32_t left = hits[w / 2] >> (w % 2 * 16) & 0xFFFFu;
      if (!__any_sync(0xFFFFFFFFu, left != 0)) continue;
#pragma unroll
      for (int t = 0; t < 4; ++t) {
        const float* x = sums[4 * w + t];
        asm volatile("st.shared.v4.f32 [%0], {%1, %2, %3, %4};\n" ::"r"(scores_ + t * stride_),
                     "f"(x[0]), "f"(x[1]), "f"(x[2]), "f"(x[3])
                     : "memory");
      }
      while (left != 0) {
        const int bit = __ffs(static_cast<int>(left)) - 1;
        left &= left - 1;
        float score;
        asm volatile("ld.shared.f32 %0, [%1];\n"
                     : "=f"(score)
                     : "r"(scores_ + bit / 4 * stride_ + bit % 4 * 4)
                     : "memory");
        const bool second = (bit & 2) != 0;
        const uint32_t to = second ? place[1]++ : place[0]++;
        task.candidates[to] = {score, first_expert + 32 * w + bit / 4 * 2 + bit % 2};
      }
    }
  }

 private:
  /// Adds jitter to the eight scores of row h of which a draw can lift one to the threshold, in so
  /// far as this draw may, or which are above it. The test is a bound of the tail of the normal
  /// distribution, 2 (1 - Phi(x)) <= (1 - x / 5.02)^4, which spares most of the table's
  /// reads.
  __device__ __forceinline__ void add_jitter(float (&s0)[4], float (&s1)[4], float (&s2)[4],
                                             float (&s3)[4], int h, int first_expert,
                                             const ScoreTask<__nv_bfloat16>& task) const {
    const airmoe::cuda::JitterKey& key = task.jitter;
    const auto codeword = static_cast<uint32_t>(task.first_codeword) + row_ + 8 * h;
    const uint4 block = airmoe::cuda::philox(static_cast<uint32_t>(first_expert) >> 3, codeword, 0,
                                             0, key.key0, key.key1);
    const uint32_t words[4] = {block.x, block.y, block.z, block.w};
    float* scores[4] = {s0 + 2 * h, s1 + 2 * h, s2 + 2 * h, s3 + 2 * h};
    float noise[8];
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      const uint32_t draw = words[j / 2] >> (16 * (j % 2)) & 0xFFFFu;
      // 2^23 and the draw's place in the upper half of the distribution, 0 for the lower half.
      const uint32_t upper = __vmaxs2(words[j / 2], 0);
      const float lifts =
          __uint_as_float(__byte_perm(upper, 0x4B000000u, j % 2 == 0 ? 0x7610 : 0x7632));
      const float x = __saturatef(__fmaf_rn(scores[j / 2][j % 2] - near_[h], per_tail_, 1.0f));
      const float square = x * x;
      const float least = __fmaf_rn(square * -32768.0f, square, 8388608.0f + 32766.0f);
      noise[j] = 0.0f;
      asm("{\n.reg .pred p;\nsetp.ge.f32 p, %1, %2;\n@p ld.global.nc.f32 %0, [%3];\n}\n"
          : "+f"(noise[j])
          : "f"(lifts), "f"(least), "l"(key.quantile + (draw & 0x7FFFu)));
    }
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      const uint32_t sign = (words[j / 2] << (j % 2 == 0 ? 16 : 0)) & 0x80000000u;
      const float drawn = __fmul_rn(key.stddev, __uint_as_float(__float_as_uint(noise[j]) ^ sign));
      scores[j / 2][j % 2] = __fadd_rn(scores[j / 2][j % 2], drawn);
    }
  }

  /// Where the hits of both rows go, as indices of task.candidates: the four lanes of a row take
  /// their places together. Hits of a full row are dropped.
  template <int kWords>
  __device__ __forceinline__ void take_places(uint32_t (&hits)[kWords], uint32_t (&place)[2],
                                              const ScoreTask<__nv_bfloat16>& task) const {
    constexpr uint32_t kRow[2] = {0x33333333u, 0xCCCCCCCCu};
    const int quad = threadIdx.x & 3;
    uint32_t own = 0;  // of the first row in the lower half
#pragma unroll
    for (int m = 0; m < kWords; ++m) {
      own += __popc(hits[m] & kRow[0]) + (__popc(hits[m] & kRow[1]) << 16);
    }
    uint32_t through = own;  // of this lane and those before it
#pragma unroll
    for (int o = 1; o < 4; o *= 2) {
      const uint32_t before = __shfl_up_sync(0xFFFFFFFFu, through, o, 4);
      if (quad >= o) through += before;
    }
    const uint32_t total = __shfl_sync(0xFFFFFFFFu, through, 3, 4);
    const int taken = static_cast<int>(quad == 0 ? total & 0xFFFFu : total >> 16);
    int begin = 0;
    if (quad < 2 && taken > 0) begin = atomicAdd(task.count + row_ + 8 * quad, taken);
    through -= own;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int count = static_cast<int>(own >> (16 * h) & 0xFFFFu);
      const int slot =
          __shfl_sync(0xFFFFFFFFu, begin, h, 4) + static_cast<int>(through >> (16 * h) & 0xFFFFu);
      place[h] = static_cast<uint32_t>((row_ + 8 * h) * task.row_elements + slot);
      if (slot + count > task.capacity) {
#pragma unroll
        for (int m = 0; m < kWords; ++m) hits[m] &= ~kRow[h];
      }
    }
  }

  int row_;
  uint32_t scores_;
  int stride_;
  float below_[2];  ///< the largest number below the row's threshold
  float near_[2];   ///< the threshold, less what rounding can make of a score
  float per_tail_ = 0.0f;
};

}  // namespace airmoe::router::cuda
