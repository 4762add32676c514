#pragma once
// accumulate_pairs by bundles: gradient[16 rows, columns] += coefficient[16 rows, tokens] *
// source[tokens, columns] on tensor cores, over the distinct tokens that selected one of the rows.
// Coefficients, fp32, go in as the sum of two bf16; most of their matrix is zero. Hopper only, for
// its copy engine: some warps find the tokens, some copy them, the others multiply.

#include <cuda_bf16.h>

#include "comm/base/cuda/mma.cuh"
#include "comm/base/cuda/pair_bundles.hpp"
#include "comm/base/cuda/src/pair_accumulate_kernels.cuh"
#include "comm/base/cuda/tma.cuh"

namespace airmoe::cuda {

struct BundleShape {
  static constexpr int kConsumers = 256, kPreparers = 128, kCopiers = 128;  // threads
  static constexpr int kThreads = kConsumers + kPreparers + kCopiers;
  static constexpr int kChunk = 256;    // pairs whose coefficients are in shared memory at a time
  static constexpr int kChunks = 2;     // of them
  static constexpr int kStep = 16;      // tokens of one product
  static constexpr int kStages = 5;     // of steps under way
  static constexpr int kColumns = 256;  // per block; a consumer warp has 32
  static constexpr int kRowBytes = kColumns * 2 + 16;  // so that ldmatrix meets all banks
  static constexpr int kSourceBytes = kStep * kRowBytes;
  static constexpr int kStageBytes = 2 * kSourceBytes;
  static constexpr int kMatrixBytes = kBundleRows * kChunk * 2;

  static constexpr int coefficient_bytes(int jobs) { return jobs * 2 * kMatrixBytes; }
  static constexpr int shared_bytes(int jobs) {
    return kChunks * coefficient_bytes(jobs) + kStages * kStageBytes;
  }
};

#if defined(AIRMOE_HAS_WGMMA)

/// What the three kinds of warps of a block share.
template <int kJobs>
struct BundleShared {
  using Shape = BundleShape;

  /// What preparers tell the others of a chunk.
  struct Chunk {
    int steps, tokens, bundle;
    uint32_t rows;  // of the bundle so far, that have pairs
    bool ends;      // the bundle's last chunk in the segment
    bool last;      // of the segment
    int token_of[Shape::kChunk];
  };

  Chunk chunk[Shape::kChunks];
  uint64_t chunk_full[Shape::kChunks], chunk_empty[Shape::kChunks];
  uint64_t stage_full[Shape::kStages], stage_empty[Shape::kStages];
  // Of the preparers: per warp and round of the window.
  int tokens[Shape::kChunk / 32], pairs[Shape::kChunk / 32];
  uint32_t rows[Shape::kChunk / 32];
  int bundle;

  __device__ void start() {
    for (int i = 0; i < Shape::kChunks; ++i) {
      start_barrier(shared_address(chunk_full + i), Shape::kPreparers);
      start_barrier(shared_address(chunk_empty + i), (Shape::kConsumers + Shape::kCopiers) / 32);
    }
    for (int i = 0; i < Shape::kStages; ++i) {
      start_barrier(shared_address(stage_full + i), 1);
      start_barrier(shared_address(stage_empty + i), Shape::kConsumers / 32);
    }
    publish_barriers();
  }
};

/// Finds the distinct tokens of a chunk and lays out its coefficients.
template <int kFirst, int kSecond>
class BundlePreparer {
  using Shape = BundleShape;
  static constexpr int kJobs = kFirst + kSecond;
  static constexpr int kRounds = Shape::kChunk / Shape::kPreparers;  // pairs of a thread
  static constexpr int kWarps = Shape::kPreparers / 32;
  static constexpr uint32_t kAll = 0xffffffffu;

 public:
  using Jobs = AccumulateJobs<__nv_bfloat16, kFirst, kSecond>;

  __device__ BundlePreparer(const PairBundles& bundles, const Jobs& jobs, int end,
                            unsigned char* matrices, BundleShared<kJobs>& shared)
      : bundles_(bundles), jobs_(jobs), end_(end), matrices_(matrices), shared_(shared) {}

