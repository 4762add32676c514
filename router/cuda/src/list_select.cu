// From candidates to lists: the best M by radix selection, then their ids in order by way of a
// bitmap of the experts.

#include <cfloat>

#include "comm/base/cuda/device.hpp"
#include "router/cuda/src/block_select.cuh"
#include "router/cuda/src/list_exhaustive.cuh"
#include "router/cuda/src/list_kernels.hpp"
#include "router/cuda/src/order_key.cuh"

namespace airmoe::router::cuda {
namespace {

constexpr int kPrepareThreads = 1024;
constexpr int kThreads = 512;
constexpr int kSelectBlocks = 4;  // of a multiprocessor
/// Of a block that writes lists; rows are few, and some for exhaustive searches, where it is the
/// last.
constexpr int select_threads(bool last) {
  return last ? kThreads : 256;
}
constexpr int64_t kFewBlocks = 132;      // where rows are few as a rule
constexpr int kRangeExperts = 1 << 18;   // experts of a bitmap
constexpr int64_t kKeyBytes = 64 << 10;  // of candidates, where they are kept in shared memory

/// Of each of the two bitmaps.
__host__ __device__ constexpr int bitmap_words(int64_t experts) {
  return experts < kRangeExperts ? static_cast<int>((experts + 31) / 32) : kRangeExperts / 32;
}

__global__ void __launch_bounds__(kPrepareThreads)
    prepare_kernel(ListWork work, int first, int chunk, int codewords, DeviceCodewords which,
                   bool sampled, float* threshold) {
  __shared__ int cold;
  const int all = which.id != nullptr ? *which.count : codewords;
  const int rows = max(0, min(chunk, all - first));
  if (threadIdx.x == 0) cold = 0;
  __syncthreads();
  for (int r = threadIdx.x; r < rows; r += kPrepareThreads) {
    const int codeword = which.id != nullptr ? which.id[first + r] : first + r;
    work.all.codeword[r] = codeword;
    work.all.count[r] = 0;
    work.cold.samples[r] = 0;
    work.again.samples[r] = 0;
    work.again.count[r] = 0;
    if (which.id == nullptr && !isnan(threshold[codeword])) continue;
    threshold[codeword] = sampled ? NAN : -FLT_MAX;
    if (sampled) work.cold.codeword[atomicAdd(&cold, 1)] = codeword;
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    *work.all.rows = rows;
    *work.cold.rows = cold;
    *work.again.rows = 0;
  }
}

__global__ void __launch_bounds__(kThreads)
    pick_kernel(ListRows rows, const Candidate* samples, int64_t row_elements, uint32_t rank,
                float* threshold) {
  using Select = BlockSelect<kThreads>;
  __shared__ typename Select::Shared shared;
  for (int row = blockIdx.x; row < *rows.rows; row += gridDim.x) {
    const auto count = static_cast<uint32_t>(rows.samples[row]);
    if (count < rank) continue;  // the threshold stays NaN, which lets nothing through
    const Candidate* mine = samples + row * row_elements;
    const Cut cut = Select::kth_largest([&](int i) { return order_key(mine[i].score); },
                                        static_cast<int>(count), rank, shared);
    if (threadIdx.x == 0) threshold[rows.codeword[row]] = score_of_key(cut.key);
    __syncthreads();
  }
}

/// Where a threshold should have been for `target` candidates, on a line through what was seen: it
/// let `count` through, and the length-th of them scored `last`. A small step where that is vague.
__device__ float moved_threshold(float threshold, float last, float count, float length,
                                 float target) {
  if (threshold == -FLT_MAX || !isfinite(threshold) || !isfinite(last)) return threshold;
  const float seen = fmaxf(count - length, length / 16);
  return last - (last - threshold) * fminf((target - length) / seen, 4.0f);
}

struct Pair {
  uint32_t above, equal;
  __device__ Pair operator+(const Pair& other) const {
    return {above + other.above, equal + other.equal};
  }
};

template <int kThreads>
union SelectShared {
  typename BlockSelect<kThreads>::Shared select;
  typename cub::BlockScan<Pair, kThreads>::TempStorage scan;
};

/// The list of a row with enough candidates. `bitmap`: of experts above the cut, then those equal
/// to it, then, if `keep`, the candidates' keys.
template <int kThreads, class T>
__device__ __forceinline__ void write_list(int row, int codeword, int count, const ListShape& shape,
                                           const ScoreTask<T>& task, bool keep, float* threshold,
                                           int32_t* list, uint32_t* bitmap,
                                           SelectShared<kThreads>& shared) {
  using Select = BlockSelect<kThreads>;
  using Scan = cub::BlockScan<Pair, kThreads>;
  const Candidate* mine = task.candidates + row * task.row_elements;
  const auto length = static_cast<uint32_t>(shape.length);
  uint32_t* keys = bitmap + 2 * bitmap_words(shape.experts);
  const auto first_key_at = [&](int i) {
    const uint32_t key = order_key(mine[i].score);
    if (keep) keys[i] = key;
    return key;
  };
  const auto key_at = [&](int i) { return keep ? keys[i] : order_key(mine[i].score); };
  const Cut cut = Select::kth_largest(first_key_at, key_at, count, length, shared.select);
  if (threadIdx.x == 0) {
    threshold[codeword] =
        moved_threshold(threshold[codeword], score_of_key(cut.key), static_cast<float>(count),
                        static_cast<float>(shape.length), static_cast<float>(shape.target));
  }
  __syncthreads();

  Pair before{0, 0};  // in ranges before this one
  const auto place = [&](const Pair& p) { return p.above + min(p.equal, cut.equal); };
  const int experts = static_cast<int>(shape.experts);
  for (int begin = 0; begin < experts && place(before) < length; begin += kRangeExperts) {
    const int range = min(kRangeExperts, experts - begin);
    const int words = (range + 31) / 32;
    const int per_thread = (words + kThreads - 1) / kThreads;
    uint32_t *above = bitmap, *equal = bitmap + words;
    for (int w = threadIdx.x; w < 2 * words; w += kThreads) bitmap[w] = 0;
    __syncthreads();
    for (int i = threadIdx.x; i < count; i += kThreads) {
      const uint32_t key = key_at(i);
      if (key < cut.key) continue;
      const int at = mine[i].id - begin;
      if (at < 0 || at >= range) continue;
      atomicOr((key > cut.key ? above : equal) + at / 32, 1u << at % 32);
    }
    __syncthreads();
    const int first_word = min(static_cast<int>(threadIdx.x) * per_thread, words);
    const int last_word = min(first_word + per_thread, words);
    Pair own{0, 0}, total;
    for (int w = first_word; w < last_word; ++w) {
      own = own +
            Pair{static_cast<uint32_t>(__popc(above[w])), static_cast<uint32_t>(__popc(equal[w]))};
    }
    Scan(shared.scan)
        .ExclusiveScan(
            own, own, Pair{0, 0}, [](const Pair& a, const Pair& b) { return a + b; }, total);
    own = before + own;
    for (int w = first_word; w < last_word; ++w) {
      for (uint32_t bits = above[w] | equal[w]; bits != 0; bits &= bits - 1) {
        const int bit = __ffs(static_cast<int>(bits)) - 1;
        const bool is_above = (above[w] >> bit & 1) != 0;
        if (is_above || own.equal < cut.equal) {
          list[place(own)] = begin + w * 32 + bit;
        }
        own = own + (is_above ? Pair{1, 0} : Pair{0, 1});
      }
    }
    before = before + total;
    __syncthreads();
  }
}

template <class T, bool kLast>
__global__ void __launch_bounds__(select_threads(kLast), kLast ? 2 : kSelectBlocks)
    select_kernel(ListWork work, ListRows rows, ListShape shape, ScoreTask<T> task, bool keep,
                  float* threshold, int32_t* lists) {
  constexpr int kThreads = select_threads(kLast);
  using Exhaustive = ExhaustiveList<T, kThreads>;
  __shared__ union {
    SelectShared<kThreads> select;
    typename Exhaustive::Shared exhaustive;
  } shared;
  extern __shared__ uint32_t dynamic[];
  for (int row = blockIdx.x; row < *rows.rows; row += gridDim.x) {
    const int codeword = rows.codeword[row];
    const int count = rows.count[row];
    int32_t* list = lists + codeword * shape.length;
    if (count >= shape.length && count <= task.capacity) {
      write_list<kThreads>(row, codeword, count, shape, task, keep, threshold, list, dynamic,
                           shared.select);
    } else if constexpr (kLast) {
      const float found = Exhaustive::write(codeword, shape, task, list,
                                            reinterpret_cast<float*>(dynamic), shared.exhaustive);
      if (threadIdx.x == 0) {
        threshold[codeword] = found;
        atomicAdd(work.exhaustive, 1);
      }
    } else if (threadIdx.x == 0) {
      work.again.codeword[atomicAdd(work.again.rows, 1)] = codeword;
      threshold[codeword] = NAN;
      atomicAdd(work.second, 1);
    }
    __syncthreads();
  }
}

template <bool kLast, class T>
void launch_select(const ListWork& work, const ListRows& rows, int64_t blocks,
                   const ListShape& shape, const ScoreTask<T>& task, float* threshold,
                   int32_t* lists, cudaStream_t stream) {
  const bool keep = task.capacity * int64_t{sizeof(uint32_t)} <= kKeyBytes;
  const int64_t words = 2 * bitmap_words(shape.experts) + (keep ? task.capacity : 0);
  const auto bytes = static_cast<int>(std::max(words, task.dim) * int64_t{sizeof(uint32_t)});
  const auto kernel = select_kernel<T, kLast>;
  AIRMOE_CUDA(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
  kernel<<<static_cast<unsigned>(blocks), select_threads(kLast), static_cast<std::size_t>(bytes),
           stream>>>(work, rows, shape, task, keep, threshold, lists);
  AIRMOE_CUDA_LAUNCHED();
}

}  // namespace

void prepare_rows(const ListWork& work, int64_t first, int64_t chunk, int64_t codewords,
                  const DeviceCodewords& which, bool sampled, float* threshold,
                  cudaStream_t stream) {
  prepare_kernel<<<1, kPrepareThreads, 0, stream>>>(
      work, static_cast<int>(first), static_cast<int>(chunk), static_cast<int>(codewords), which,
      sampled, threshold);
  AIRMOE_CUDA_LAUNCHED();
}

void pick_thresholds(const ListRows& rows, int64_t row_limit, const Candidate* samples,
                     int64_t row_elements, int64_t rank, float* threshold, cudaStream_t stream) {
  const int64_t blocks = std::min(2 * kFewBlocks, row_limit);
  pick_kernel<<<static_cast<unsigned>(blocks), kThreads, 0, stream>>>(
      rows, samples, row_elements, static_cast<uint32_t>(rank), threshold);
  AIRMOE_CUDA_LAUNCHED();
}

template <class T>
void select_lists(const ListWork& work, const ListRows& rows, bool last, int64_t row_limit,
                  const ListShape& shape, const ScoreTask<T>& task, float* threshold,
                  int32_t* lists, cudaStream_t stream) {
  const bool few = rows.rows == work.again.rows;
  const int64_t blocks = few ? std::min(kFewBlocks, row_limit) : row_limit;
  last ? launch_select<true>(work, rows, blocks, shape, task, threshold, lists, stream)
       : launch_select<false>(work, rows, blocks, shape, task, threshold, lists, stream);
}

template void select_lists<float>(const ListWork&, const ListRows&, bool, int64_t, const ListShape&,
                                  const ScoreTask<float>&, float*, int32_t*, cudaStream_t);
template void select_lists<__nv_bfloat16>(const ListWork&, const ListRows&, bool, int64_t,
                                          const ListShape&, const ScoreTask<__nv_bfloat16>&, float*,
                                          int32_t*, cudaStream_t);

}  // namespace airmoe::router::cuda
