#include <algorithm>
#include <limits>

#include <cuda_bf16.h>

#include "scheduler/cuda/cross_entropy.hpp"
#include "scheduler/cuda/src/vector8.cuh"

namespace airmoe::scheduler::cuda {
namespace {

constexpr int64_t kStaticBytes = 1024;  // of shared memory, at most, beside a kept row
constexpr float kInfinity = std::numeric_limits<float>::infinity();

/// Largest value and sum of exp(value - largest).
struct Softmax {
  float top = -kInfinity, sum = 0.0f;
};

__device__ __forceinline__ Softmax merge(Softmax a, Softmax b) {
  const float top = fmaxf(a.top, b.top);
  if (top == -kInfinity) return a;  // nothing in either
  return {top, a.sum * __expf(a.top - top) + b.sum * __expf(b.top - top)};
}

__device__ __forceinline__ Softmax warp_merge(Softmax s) {
#pragma unroll
  for (int offset = kWarp / 2; offset > 0; offset /= 2) {
    s = merge(s, {__shfl_xor_sync(0xffffffffu, s.top, offset),
                  __shfl_xor_sync(0xffffffffu, s.sum, offset)});
  }
  return s;
}

/// kWarps warps work on one row; the result is the same on all their threads. What they read before
/// is read before any of them goes on.
template <int kWarps>
__device__ Softmax row_merge(Softmax s) {
  __syncwarp();
  s = warp_merge(s);
  if constexpr (kWarps > 1) {
    __shared__ float2 of_warp[kWarps];
    if (threadIdx.x % kWarp == 0) of_warp[threadIdx.x / kWarp] = make_float2(s.top, s.sum);
    __syncthreads();
    const int lane = threadIdx.x % kWarp;
    const float2 theirs = lane < kWarps ? of_warp[lane] : make_float2(-kInfinity, 0.0f);
    s = warp_merge({theirs.x, theirs.y});
  }
  return s;
}

constexpr float kLog2E = 1.4426950408889634f;

/// Takes eight logits of which the first `valid` exist into s.
__device__ __forceinline__ void add_octet(Softmax& s, float (&x)[8], int valid) {
  if (valid < 8) {
#pragma unroll
    for (int i = 0; i < 8; ++i) x[i] = i < valid ? x[i] : -kInfinity;
  }
  const float top = fmaxf(fmaxf(fmaxf(x[0], x[1]), fmaxf(x[2], x[3])),
                          fmaxf(fmaxf(x[4], x[5]), fmaxf(x[6], x[7])));
  if (top > s.top) {
    s.sum *= exp2f((s.top - top) * kLog2E);
    s.top = top;
  }
  if (s.top == -kInfinity) return;
  const float shift = -s.top * kLog2E;
#pragma unroll
  for (int i = 0; i < 8; ++i) s.sum += exp2f(fmaf(x[i], kLog2E, shift));
}

constexpr int block_threads(int warps_per_row) {
  return warps_per_row == 1 ? 256 : warps_per_row * kWarp;
}

// Leaves the rows' losses and, with kTrain, the gradient of the logits in their place. kWarps > 1:
// one block per row; 1: one warp per row. Between its two passes a row waits in shared memory
// (`keep`) where it fits.
template <class T, int kWarps, bool kTrain>
__global__ void __launch_bounds__(block_threads(kWarps), 1536 / block_threads(kWarps))
    softmax_loss_kernel(T* __restrict__ logits, const int32_t* __restrict__ targets, int64_t rows,
                        int vocab, int64_t ld, float loss_scale, bool keep,
                        double* __restrict__ row_loss) {
  extern __shared__ __align__(16) unsigned char shared[];
  constexpr int kThreads = kWarps * kWarp;
  const int64_t row = kWarps == 1 ? blockIdx.x * int64_t{8} + threadIdx.x / kWarp : blockIdx.x;
  if (row >= rows) return;
  const int thread = threadIdx.x % kThreads;
  T* at = logits + row * ld;
  T* kept = reinterpret_cast<T*>(shared) + (kWarps == 1 ? threadIdx.x / kWarp * ld : 0);
  const int target = targets[row];
  const bool valid = target >= 0 && target < vocab;
  const float at_target = valid ? static_cast<float>(at[target]) : 0.0f;

  Softmax mine;
#pragma unroll 4
  for (int begin = thread * 8; begin < vocab; begin += kThreads * 8) {
    float x[8];
    load8(at + begin, x);
    if (kTrain && keep) store8(kept + begin, x);
    add_octet(mine, x, vocab - begin);
  }
  const Softmax all = row_merge<kWarps>(mine);
  if (thread == 0) {
    row_loss[row] = valid ? static_cast<double>(logf(all.sum)) + static_cast<double>(all.top) -
                                static_cast<double>(at_target)
                          : static_cast<double>(nanf(""));
  }
  if constexpr (kTrain) {
    const float scale = loss_scale / all.sum;
    const float shift = -all.top * kLog2E;
    for (int begin = thread * 8; begin < vocab; begin += kThreads * 8) {
      float x[8];
      load8(keep ? kept + begin : at + begin, x);
#pragma unroll
      for (int i = 0; i < 8; ++i) x[i] = exp2f(fmaf(x[i], kLog2E, shift)) * scale;
      if (target >= begin && target < begin + 8) {
#pragma unroll
        for (int i = 0; i < 8; ++i) x[i] -= begin + i == target ? loss_scale : 0.0f;
      }
      store8(at + begin, x);
    }
  }
}

// *total += sum of x, in an order that depends on n only. One block.
__global__ void __launch_bounds__(1024)
    add_sum_kernel(const double* __restrict__ x, int64_t n, double* __restrict__ total) {
  __shared__ double of_warp[kWarp];
  double sum = 0.0;
#pragma unroll 4
  for (int64_t i = threadIdx.x; i < n; i += 1024) sum += x[i];
  sum = warp_sum(sum);
  if (threadIdx.x % kWarp == 0) of_warp[threadIdx.x / kWarp] = sum;
  __syncthreads();
  if (threadIdx.x >= kWarp) return;
  sum = warp_sum(of_warp[threadIdx.x]);
  if (threadIdx.x == 0) *total += sum;
}

template <bool kTrain, class T>
void softmax_loss(T* logits, const int32_t* targets, int64_t rows, int64_t vocab, int64_t ld,
                  float loss_scale, double* row_loss, cudaStream_t stream) {
  const auto launch = [&](auto kernel, int64_t blocks, int threads, int64_t rows_per_block) {
    const int64_t bytes = rows_per_block * ld * static_cast<int64_t>(sizeof(T));
    const bool keep =
        kTrain && bytes <= airmoe::cuda::device_properties().shared_bytes_per_block - kStaticBytes;
    if (bytes > (48 << 10) && keep) {
      AIRMOE_CUDA(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                       static_cast<int>(bytes)));
    }
    kernel<<<static_cast<unsigned>(blocks), threads, keep ? static_cast<std::size_t>(bytes) : 0,
             stream>>>(logits, targets, rows, static_cast<int>(vocab), ld, loss_scale, keep,
                       row_loss);
  };
  if (vocab <= 1024) {
    launch(softmax_loss_kernel<T, 1, kTrain>, (rows + 7) / 8, 256, 8);
  } else if (vocab <= 8192) {
    launch(softmax_loss_kernel<T, 8, kTrain>, rows, 8 * kWarp, 1);
  } else {
    launch(softmax_loss_kernel<T, 16, kTrain>, rows, 16 * kWarp, 1);
  }
  AIRMOE_CUDA_LAUNCHED();
}

/// Calls body(first row, rows, their logits, ld) for every chunk.
template <class T, class Body>
void for_each_chunk(Gemm& gemm, const CrossEntropyInput<T>& in, CrossEntropyWorkspace<T>& workspace,
                    cudaStream_t stream, Body body) {
  const int64_t ld = (in.vocab + 7) / 8 * 8;
  const int64_t fitting = workspace.logit_bytes / (ld * static_cast<int64_t>(sizeof(T)));
  const int64_t chunk = std::min(in.n, std::max<int64_t>(1, fitting));
  workspace.logits.ensure(chunk * ld);
  workspace.row_loss.ensure(in.n);
  T* logits = workspace.logits.data();
  for (int64_t begin = 0; begin < in.n; begin += chunk) {
    const int64_t rows = std::min(chunk, in.n - begin);
    linear_forward(gemm, rows, in.d, in.vocab, in.hidden + begin * in.d, in.embedding, logits, ld,
                   stream);
    body(begin, rows, logits, ld);
  }
}

void add_sum(const double* x, int64_t n, double* total, cudaStream_t stream) {
  add_sum_kernel<<<1, 1024, 0, stream>>>(x, n, total);
  AIRMOE_CUDA_LAUNCHED();
}

}  // namespace