  __device__ void run(int begin) {
    int base = begin;
    fetch(base);
    open_window(base);
    uint32_t rows = 0;
    for (int index = 0; base < end_; ++index) {
      const int bundle = bundle_;
      // Pairs of one token lie next to each other.
      int at[kRounds];
      bool first[kRounds];
#pragma unroll
      for (int q = 0; q < kRounds; ++q) {
        const int neighbour = __shfl_up_sync(kAll, token_[q], 1);
        first[q] = mine_[q] && (q * Shape::kPreparers + thread_ == 0 ||
                                token_[q] != (lane_ > 0 ? neighbour : token_before_[q]));
        const uint32_t firsts = __ballot_sync(kAll, first[q]);
        const uint32_t here = __reduce_or_sync(kAll, mine_[q] ? 1u << slot(q) : 0u);
        at[q] = __popc(firsts & (kAll >> (31 - lane_))) - 1;
        if (lane_ == 0) {
          shared_.tokens[q * kWarps + warp_] = __popc(firsts);
          shared_.rows[q * kWarps + warp_] = here;
        }
      }
      const int buffer = index % Shape::kChunks;
      if (index >= Shape::kChunks) {
        await_barrier(shared_address(shared_.chunk_empty + buffer),
                      static_cast<uint32_t>(index / Shape::kChunks - 1) & 1);
      }
      sync();
      int tokens = 0;
#pragma unroll
      for (int w = 0; w < kRounds * kWarps; ++w) {
#pragma unroll
        for (int q = 0; q < kRounds; ++q) at[q] += w < q * kWarps + warp_ ? shared_.tokens[w] : 0;
        tokens += shared_.tokens[w];
        rows |= shared_.rows[w];
      }
      const int steps = (tokens + Shape::kStep - 1) / Shape::kStep;
      auto& chunk = shared_.chunk[buffer];
      unsigned char* const matrix = matrices_ + buffer * Shape::coefficient_bytes(kJobs);
      const int segments = (steps * 2 + 7) / 8 * 8;  // of a row, to clear
      static_assert(Shape::kChunk / 8 == 32);
      for (int r = warp_; r < kJobs * 2 * kBundleRows; r += kWarps) {
        if (lane_ < segments) {
          reinterpret_cast<uint4*>(matrix)[r * 32 + lane_] = make_uint4(0, 0, 0, 0);
        }
      }
      sync();
#pragma unroll
      for (int q = 0; q < kRounds; ++q) {
        if (first[q]) chunk.token_of[at[q]] = token_[q];
        if (mine_[q]) store_coefficients(q, at[q], matrix);
      }
      const int next = base + count_;
      open_window(next);
      const bool ends = next >= end_ || bundle_ != bundle;
      if (thread_ == 0) {
        chunk.steps = steps;
        chunk.tokens = tokens;
        chunk.bundle = bundle;
        chunk.rows = rows;
        chunk.ends = ends;
        chunk.last = next >= end_;
      }
      if (ends) rows = 0;
      arrive(shared_address(shared_.chunk_full + buffer));
      base = next;
    }
  }

 private:
  __device__ static void sync() {
    asm volatile("barrier.cta.sync 1, %0;" ::"n"(Shape::kPreparers) : "memory");
  }
  __device__ int slot(int q) const {
    return rank_[q] % kBundleRows;
  }

  __device__ void store_coefficients(int q, int at, unsigned char* matrix) {
#pragma unroll
    for (int j = 0; j < kJobs; ++j) {
      const __nv_bfloat16 high = __float2bfloat16(coefficient_[q][j]);
      const __nv_bfloat16 low = __float2bfloat16(coefficient_[q][j] - __bfloat162float(high));
      unsigned char* to =
          matrix + j * 2 * Shape::kMatrixBytes + swizzled<32>(slot(q), at / 8) + at % 8 * 2;
      *reinterpret_cast<__nv_bfloat16*>(to) = high;
      *reinterpret_cast<__nv_bfloat16*>(to + Shape::kMatrixBytes) = low;
    }
  }

