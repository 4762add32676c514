#include <type_traits>

#include <cuda_bf16.h>

#include "comm/base/cuda/permutation.cuh"
#include "router/cuda/codebook.hpp"
#include "router/cuda/src/norm.cuh"

namespace airmoe::router::cuda {
namespace {

using airmoe::cuda::DevicePermutation;
using airmoe::cuda::kTileTokens;

constexpr int kThreads = 256;
static_assert(kThreads == 8 * kTileTokens);
// As router/src/codebook.cpp.
constexpr double kScale = static_cast<double>(int64_t{1} << 40);
constexpr int64_t kMaxTokens = int64_t{1} << 22;
constexpr double kRounder = 6755399441055744.0;

__device__ __forceinline__ bool has_direction(double norm) {
  return norm > 0.0 && isfinite(norm);
}

/// One block per tile: norms by groups of eight lanes, then columns over the tile's tokens.
template <class T>
__global__ void __launch_bounds__(kThreads)
    collect_kernel(const T* __restrict__ hidden, int d, CodewordTokens tokens,
                   unsigned long long* statistics) {
  __shared__ int64_t row[kTileTokens];
  __shared__ double scale[kTileTokens];
  if (static_cast<int>(blockIdx.x) >= *tokens.tiles) return;
  const int begin = tokens.tile_begin[blockIdx.x];
  const int count = tokens.tile_end[blockIdx.x] - begin;
  const int64_t g = tokens.tile_codeword[blockIdx.x];
  const int t = threadIdx.x / 8;
  const int64_t mine = t < count ? int64_t{tokens.token[begin + t]} * d : 0;
  const double norm = group_norm(hidden + mine, t < count ? d : 0, threadIdx.x % 8);
  if (threadIdx.x % 8 == 0) {
    row[t] = mine;
    scale[t] = has_direction(norm) ? __ddiv_rn(kScale, norm) : 0.0;
  }
  if (threadIdx.x == 0) atomicAdd(statistics + g, static_cast<unsigned long long>(count));
  __syncthreads();
  const int64_t bias = __double_as_longlong(kRounder);
  unsigned long long* sums = statistics + tokens.codewords + g * d;
  for (int k = threadIdx.x; k < d; k += kThreads) {
    int64_t sum = 0;
#pragma unroll 8
    for (int i = 0; i < count; ++i) {
      const double h = to_float(hidden[row[i] + k]);
      const int64_t fixed = __double_as_longlong(__dadd_rn(__dmul_rn(h, scale[i]), kRounder));
      if (scale[i] != 0.0) sum += fixed - bias;
    }
    atomicAdd(sums + k, static_cast<unsigned long long>(sum));
  }
}

/// to = from / |from| with the whole block; false, and nothing written, where that is not defined.
/// `from` in shared memory, complete.
template <class T>
__device__ bool normalise(const float* from, int d, float* to, T* compute) {
  const double norm = group_norm(from, d, threadIdx.x % 8);  // every group for itself
  if (!has_direction(norm)) return false;
  const double inverse = __ddiv_rn(1.0, norm);
  for (int k = threadIdx.x; k < d; k += blockDim.x) {
    const float x = scaled(from[k], inverse);
    to[k] = x;
    if (compute != nullptr) compute[k] = from_float<T>(x);
  }
  return true;
}

struct State {
  float *codewords, *counts, *sums;
};

/// One block per codeword: moving averages.
template <class T>
__global__ void __launch_bounds__(kThreads)
    advance_kernel(State state, T* compute, int codewords, int d, double decay,
                   const int64_t* statistics) {
  extern __shared__ float sum[];
  const int64_t g = blockIdx.x;
  const double fresh = 1.0 - decay;
  if (threadIdx.x == 0) {
    state.counts[g] = static_cast<float>(__dadd_rn(
        __dmul_rn(decay, state.counts[g]), __dmul_rn(fresh, static_cast<double>(statistics[g]))));
  }
  const int64_t* batch = statistics + codewords + g * d;
  for (int k = threadIdx.x; k < d; k += kThreads) {
    sum[k] = static_cast<float>(
        __dadd_rn(__dmul_rn(decay, state.sums[g * d + k]),
                  __dmul_rn(__ddiv_rn(fresh, kScale), static_cast<double>(batch[k]))));
    state.sums[g * d + k] = sum[k];
  }
  __syncthreads();
  normalise(sum, d, state.codewords + g * d, compute == nullptr ? nullptr : compute + g * d);
}

struct Batch {
  int64_t local_tokens, first_token, global_tokens;
};

/// fetched row i = global token permutation(i), zero if it is on another rank. Adding to zero turns
/// -0 into the +0 that a sum over several ranks gives.
template <class T>
__device__ void fetch_row(const T* hidden, int d, const Batch& batch,
                          const DevicePermutation& permutation, int i, float* fetched) {
  __shared__ int64_t local;
  if (threadIdx.x == 0) {
    local = static_cast<int64_t>(permutation(static_cast<uint64_t>(i % batch.global_tokens))) -
            batch.first_token;
  }
  __syncthreads();
  const bool here = local >= 0 && local < batch.local_tokens;
  for (int k = threadIdx.x; k < d; k += kThreads) {
    fetched[int64_t{i} * d + k] = here ? __fadd_rn(0.0f, to_float(hidden[local * d + k])) : 0.0f;
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    fetch_all_kernel(const T* hidden, int d, Batch batch, DevicePermutation permutation,
                     float* fetched) {
  fetch_row(hidden, d, batch, permutation, blockIdx.x, fetched);
}

/// One block per codeword; a dead one finds its place among the dead by counting those before it.
template <class T>
__global__ void __launch_bounds__(kThreads)
    fetch_dead_kernel(const T* hidden, int d, Batch batch, DevicePermutation permutation,
                      const float* counts, float threshold, int32_t* dead, int32_t* dead_count,
                      float* fetched) {
  const int g = blockIdx.x, codewords = gridDim.x;
  const bool is_dead = counts[g] < threshold;
  if (!is_dead && g + 1 < codewords) return;
  int before = 0;
  for (int begin = 0; begin < g; begin += kThreads) {
    const int i = begin + threadIdx.x;
    before += __syncthreads_count(i < g && counts[i] < threshold);
  }
  if (g + 1 == codewords && threadIdx.x == 0) {
    const int64_t all = before + is_dead;
    *dead_count = static_cast<int32_t>(all < batch.global_tokens ? all : batch.global_tokens);
  }
  if (!is_dead || before >= batch.global_tokens) return;
  if (threadIdx.x == 0) dead[before] = g;
  fetch_row(hidden, d, batch, permutation, before, fetched);
}

/// Codeword ids[i], or i, restarts from fetched row i; a row of zeros becomes the first unit
/// vector.
template <class T>
__global__ void __launch_bounds__(kThreads)
    restart_kernel(State state, T* compute, int d, const float* fetched, const int32_t* ids,
                   const int32_t* id_count, float count) {
  extern __shared__ float row[];
  if (id_count != nullptr && static_cast<int>(blockIdx.x) >= *id_count) return;
  const int64_t g = ids != nullptr ? ids[blockIdx.x] : blockIdx.x;
  for (int k = threadIdx.x; k < d; k += kThreads) row[k] = fetched[int64_t{blockIdx.x} * d + k];
  __syncthreads();
  float* codeword = state.codewords + g * d;
  T* copy = compute == nullptr ? nullptr : compute + g * d;
  if (!normalise(row, d, codeword, copy)) {
    for (int k = threadIdx.x; k < d; k += kThreads) {
      codeword[k] = k == 0 ? 1.0f : 0.0f;
      if (copy != nullptr) copy[k] = from_float<T>(codeword[k]);
    }
  }
  // Each thread reads back what it wrote.
  for (int k = threadIdx.x; k < d; k += kThreads) {
    state.sums[g * d + k] = __fmul_rn(count, codeword[k]);
  }
  if (threadIdx.x == 0) state.counts[g] = count;
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    convert_kernel(const float* from, T* to, int64_t count) {
  const int64_t i = blockIdx.x * int64_t{kThreads} + threadIdx.x;
  if (i < count) to[i] = from_float<T>(from[i]);
}

template <class T>
T* compute_copies(DeviceBuffer<T>& buffer) {
  return std::is_same_v<T, float> ? nullptr : buffer.data();
}

void check_tokens(int64_t global_tokens) {
  AIRMOE_CHECK(global_tokens <= kMaxTokens,
               "a micro-batch of {} tokens: at most {} can be summed exactly", global_tokens,
               kMaxTokens);
}

}  // namespace

template <class T>
DeviceCodebook<T>::DeviceCodebook(const CodebookConfig& config) : config_(config) {
  const int64_t codewords = config.codewords, dim = config.dim;
  AIRMOE_CHECK(codewords >= 1, "codebook of {} codewords", codewords);
  if (dim < 8 || dim % 8 != 0 || dim > 8192) {
    fail(ExitCode::config, "--dim {}: on a device it must be a multiple of 8, at most 8192", dim);
  }
  for (DeviceBuffer<float>* rows : {&codewords_, &sums_, &fetched_}) rows->ensure(codewords * dim);
  counts_.ensure(codewords);
  if constexpr (!std::is_same_v<T, float>) compute_.ensure(codewords * dim);
  statistics_.ensure(codewords * (dim + 1));
  dead_.ensure(codewords);
  dead_count_.ensure(1);
}

template <class T>
const T* DeviceCodebook<T>::compute() const {
  if constexpr (std::is_same_v<T, float>) {
    return codewords_.data();
  } else {
    return compute_.data();
  }
}

template <class T>
void DeviceCodebook<T>::upload(Codebook& from, cudaStream_t stream) {
  const std::size_t size = static_cast<std::size_t>(codewords_.size());
  AIRMOE_CHECK(from.config().codewords == config_.codewords && from.config().dim == config_.dim,
               "upload of a codebook [{}, {}] to [{}, {}]", from.config().codewords,
               from.config().dim, config_.codewords, config_.dim);
  codewords_.upload({from.codewords().data, size}, stream);
  sums_.upload({from.sums().data, size}, stream);
  counts_.upload(from.counts(), stream);
  dead_count_.zero(stream);
  if constexpr (!std::is_same_v<T, float>) {
    const auto blocks = static_cast<unsigned>((codewords_.size() + kThreads - 1) / kThreads);
    convert_kernel<<<blocks, kThreads, 0, stream>>>(codewords_.data(), compute_.data(),
                                                    codewords_.size());
    AIRMOE_CUDA_LAUNCHED();
  }
  AIRMOE_CUDA(cudaStreamSynchronize(stream));
}

template <class T>
void DeviceCodebook<T>::download(Codebook& to, cudaStream_t stream) const {
  const std::size_t size = static_cast<std::size_t>(codewords_.size());
  AIRMOE_CHECK(to.config().codewords == config_.codewords && to.config().dim == config_.dim,
               "download of a codebook [{}, {}] to [{}, {}]", config_.codewords, config_.dim,
               to.config().codewords, to.config().dim);
  codewords_.download({to.codewords().data, size}, stream);
  sums_.download({to.sums().data, size}, stream);
  counts_.download(to.counts(), stream);
  AIRMOE_CUDA(cudaStreamSynchronize(stream));
}

template <class T>
void DeviceCodebook<T>::initialise(const T* hidden, int64_t tokens,
                                   const RandomStream& stream_of_draws, cudaStream_t stream) {
  fetch_initial(hidden, tokens, 0, tokens, stream_of_draws, stream);
  initialise_from_fetched(tokens, stream);
}

template <class T>
void DeviceCodebook<T>::fetch_initial(const T* hidden, int64_t local_tokens, int64_t first_token,
                                      int64_t global_tokens, const RandomStream& stream_of_draws,
                                      cudaStream_t stream) {
  AIRMOE_CHECK(global_tokens > 0, "a codebook cannot start from a batch without tokens");
  fetch_all_kernel<<<static_cast<unsigned>(config_.codewords), kThreads, 0, stream>>>(
      hidden, static_cast<int>(config_.dim), Batch{local_tokens, first_token, global_tokens},
      DevicePermutation(stream_of_draws, static_cast<uint64_t>(global_tokens)), fetched_.data());
  AIRMOE_CUDA_LAUNCHED();
}

template <class T>
void DeviceCodebook<T>::initialise_from_fetched(int64_t global_tokens, cudaStream_t stream) {
  const float share = static_cast<float>(global_tokens) / static_cast<float>(config_.codewords);
  const std::size_t bytes = static_cast<std::size_t>(config_.dim) * sizeof(float);
  restart_kernel<<<static_cast<unsigned>(config_.codewords), kThreads, bytes, stream>>>(
      State{codewords_.data(), counts_.data(), sums_.data()}, compute_copies(compute_),
      static_cast<int>(config_.dim), fetched_.data(), nullptr, nullptr,
      share > 1.0f ? share : 1.0f);
  AIRMOE_CUDA_LAUNCHED();
  dead_count_.zero(stream);
}

template <class T>
void DeviceCodebook<T>::update(const T* hidden, const CodewordTokens& tokens,
                               const RandomStream& stream_of_draws, cudaStream_t stream) {
  collect(hidden, tokens, stream);
  advance(tokens.tokens, stream);
  fetch(hidden, tokens.tokens, 0, tokens.tokens, stream_of_draws, stream);
  replace(stream);
}

template <class T>
void DeviceCodebook<T>::collect(const T* hidden, const CodewordTokens& tokens,
                                cudaStream_t stream) {
  check_tokens(tokens.tokens);
  statistics_.zero(stream);
  if (tokens.tokens == 0) return;
  collect_kernel<<<static_cast<unsigned>(tokens.tile_limit), kThreads, 0, stream>>>(
      hidden, static_cast<int>(config_.dim), tokens,
      reinterpret_cast<unsigned long long*>(statistics_.data()));
  AIRMOE_CUDA_LAUNCHED();
}

template <class T>
void DeviceCodebook<T>::advance(int64_t global_tokens, cudaStream_t stream) {
  check_tokens(global_tokens);
  const std::size_t bytes = static_cast<std::size_t>(config_.dim) * sizeof(float);
  advance_kernel<<<static_cast<unsigned>(config_.codewords), kThreads, bytes, stream>>>(
      State{codewords_.data(), counts_.data(), sums_.data()}, compute_copies(compute_),
      static_cast<int>(config_.codewords), static_cast<int>(config_.dim),
      static_cast<double>(config_.decay), statistics_.data());
  AIRMOE_CUDA_LAUNCHED();
}

template <class T>
void DeviceCodebook<T>::fetch(const T* hidden, int64_t local_tokens, int64_t first_token,
                              int64_t global_tokens, const RandomStream& stream_of_draws,
                              cudaStream_t stream) {
  fetch_dead_kernel<<<static_cast<unsigned>(config_.codewords), kThreads, 0, stream>>>(
      hidden, static_cast<int>(config_.dim), Batch{local_tokens, first_token, global_tokens},
      DevicePermutation(stream_of_draws, static_cast<uint64_t>(global_tokens)), counts_.data(),
      config_.dead_threshold, dead_.data(), dead_count_.data(), fetched_.data());
  AIRMOE_CUDA_LAUNCHED();
}

template <class T>
void DeviceCodebook<T>::replace(cudaStream_t stream) {
  const std::size_t bytes = static_cast<std::size_t>(config_.dim) * sizeof(float);
  restart_kernel<<<static_cast<unsigned>(config_.codewords), kThreads, bytes, stream>>>(
      State{codewords_.data(), counts_.data(), sums_.data()}, compute_copies(compute_),
      static_cast<int>(config_.dim), fetched_.data(), dead_.data(), dead_count_.data(), 1.0f);
  AIRMOE_CUDA_LAUNCHED();
}

template class DeviceCodebook<float>;
template class DeviceCodebook<__nv_bfloat16>;

}  // namespace airmoe::router::cuda
