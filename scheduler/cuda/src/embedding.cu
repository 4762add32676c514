#include <algorithm>
#include <bit>

#include <cub/device/device_radix_sort.cuh>

#include "scheduler/cuda/embedding.hpp"
#include "scheduler/cuda/src/row_chunks.hpp"
#include "scheduler/cuda/src/vector8.cuh"

namespace airmoe::scheduler::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kRows = 64;  // places per chunk, whose rows of d_out one block adds up

// One warp per row.
__global__ void __launch_bounds__(kThreads)
    embedding_forward_kernel(const int32_t* __restrict__ tokens, const float* __restrict__ table,
                             int64_t n, int64_t vocab, int64_t d, float* __restrict__ out) {
  const int64_t row = blockIdx.x * static_cast<int64_t>(kWarpsPerBlock) + threadIdx.x / kWarp;
  if (row >= n) return;
  const int64_t token = tokens[row];
  const bool valid = token >= 0 && token < vocab;
  const float none = nanf("");
  for (int64_t column = threadIdx.x % kWarp * 4; column < d; column += kWarp * 4) {
    const float4 x = valid ? *reinterpret_cast<const float4*>(table + token * d + column)
                           : make_float4(none, none, none, none);
    *reinterpret_cast<float4*>(out + row * d + column) = x;
  }
}

__global__ void __launch_bounds__(kThreads)
    make_keys_kernel(const int32_t* __restrict__ tokens, int64_t n, int32_t vocab,
                     int32_t* __restrict__ key, int32_t* __restrict__ index) {
  const int64_t t = blockIdx.x * static_cast<int64_t>(kThreads) + threadIdx.x;
  if (t >= n) return;
  const int32_t token = tokens[t];
  key[t] = token >= 0 && token < vocab ? token : vocab;
  index[t] = static_cast<int32_t>(t);
}

__device__ __forceinline__ void add(float4& a, const float4& b) {
  a.x += b.x, a.y += b.y, a.z += b.z, a.w += b.w;
}

__device__ __forceinline__ void add_at(float* to, const float4& x) {
  float4 sum = *reinterpret_cast<float4*>(to);
  add(sum, x);
  *reinterpret_cast<float4*>(to) = sum;
}

// A block adds up the runs of equal keys in its chunk of sorted places. A run within the chunk goes
// to the table. Of a run that the chunk cuts, the sum goes to partial: [chunk, 0] if the run began
// in an earlier chunk, else [chunk, 1].
__global__ void add_runs_kernel(const int32_t* __restrict__ key, const int32_t* __restrict__ index,
                                const float* __restrict__ d_out, int64_t n, int32_t vocab,
                                int64_t d, float* __restrict__ d_table,
                                float* __restrict__ partial) {
  __shared__ int32_t chunk_key[kRows], chunk_index[kRows];
  __shared__ int32_t key_before, key_behind;
  const int64_t chunk = blockIdx.x, begin = chunk * kRows;
  const int count = static_cast<int>(min(static_cast<int64_t>(kRows), n - begin));
  for (int i = threadIdx.x; i < kRows; i += blockDim.x) {
    chunk_key[i] = i < count ? key[begin + i] : -1;
    chunk_index[i] = i < count ? index[begin + i] : index[begin];
  }
  if (threadIdx.x == 0) {
    key_before = begin > 0 ? key[begin - 1] : -1;
    key_behind = begin + count < n ? key[begin + count] : -1;
  }
  __syncthreads();
  for (int64_t column = threadIdx.x * 4; column < d; column += blockDim.x * 4) {
    const auto finish = [&](int32_t row, const float4& sum, bool first, bool last) {
      if (row >= vocab) return;
      if (first && row == key_before) {
        *reinterpret_cast<float4*>(partial + 2 * chunk * d + column) = sum;
      } else if (last && row == key_behind) {
        *reinterpret_cast<float4*>(partial + (2 * chunk + 1) * d + column) = sum;
      } else {
        add_at(d_table + row * d + column, sum);
      }
    };
    float4 sum = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    int32_t row = chunk_key[0];
    bool first = true;
    for (int i = 0; i < count; i += 8) {
      float4 x[8];
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        x[j] = *reinterpret_cast<const float4*>(d_out + chunk_index[i + j] * d + column);
      }
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        if (i + j >= count) break;
        if (chunk_key[i + j] != row) {
          finish(row, sum, first, false);
          first = false;
          row = chunk_key[i + j];
          sum = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        }
        add(sum, x[j]);
      }
    }
    finish(row, sum, first, true);
  }
}