  /// Starts to read the pairs from `base` on.
  __device__ void fetch(int base) {
#pragma unroll
    for (int q = 0; q < kRounds; ++q) {
      const int i = base + q * Shape::kPreparers + thread_;
      next_rank_[q] = i < end_ ? bundles_.rank[i] : -1;
      next_pair_[q] = i < end_ ? bundles_.pair[i] : 0;
      next_before_[q] = lane_ == 0 && i > base && i < end_ ? bundles_.pair[i - 1] : 0;
    }
  }
  /// The pairs fetched, from `base` on; those of the first one's bundle count.
  __device__ void open_window(int base) {
    if (thread_ == 0) shared_.bundle = next_rank_[0] / kBundleRows;
    sync();
    bundle_ = shared_.bundle;
    const int active = static_cast<int>(bundles_.active);
#pragma unroll
    for (int q = 0; q < kRounds; ++q) {
      rank_[q] = next_rank_[q];
      mine_[q] = rank_[q] >= 0 && rank_[q] / kBundleRows == bundle_;
      const uint32_t here = __ballot_sync(kAll, mine_[q]);
      if (lane_ == 0) shared_.pairs[q * kWarps + warp_] = __popc(here);
      if (!mine_[q]) continue;
      const int pair = next_pair_[q];
      token_[q] = bundles_.token[pair / active];
      if (lane_ == 0) token_before_[q] = bundles_.token[next_before_[q] / active];
#pragma unroll
      for (int j = 0; j < kJobs; ++j) coefficient_[q][j] = __ldg(jobs_.job[j].coefficient + pair);
    }
    sync();
    count_ = 0;
#pragma unroll
    for (int w = 0; w < kRounds * kWarps; ++w) count_ += shared_.pairs[w];
    fetch(base + count_);
  }

  const PairBundles& bundles_;
  const Jobs& jobs_;
  const int end_;
  unsigned char* const matrices_;
  BundleShared<kJobs>& shared_;
  const int thread_ = static_cast<int>(threadIdx.x) - Shape::kConsumers;
  const int lane_ = thread_ % 32, warp_ = thread_ / 32;
  int bundle_ = 0, count_ = 0;
  int next_rank_[kRounds], next_pair_[kRounds], next_before_[kRounds];
  int rank_[kRounds], token_[kRounds] = {}, token_before_[kRounds] = {};
  bool mine_[kRounds];
  float coefficient_[kRounds][kJobs];
};

/// Copies a step's tokens: a few lanes of every warp one row each, for a warp issues one at a time.
template <int kJobs, class T>
__device__ void copy_bundle_tokens(const T* const (&source)[2], int d, int first_column,
                                   uint32_t ring, BundleShared<kJobs>& shared) {
  using Shape = BundleShape;
  constexpr int kRows = Shape::kStep / (Shape::kCopiers / 32);  // of a warp
  const int thread = static_cast<int>(threadIdx.x) - Shape::kConsumers - Shape::kPreparers;
  const int lane = thread % 32, row = thread / 32 * kRows + lane % kRows;
  const int which = lane / kRows % 2;
  const auto bytes = static_cast<uint32_t>(min(Shape::kColumns, d - first_column) * 2);
  const T* const from = source[which] + first_column;
  const uint32_t to = ring + which * Shape::kSourceBytes + row * Shape::kRowBytes;
  int step = 0;
  for (int index = 0;; ++index) {
    const int buffer = index % Shape::kChunks;
    await_barrier(shared_address(shared.chunk_full + buffer),
                  static_cast<uint32_t>(index / Shape::kChunks) & 1);
    const auto& chunk = shared.chunk[buffer];
    const int tokens = chunk.tokens;
    const bool last = chunk.last;
    for (int first = 0; first < tokens; first += Shape::kStep, ++step) {
      const int stage = step % Shape::kStages;
      const int count = min(Shape::kStep, tokens - first);
      const bool copies = lane < 2 * kRows && row < count;
      const int64_t offset = copies ? static_cast<int64_t>(chunk.token_of[first + row]) * d : 0;
      if (step >= Shape::kStages) {
        await_barrier(shared_address(shared.stage_empty + stage),
                      static_cast<uint32_t>(step / Shape::kStages - 1) & 1);
      }
      const uint32_t full = shared_address(shared.stage_full + stage);
      if (thread == 0) expect_bytes(full, 2 * static_cast<uint32_t>(count) * bytes);
      if (copies) copy_bytes(to + stage * Shape::kStageBytes, from + offset, bytes, full);
    }
    // Consumers do not wait for a warp that had nothing to copy; the chunk must.
    __syncwarp();
    if (lane == 0) arrive(shared_address(shared.chunk_empty + buffer));
    if (last) return;
  }
}

/// Multiplies coefficients and tokens, and keeps the sums of one bundle.
template <int kFirst, int kSecond>
class BundleConsumer {
  using Shape = BundleShape;
  static constexpr int kJobs = kFirst + kSecond;

