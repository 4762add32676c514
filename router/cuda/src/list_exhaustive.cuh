#pragma once
// The list of a codeword whose threshold was useless: one block computes all its scores, a few
// times for the bits of the M-th largest and once more for the list, in ascending id.

#include "comm/base/cuda/jitter.cuh"
#include "router/cuda/src/block_select.cuh"
#include "router/cuda/src/list_kernels.hpp"
#include "router/cuda/src/norm.cuh"
#include "router/cuda/src/order_key.cuh"

namespace airmoe::router::cuda {

template <class T, int kThreads>
class ExhaustiveList {
  using Select = BlockSelect<kThreads>;
  using Scan = cub::BlockScan<uint32_t, kThreads>;

 public:
  union Shared {
    typename Select::Shared select;
    typename Scan::TempStorage scan;
  };

  /// Writes the list and returns a threshold that lets shape.target experts through. All threads of
  /// the block. `row`: shared memory for task.dim floats.
  static __device__ float write(int codeword, const ListShape& shape, const ScoreTask<T>& task,
                                int32_t* list, float* row, Shared& shared) {
    const int dim = static_cast<int>(task.dim);
    for (int k = threadIdx.x; k < dim; k += kThreads) {
      row[k] = to_float(task.codebook[int64_t{codeword} * dim + k]);
    }
    __syncthreads();
    const auto key_at = [&](int64_t e) {
      float score = chain(row, task.unit + e * dim, dim);
      if (task.jittered) {
        score = __fadd_rn(score, airmoe::cuda::jitter(task.jitter, static_cast<uint32_t>(e),
                                                      static_cast<uint32_t>(codeword), 0));
      }
      return order_key(score);
    };
    const uint32_t length = static_cast<uint32_t>(shape.length);
    const int experts = static_cast<int>(shape.experts);
    const Cut cut = Select::kth_largest(key_at, experts, length, shared.select);
    __syncthreads();
    const Cut target =
        Select::kth_largest(key_at, experts, static_cast<uint32_t>(shape.target), shared.select);
    __syncthreads();
    uint32_t above = 0, equal = 0;  // written of each
    const auto place = [&](uint32_t a, uint32_t e) { return a + min(e, cut.equal); };
    for (int64_t begin = 0; begin < shape.experts && place(above, equal) < length;
         begin += kThreads) {
      const int64_t e = begin + threadIdx.x;
      const uint32_t key = e < shape.experts ? key_at(e) : 0;
      const bool is_above = e < shape.experts && key > cut.key;
      const bool is_equal = e < shape.experts && key == cut.key;
      uint32_t before, total;  // those above in the low half, those equal in the high half
      Scan(shared.scan)
          .ExclusiveSum((is_above ? 1u : 0u) | (is_equal ? 1u << 16 : 0u), before, total);
      const uint32_t a = above + (before & 0xFFFFu), q = equal + (before >> 16);
      if (is_above || (is_equal && q < cut.equal)) list[place(a, q)] = static_cast<int32_t>(e);
      above += total & 0xFFFFu;
      equal += total >> 16;
      __syncthreads();
    }
    return score_of_key(target.key);
  }

 private:
  /// One chain of fused multiply-adds over k.
  static __device__ __forceinline__ float chain(const float* codeword, const T* unit, int dim) {
    constexpr int kVector = 16 / sizeof(T);
    float sum = 0.0f;
    for (int k = 0; k < dim; k += kVector) {
      const uint4 raw = *reinterpret_cast<const uint4*>(unit + k);
      const T* x = reinterpret_cast<const T*>(&raw);
#pragma unroll
      for (int i = 0; i < kVector; ++i) sum = __fmaf_rn(codeword[k + i], to_float(x[i]), sum);
    }
    return sum;
  }
};

}  // namespace airmoe::router::cuda