// The block of the chunk in which a cut run begins adds up its parts, in order.
__global__ void add_cut_runs_kernel(const int32_t* __restrict__ key,
                                    const float* __restrict__ partial, int64_t n, int32_t vocab,
                                    int64_t d, float* __restrict__ d_table) {
  const int64_t chunk = blockIdx.x, end = (chunk + 1) * kRows;
  if (end >= n) return;
  const int32_t row = key[end];
  if (row >= vocab || key[end - 1] != row) return;  // nothing is cut here
  // The run began before this chunk: where it began, it is added up.
  if (key[end - kRows] == row && chunk > 0 && key[end - kRows - 1] == row) return;
  int64_t low = end + 1, high = n;  // the run ends in [low, high]
  while (low < high) {
    const int64_t middle = (low + high) / 2;
    if (key[middle] == row) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  const int64_t last = (low - 1) / kRows;
  for (int64_t column = threadIdx.x * 4; column < d; column += blockDim.x * 4) {
    float4 sum = *reinterpret_cast<const float4*>(partial + (2 * chunk + 1) * d + column);
#pragma unroll 8
    for (int64_t c = chunk + 1; c <= last; ++c) {
      add(sum, *reinterpret_cast<const float4*>(partial + 2 * c * d + column));
    }
    add_at(d_table + row * d + column, sum);
  }
}

}  // namespace

void embedding_forward(const int32_t* tokens, const float* table, int64_t n, int64_t vocab,
                       int64_t d, float* out, cudaStream_t stream) {
  if (n == 0) return;
  const auto blocks = static_cast<unsigned>((n + kWarpsPerBlock - 1) / kWarpsPerBlock);
  embedding_forward_kernel<<<blocks, kThreads, 0, stream>>>(tokens, table, n, vocab, d, out);
  AIRMOE_CUDA_LAUNCHED();
}

void embedding_backward(const int32_t* tokens, const float* d_out, int64_t n, int64_t vocab,
                        int64_t d, float* d_table, EmbeddingWorkspace& workspace,
                        cudaStream_t stream) {
  if (n == 0) return;
  auto& w = workspace;
  for (auto* buffer : {&w.key, &w.sorted_key, &w.index, &w.sorted_index}) buffer->ensure(n);
  const int64_t chunks = (n + kRows - 1) / kRows;
  w.partial.ensure(chunks * 2 * d);
  const auto rows = static_cast<int32_t>(vocab);
  make_keys_kernel<<<static_cast<unsigned>((n + kThreads - 1) / kThreads), kThreads, 0, stream>>>(
      tokens, n, rows, w.key.data(), w.index.data());
  AIRMOE_CUDA_LAUNCHED();

  const int bits = std::bit_width(static_cast<uint32_t>(rows));
  const auto sort = [&](void* memory, std::size_t& bytes) {
    AIRMOE_CUDA(cub::DeviceRadixSort::SortPairs(memory, bytes, w.key.data(), w.sorted_key.data(),
                                                w.index.data(), w.sorted_index.data(),
                                                static_cast<int>(n), 0, bits, stream));
  };
  std::size_t bytes = 0;
  sort(nullptr, bytes);
  w.sort.ensure(static_cast<int64_t>(bytes));
  sort(w.sort.data(), bytes);

  const int threads = static_cast<int>(std::clamp<int64_t>((d / 4 + 31) / 32 * 32, 32, kThreads));
  add_runs_kernel<<<static_cast<unsigned>(chunks), threads, 0, stream>>>(
      w.sorted_key.data(), w.sorted_index.data(), d_out, n, rows, d, d_table, w.partial.data());
  AIRMOE_CUDA_LAUNCHED();
  add_cut_runs_kernel<<<static_cast<unsigned>(chunks), threads, 0, stream>>>(
      w.sorted_key.data(), w.partial.data(), n, rows, d, d_table);
  AIRMOE_CUDA_LAUNCHED();
}

}  // namespace airmoe::scheduler::cuda