 public:
  using Jobs = AccumulateJobs<__nv_bfloat16, kFirst, kSecond>;

  __device__ BundleConsumer(const PairBundles& bundles, const Jobs& jobs,
                            const WrittenRows& written, int d, int first_column, uint32_t matrices,
                            uint32_t ring, BundleShared<kJobs>& shared)
      : bundles_(bundles),
        jobs_(jobs),
        written_(written),
        d_(d),
        column_(first_column + warp_ * 32),
        matrices_(matrices),
        ring_(ring),
        shared_(shared) {}

  /// @param part  where the first bundle's sums go if it is a part of a cut one
  __device__ void run(float* part, uint32_t* part_rows, uint32_t* rows_of_bundle) {
    const bool writes_rows = threadIdx.x == 0 && blockIdx.y == 0;
    int step = 0;
    for (int index = 0;; ++index) {
      const int buffer = index % Shape::kChunks;
      await_barrier(shared_address(shared_.chunk_full + buffer),
                    static_cast<uint32_t>(index / Shape::kChunks) & 1);
      const auto& chunk = shared_.chunk[buffer];
      const int steps = chunk.steps, bundle = chunk.bundle;
      const uint32_t rows = chunk.rows;
      const bool ends = chunk.ends, last = chunk.last;
      if (ends) find_rows(bundle, rows);
      for (int s = 0; s < steps; ++s, ++step) {
        const int stage = step % Shape::kStages;
        await_barrier(shared_address(shared_.stage_full + stage),
                      static_cast<uint32_t>(step / Shape::kStages) & 1);
        if (column_ < d_) multiply(s, stage, buffer);
        __syncwarp();
        if (lane_ == 0) arrive(shared_address(shared_.stage_empty + stage));
      }
      if (lane_ == 0) arrive(shared_address(shared_.chunk_empty + buffer));
      if (ends) {
        flush(part);
        if (writes_rows) (part != nullptr ? part_rows : rows_of_bundle + bundle)[0] = rows;
        part = nullptr;
      }
      if (last) return;
    }
  }

 private:
  // All operands are on their way before the first product.
  __device__ void multiply(int step, int stage, int buffer) {
    const uint32_t tokens = ring_ + stage * Shape::kStageBytes;
    const uint32_t matrix = matrices_ + buffer * Shape::coefficient_bytes(kJobs);
    uint32_t a[2][kJobs][4], b[2][4][2];
#pragma unroll
    for (int s = 0; s < 2; ++s) {
#pragma unroll
      for (int n = 0; n < 4; n += 2) {
        uint32_t four[4];
        load_matrix_x4_transposed(four, tokens + s * Shape::kSourceBytes +
                                            lane_ % 16 * Shape::kRowBytes +
                                            (warp_ * 4 + n + lane_ / 16) * 16);
        b[s][n][0] = four[0], b[s][n][1] = four[1];
        b[s][n + 1][0] = four[2], b[s][n + 1][1] = four[3];
      }
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
      for (int j = 0; j < kJobs; ++j) {
        load_matrix_x4(a[half][j], matrix + (j * 2 + half) * Shape::kMatrixBytes +
                                       swizzled<32>(lane_ % 16, step * 2 + lane_ / 16));
      }
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
      for (int j = 0; j < kJobs; ++j) {
#pragma unroll
        for (int n = 0; n < 4; ++n) mma_bf16(sum_[j][n], a[half][j], b[j < kFirst ? 0 : 1][n]);
      }
    }
  }

