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
constexpr int64_t kRangeExperts = int64_t{1} << 18;  // experts of a bitmap

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
    work.codeword[r] = codeword;
    work.count[r] = 0;
    work.sample_count[r] = 0;
    if (which.id == nullptr && !isnan(threshold[codeword])) continue;
    threshold[codeword] = sampled ? NAN : -FLT_MAX;
    if (sampled) work.cold[atomicAdd(&cold, 1)] = codeword;
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    *work.rows = rows;
    *work.cold_rows = cold;
  }
}

__global__ void __launch_bounds__(kThreads)
    pick_kernel(ListWork work, const Candidate* samples, int64_t row_elements, uint32_t rank,
                float* threshold) {
  using Select = BlockSelect<kThreads>;
  __shared__ typename Select::Shared shared;
  const int row = blockIdx.x;
  if (row >= *work.cold_rows) return;
  const uint32_t count = static_cast<uint32_t>(work.sample_count[row]);
  if (count < rank) return;  // NaN lets nothing through: an exhaustive search follows
  const Candidate* mine = samples + row * row_elements;
  const Cut cut =
      Select::kth_largest([&](int64_t i) { return order_key(mine[i].score); }, count, rank, shared);
  if (threadIdx.x == 0) threshold[work.cold[row]] = score_of_key(cut.key);
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

template <class T>
__global__ void __launch_bounds__(kThreads)
    select_kernel(ListWork work, ListShape shape, ScoreTask<T> task, float* threshold,
                  int32_t* lists) {
  using Select = BlockSelect<kThreads>;
  using Scan = cub::BlockScan<Pair, kThreads>;
  using Exhaustive = ExhaustiveList<T, kThreads>;
  __shared__ union {
    typename Select::Shared select;
    typename Scan::TempStorage scan;
    typename Exhaustive::Shared exhaustive;
  } shared;
  extern __shared__ uint32_t bitmap[];  // experts above the cut, then those equal to it
  const int row = blockIdx.x;
  if (row >= *work.rows) return;
  const int codeword = work.codeword[row];
  const int64_t count = work.count[row];
  int32_t* list = lists + codeword * shape.length;
  if (count < shape.length || count > task.capacity) {
    const float found = Exhaustive::write(codeword, shape, task, list,
                                          reinterpret_cast<float*>(bitmap), shared.exhaustive);
    if (threadIdx.x == 0) {
      threshold[codeword] = found;
      atomicAdd(work.exhaustive, 1);
    }
    return;
  }
  const Candidate* mine = task.candidates + row * task.row_elements;
  const uint32_t length = static_cast<uint32_t>(shape.length);
  const Cut cut = Select::kth_largest([&](int64_t i) { return order_key(mine[i].score); }, count,
                                      length, shared.select);
  if (threadIdx.x == 0) {
    threshold[codeword] =
        moved_threshold(threshold[codeword], score_of_key(cut.key), static_cast<float>(count),
                        static_cast<float>(shape.length), static_cast<float>(shape.target));
  }
  __syncthreads();

  Pair before{0, 0};  // in ranges before this one
  const auto place = [&](const Pair& p) { return p.above + min(p.equal, cut.equal); };
  for (int64_t begin = 0; begin < shape.experts && place(before) < length; begin += kRangeExperts) {
    const int range = static_cast<int>(min(kRangeExperts, shape.experts - begin));
    const int words = (range + 31) / 32;
    const int per_thread = (words + kThreads - 1) / kThreads;
    uint32_t *above = bitmap, *equal = bitmap + words;
    for (int w = threadIdx.x; w < 2 * words; w += kThreads) bitmap[w] = 0;
    __syncthreads();
    for (int64_t i = threadIdx.x; i < count; i += kThreads) {
      const Candidate c = mine[i];
      const int64_t at = c.id - begin;
      const uint32_t key = order_key(c.score);
      if (key < cut.key || at < 0 || at >= range) continue;
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
          list[place(own)] = static_cast<int32_t>(begin + w * 32 + bit);
        }
        own = own + (is_above ? Pair{1, 0} : Pair{0, 1});
      }
    }
    before = before + total;
    __syncthreads();
  }
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

void pick_thresholds(const ListWork& work, int64_t chunk, const Candidate* samples,
                     int64_t row_elements, int64_t rank, float* threshold, cudaStream_t stream) {
  pick_kernel<<<static_cast<unsigned>(chunk), kThreads, 0, stream>>>(
      work, samples, row_elements, static_cast<uint32_t>(rank), threshold);
  AIRMOE_CUDA_LAUNCHED();
}

template <class T>
void select_lists(const ListWork& work, int64_t chunk, const ListShape& shape,
                  const ScoreTask<T>& task, float* threshold, int32_t* lists, cudaStream_t stream) {
  const int64_t words = (std::min(kRangeExperts, shape.experts) + 31) / 32;
  const int bytes = static_cast<int>(std::max(2 * words, task.dim) * int64_t{sizeof(uint32_t)});
  AIRMOE_CUDA(
      cudaFuncSetAttribute(select_kernel<T>, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
  select_kernel<T>
      <<<static_cast<unsigned>(chunk), kThreads, static_cast<std::size_t>(bytes), stream>>>(
          work, shape, task, threshold, lists);
  AIRMOE_CUDA_LAUNCHED();
}

template void select_lists<float>(const ListWork&, int64_t, const ListShape&,
                                  const ScoreTask<float>&, float*, int32_t*, cudaStream_t);
template void select_lists<__nv_bfloat16>(const ListWork&, int64_t, const ListShape&,
                                          const ScoreTask<__nv_bfloat16>&, float*, int32_t*,
                                          cudaStream_t);

}  // namespace airmoe::router::cuda
