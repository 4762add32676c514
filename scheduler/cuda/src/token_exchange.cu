#include <algorithm>
#include <numeric>

#include <cuda_bf16.h>

#include "scheduler/cuda/token_exchange.hpp"

namespace airmoe::scheduler::cuda {
namespace {

constexpr int kThreads = 256;

int blocks_for(int64_t threads) {
  return static_cast<int>((threads + kThreads - 1) / kThreads);
}

__device__ int64_t thread_index() {
  return blockIdx.x * static_cast<int64_t>(kThreads) + threadIdx.x;
}

__global__ void make_keys(const int32_t* __restrict__ codeword, const int32_t* __restrict__ key,
                          int64_t n, int64_t first_token, int32_t* __restrict__ keys,
                          int2* __restrict__ tag) {
  const int64_t t = thread_index();
  if (t >= n) return;
  const int32_t g = codeword[t];
  keys[t] = key[g];
  tag[t] = make_int2(g, static_cast<int32_t>(first_token + t));
}

__global__ void split_tags(const int2* __restrict__ tag, int64_t n, int32_t* __restrict__ codeword,
                           int32_t* __restrict__ index) {
  const int64_t t = thread_index();
  if (t >= n) return;
  codeword[t] = tag[t].x;
  index[t] = tag[t].y;
}

// Row `place` of `from` becomes row token[place] of `to`; words are 2 or 4 bytes.
template <class Word>
__global__ void scatter_rows(const Word* __restrict__ from, const int32_t* __restrict__ token,
                             int64_t n, int64_t width, Word* __restrict__ to) {
  const int64_t i = thread_index();
  if (i >= n * width) return;
  const int64_t place = i / width;
  to[token[place] * width + i % width] = from[i];
}

}  // namespace

std::vector<int32_t> balance_codewords(std::span<const float> tokens, int ranks) {
  std::vector<int32_t> order(tokens.size()), owner(tokens.size(), 0);
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](int32_t a, int32_t b) { return tokens[a] > tokens[b]; });
  std::vector<double> load(static_cast<std::size_t>(ranks), 0.0);
  for (const int32_t g : order) {
    const auto least = std::min_element(load.begin(), load.end()) - load.begin();
    owner[g] = static_cast<int32_t>(least);
    load[least] += std::max(1e-3, static_cast<double>(tokens[g]));
  }
  return owner;
}

TokenExchange::TokenExchange(comm::cuda::DeviceCommunicator& comm, int64_t codewords)
    : comm_(comm), codewords_(codewords) {
  key_.ensure(codewords);
  begin_.ensure(codewords + 1);
}

void TokenExchange::set_owners(std::span<const int32_t> owner, cudaStream_t stream) {
  AIRMOE_CHECK(std::ssize(owner) == codewords_, "owners of {} codewords for {}", owner.size(),
               codewords_);
  first_key_.assign(static_cast<std::size_t>(comm_.size()) + 1, 0);
  for (const int32_t r : owner) ++first_key_[r + 1];
  std::partial_sum(first_key_.begin(), first_key_.end(), first_key_.begin());
  std::vector<int64_t> next(first_key_.begin(), first_key_.end() - 1);
  std::vector<int32_t> key(owner.size());
  for (std::size_t g = 0; g < owner.size(); ++g) {
    key[g] = static_cast<int32_t>(next[owner[g]]++);
  }
  key_.upload(key, stream);
  AIRMOE_CUDA(cudaStreamSynchronize(stream));
}

void TokenExchange::plan(const int32_t* codeword, int64_t n, int64_t first_token,
                         cudaStream_t stream) {
  tokens_ = n;
  keys_.ensure(n);
  tag_.ensure(2 * n);
  if (n > 0) {
    make_keys<<<blocks_for(n), kThreads, 0, stream>>>(
        codeword, key_.data(), n, first_token, keys_.data(), reinterpret_cast<int2*>(tag_.data()));
    AIRMOE_CUDA_LAUNCHED();
  }
  order_.build(keys_.data(), n, codewords_, stream);
  AIRMOE_CUDA(cudaMemcpyAsync(begin_.data(), order_.view().begin,
                              static_cast<std::size_t>(codewords_ + 1) * sizeof(int32_t),
                              cudaMemcpyDeviceToHost, stream));
  comm_.wait(stream);
  std::vector<int64_t> counts(static_cast<std::size_t>(comm_.size()));
  for (std::size_t r = 0; r < counts.size(); ++r) {
    counts[r] = begin_[first_key_[r + 1]] - begin_[first_key_[r]];
  }
  plan_ = comm_.plan_rows(counts, order_.view().token);
  tag_in_.ensure(2 * plan_.received);
  codeword_in_.ensure(plan_.received);
  index_in_.ensure(plan_.received);
  comm_.exchange_rows(plan_, tag_.data(), 2, tag_in_.data(), stream);
  if (plan_.received == 0) return;
  split_tags<<<blocks_for(plan_.received), kThreads, 0, stream>>>(
      reinterpret_cast<const int2*>(tag_in_.data()), plan_.received, codeword_in_.data(),
      index_in_.data());
  AIRMOE_CUDA_LAUNCHED();
}

template <class X>
void TokenExchange::give_back(const X* away, int64_t width, X* home, cudaStream_t stream) {
  returned_.ensure(tokens_ * width * static_cast<int64_t>(sizeof(X)));
  X* returned = reinterpret_cast<X*>(returned_.data());
  comm_.return_rows(plan_, away, width, returned, stream);
  if (tokens_ * width == 0) return;
  scatter_rows<<<blocks_for(tokens_ * width), kThreads, 0, stream>>>(returned, order_.view().token,
                                                                     tokens_, width, home);
  AIRMOE_CUDA_LAUNCHED();
}
template void TokenExchange::give_back<float>(const float*, int64_t, float*, cudaStream_t);
template void TokenExchange::give_back<uint16_t>(const uint16_t*, int64_t, uint16_t*, cudaStream_t);

}  // namespace airmoe::scheduler::cuda