  /// Reads ahead where a bundle's sums go: rows lane / 4 and lane / 4 + 8.
  __device__ void find_rows(int bundle, uint32_t rows) {
#pragma unroll
    for (int upper = 0; upper < 2; ++upper) {
      const int slot = lane_ / 4 + upper * 8;
      row_[upper] = rows >> slot & 1 ? bundles_.row[bundle * kBundleRows + slot] : -1;
      add_[upper] = row_[upper] >= 0 && holds_sums(written_, row_[upper]);
    }
  }

  __device__ void flush(float* part) {
    if (column_ < d_) {
#pragma unroll
      for (int j = 0; j < kJobs; ++j) {
        float* to[2];
        float2 old[2][4];  // all are on their way before the first is needed
#pragma unroll
        for (int upper = 0; upper < 2; ++upper) {
          const int slot = lane_ / 4 + upper * 8;
          to[upper] = part != nullptr
                          ? part + (static_cast<int64_t>(j) * kBundleRows + slot) * d_
                          : jobs_.job[j].gradient + static_cast<int64_t>(max(row_[upper], 0)) * d_;
#pragma unroll
          for (int n = 0; n < 4; ++n) {
            const int column = column_ + n * 8 + lane_ % 4 * 2;
            old[upper][n] = part == nullptr && add_[upper] && column < d_
                                ? *reinterpret_cast<const float2*>(to[upper] + column)
                                : make_float2(0, 0);
          }
        }
#pragma unroll
        for (int upper = 0; upper < 2; ++upper) {
#pragma unroll
          for (int n = 0; n < 4; ++n) {
            const int column = column_ + n * 8 + lane_ % 4 * 2;
            if (row_[upper] < 0 || column >= d_) continue;
            *reinterpret_cast<float2*>(to[upper] + column) =
                make_float2(old[upper][n].x + sum_[j][n][upper * 2],
                            old[upper][n].y + sum_[j][n][upper * 2 + 1]);
          }
        }
      }
    }
#pragma unroll
    for (auto& job : sum_) {
#pragma unroll
      for (auto& tile : job) {
#pragma unroll
        for (float& x : tile) x = 0;
      }
    }
  }