template <class T>
void cross_entropy(Gemm& gemm, const CrossEntropyInput<T>& input, double* loss,
                   CrossEntropyWorkspace<T>& workspace, cudaStream_t stream) {
  if (input.n == 0) return;
  for_each_chunk(gemm, input, workspace, stream,
                 [&](int64_t begin, int64_t rows, T* logits, int64_t ld) {
                   softmax_loss<false>(logits, input.targets + begin, rows, input.vocab, ld, 0.0f,
                                       workspace.row_loss.data() + begin, stream);
                 });
  add_sum(workspace.row_loss.data(), input.n, loss, stream);
}

template <class T>
void cross_entropy_backward(Gemm& gemm, const CrossEntropyInput<T>& input, float loss_scale,
                            double* loss, T* d_hidden, float* d_embedding,
                            CrossEntropyWorkspace<T>& workspace, cudaStream_t stream) {
  if (input.n == 0) return;
  const int64_t d = input.d, vocab = input.vocab;
  for_each_chunk(gemm, input, workspace, stream,
                 [&](int64_t begin, int64_t rows, T* logits, int64_t ld) {
                   softmax_loss<true>(logits, input.targets + begin, rows, vocab, ld, loss_scale,
                                      workspace.row_loss.data() + begin, stream);
                   linear_backward_input(gemm, rows, d, vocab, logits, ld, input.embedding,
                                         d_hidden + begin * d, stream);
                   linear_backward_weight(gemm, rows, d, vocab, logits, ld,
                                          input.hidden + begin * d, d_embedding, stream);
                 });
  add_sum(workspace.row_loss.data(), input.n, loss, stream);
}

template void cross_entropy(Gemm&, const CrossEntropyInput<float>&, double*,
                            CrossEntropyWorkspace<float>&, cudaStream_t);
template void cross_entropy(Gemm&, const CrossEntropyInput<__nv_bfloat16>&, double*,
                            CrossEntropyWorkspace<__nv_bfloat16>&, cudaStream_t);
template void cross_entropy_backward(Gemm&, const CrossEntropyInput<float>&, float, double*, float*,
                                     float*, CrossEntropyWorkspace<float>&, cudaStream_t);
template void cross_entropy_backward(Gemm&, const CrossEntropyInput<__nv_bfloat16>&, float, double*,
                                     __nv_bfloat16*, float*, CrossEntropyWorkspace<__nv_bfloat16>&,
                                     cudaStream_t);

}  // namespace airmoe::scheduler::cuda
