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

// Row `place` of `from` becomes row token[place] of `to`, a warp per row.
constexpr int kWarp = 32;
template <class Word>
__global__ void scatter_rows(const Word* __restrict__ from, const int32_t* __restrict__ token,
                             int64_t n, int64_t words, Word* __restrict__ to) {
  const int64_t place = thread_index() / kWarp;
  if (place >= n) return;
  from += place * words;
  to += token[place] * words;
  for (int64_t w = threadIdx.x % kWarp; w < words; w += kWarp) to[w] = from[w];
}

template <class Word>
void scatter(const void* from, const int32_t* token, int64_t n, int64_t row_bytes, void* to,
             cudaStream_t stream) {
  scatter_rows<<<blocks_for(n * kWarp), kThreads, 0, stream>>>(
      static_cast<const Word*>(from), token, n, row_bytes / static_cast<int64_t>(sizeof(Word)),
      static_cast<Word*>(to));
  AIRMOE_CUDA_LAUNCHED();
}

}  // namespace

std::span<const int32_t> CodewordBalance::owners(std::span<const float> tokens, int ranks) {
  order_.resize(tokens.size());
  owner_.resize(tokens.size());
  std::iota(order_.begin(), order_.end(), 0);
  std::sort(order_.begin(), order_.end(), [&](int32_t a, int32_t b) {
    return tokens[a] != tokens[b] ? tokens[a] > tokens[b] : a < b;
  });
  load_.assign(static_cast<std::size_t>(ranks), 0.0);
  for (const int32_t g : order_) {
    const auto least = std::min_element(load_.begin(), load_.end()) - load_.begin();
    owner_[g] = static_cast<int32_t>(least);
    load_[least] += std::max(1e-3, static_cast<double>(tokens[g]));
  }
  return owner_;
}

TokenExchange::TokenExchange(comm::cuda::DeviceCommunicator& comm, int64_t codewords)
    : comm_(comm), codewords_(codewords) {
  key_.ensure(codewords);
  begin_.ensure(codewords + 1);
  host_key_.ensure(codewords);
}

void TokenExchange::set_owners(std::span<const int32_t> owner, cudaStream_t stream) {
  AIRMOE_CHECK(std::ssize(owner) == codewords_, "owners of {} codewords for {}", owner.size(),
               codewords_);
  first_key_.assign(static_cast<std::size_t>(comm_.size()) + 1, 0);
  for (const int32_t r : owner) ++first_key_[r + 1];
  std::partial_sum(first_key_.begin(), first_key_.end(), first_key_.begin());
  next_key_.assign(first_key_.begin(), first_key_.end() - 1);
  for (int64_t g = 0; g < codewords_; ++g) {
    host_key_[g] = static_cast<int32_t>(next_key_[owner[g]]++);
  }
  key_.upload({host_key_.data(), owner.size()}, stream);
}

void TokenExchange::begin(const int32_t* codeword, int64_t n, int64_t first_token,
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
  sorted_.record(stream);
}

void TokenExchange::plan(cudaStream_t stream) {
  comm_.wait(sorted_);
  counts_.resize(static_cast<std::size_t>(comm_.size()));
  for (std::size_t r = 0; r < counts_.size(); ++r) {
    counts_[r] = begin_[first_key_[r + 1]] - begin_[first_key_[r]];
  }
  comm_.plan_rows(counts_, order_.view().token, plan_);
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
  const int64_t row_bytes = width * static_cast<int64_t>(sizeof(X));
  returned_.ensure(tokens_ * row_bytes);
  comm_.return_rows(plan_, away, width, reinterpret_cast<X*>(returned_.data()), stream);
  if (tokens_ * width == 0) return;
  const int32_t* token = order_.view().token;
  const bool wide =
      row_bytes % sizeof(uint4) == 0 && reinterpret_cast<uintptr_t>(home) % sizeof(uint4) == 0;
  if (wide) {
    scatter<uint4>(returned_.data(), token, tokens_, row_bytes, home, stream);
  } else {
    scatter<X>(returned_.data(), token, tokens_, row_bytes, home, stream);
  }
}
template void TokenExchange::give_back<float>(const float*, int64_t, float*, cudaStream_t);
template void TokenExchange::give_back<uint16_t>(const uint16_t*, int64_t, uint16_t*, cudaStream_t);

}  // namespace airmoe::scheduler::cuda