  const PairBundles& bundles_;
  const Jobs& jobs_;
  const WrittenRows written_;
  const int lane_ = threadIdx.x % 32, warp_ = threadIdx.x / 32;
  const int d_, column_;
  const uint32_t matrices_, ring_;
  BundleShared<kJobs>& shared_;
  int row_[2] = {};
  bool add_[2] = {};
  float sum_[kJobs][4][4] = {};
};

#endif

/// Block = segment, blockIdx.y = slab of columns. Parts of cut bundles go to partial[segment, job,
/// 16, d]. Which rows have pairs goes to part_rows[segment], of whole bundles to
/// rows_of_bundle[bundle].
template <int kFirst, int kSecond>
__global__ void __launch_bounds__(BundleShape::kThreads, 1) accumulate_bundles_kernel(
    const __grid_constant__ PairBundles bundles,
    const __grid_constant__ AccumulateJobs<__nv_bfloat16, kFirst, kSecond> jobs,
    const WrittenRows written, int segment, int d, float* __restrict__ partial,
    uint32_t* __restrict__ part_rows, uint32_t* __restrict__ rows_of_bundle) {
#if defined(AIRMOE_HAS_WGMMA)
  using Shape = BundleShape;
  constexpr int kJobs = kFirst + kSecond;
  extern __shared__ __align__(128) unsigned char matrices[];
  unsigned char* const ring = matrices + Shape::kChunks * Shape::coefficient_bytes(kJobs);
  __shared__ BundleShared<kJobs> shared;

  const int index = static_cast<int>(blockIdx.x);
  const int first_column = static_cast<int>(blockIdx.y) * Shape::kColumns;
  const SegmentRange range =
      segment_range<kBundleRows>(bundles.rank, bundles.offset, bundles.pairs, index, segment);
  if (range.begin >= range.end) return;
  if (threadIdx.x == 0) shared.start();
  // Rows behind a chunk's last token are multiplied by zero: they must be numbers.
  for (int i = threadIdx.x; i < Shape::kStages * Shape::kStageBytes / 16; i += Shape::kThreads) {
    reinterpret_cast<uint4*>(ring)[i] = make_uint4(0, 0, 0, 0);
  }
  publish_copies();
  __syncthreads();
  if (threadIdx.x >= Shape::kConsumers + Shape::kPreparers) {
    copy_bundle_tokens(jobs.source, d, first_column, shared_address(ring), shared);
  } else if (threadIdx.x >= Shape::kConsumers) {
    BundlePreparer<kFirst, kSecond>(bundles, jobs, range.end, matrices, shared).run(range.begin);
  } else {
    float* const part =
        range.part ? partial + static_cast<int64_t>(index) * kJobs * kBundleRows * d : nullptr;
    BundleConsumer<kFirst, kSecond>(bundles, jobs, written, d, first_column,
                                    shared_address(matrices), shared_address(ring), shared)
        .run(part, part_rows + index, rows_of_bundle);
  }
#endif
}

/// Block = segment with the first part of a long bundle, some of its rows: adds all parts, in
/// order.
template <int kFirst, int kSecond>
__global__ void __launch_bounds__(256) add_bundle_parts_kernel(
    const __grid_constant__ PairBundles bundles,
    const __grid_constant__ AccumulateJobs<__nv_bfloat16, kFirst, kSecond> jobs,
    const WrittenRows written, int segment, int d, const float* __restrict__ partial,
    const uint32_t* __restrict__ part_rows, uint32_t* __restrict__ rows_of_bundle) {
  constexpr int kJobs = kFirst + kSecond;
  const int index = static_cast<int>(blockIdx.x);
  const int from = index * segment;
  const int bundle = bundles.rank[from] / kBundleRows;
  const int begin = bundles.offset[bundle], end = bundles.offset[bundle + 1];
  if (begin >= from || begin < from - segment || end - begin <= segment) return;
  const int last = (end - 1) / segment;
  uint32_t rows = 0;
  for (int s = index; s <= last; ++s) rows |= part_rows[s];
  if (threadIdx.x == 0 && blockIdx.y == 0) rows_of_bundle[bundle] = rows;
  for (int slot = blockIdx.y; slot < kBundleRows; slot += gridDim.y) {
    if (!(rows >> slot & 1)) continue;
    const int row = bundles.row[bundle * kBundleRows + slot];
    const bool add = holds_sums(written, row);
#pragma unroll
    for (int j = 0; j < kJobs; ++j) {
      float* gradient = jobs.job[j].gradient + static_cast<int64_t>(row) * d;
      for (int column = threadIdx.x; column < d; column += 256) {
        float sum = 0;
        for (int s = index; s <= last; ++s) {
          if (!(part_rows[s] >> slot & 1)) continue;
          sum += partial[((static_cast<int64_t>(s) * kJobs + j) * kBundleRows + slot) * d + column];
        }
        gradient[column] = add ? gradient[column] + sum : sum;
      }
    }
  }
}

/// Rows with pairs hold sums now. Thread = rank.
static __global__ void __launch_bounds__(256)
    mark_bundles_written_kernel(PairBundles bundles, const uint32_t* __restrict__ rows_of_bundle,
                                WrittenRows written) {
  const int rank = static_cast<int>(blockIdx.x * 256 + threadIdx.x);
  if (rank >= bundles.rows) return;
  if (rows_of_bundle[rank / kBundleRows] >> (rank % kBundleRows) & 1) {
    written.number[bundles.row[rank]] = written.now;
  }
}

}  // namespace airmoe::cuda
