#include <algorithm>
#include <array>
#include <bit>
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

__global__ void count_codewords(const int32_t* __restrict__ begin, int64_t codewords,
                                int32_t* __restrict__ counts) {
  const int64_t g = thread_index();
  if (g < codewords) counts[g] = begin[g + 1] - begin[g];
}

// From the order by codeword to the order by rank, then codeword.
__global__ void place_tokens(const int32_t* __restrict__ token, const int32_t* __restrict__ begin,
                             const int32_t* __restrict__ codeword,
                             const int32_t* __restrict__ start, int64_t n, int64_t first_token,
                             int32_t* __restrict__ rows, int2* __restrict__ tag) {
  const int64_t place = thread_index();
  if (place >= n) return;
  const int32_t t = token[place], g = codeword[t];
  rows[start[g] + (place - begin[g])] = t;
  tag[t] = make_int2(g, static_cast<int32_t>(first_token + t));
}

__global__ void split_tags(const int2* __restrict__ tag, int64_t n, int32_t* __restrict__ codeword,
                           int32_t* __restrict__ index) {
  const int64_t t = thread_index();
  if (t >= n) return;
  codeword[t] = tag[t].x;
  index[t] = tag[t].y;
}

constexpr int kWarp = 32;

// Rows that came back, in the order in which their tokens were sent. The rank's own ones, [begin,
// end), did not travel.
template <class Word>
struct Returned {
  const Word* rows;
  const Word* own;
  int64_t begin, end, words;
};

// Row i becomes row token[i] of `to`, a warp per row.
template <class Word>
__global__ void scatter_rows(const Returned<Word> from, const int32_t* __restrict__ token,
                             int64_t n, Word* __restrict__ to) {
  const int64_t i = thread_index() / kWarp;
  if (i >= n) return;
  const bool own = i >= from.begin && i < from.end;
  const Word* row = own ? from.own + (i - from.begin) * from.words : from.rows + i * from.words;
  to += token[i] * from.words;
  for (int64_t w = threadIdx.x % kWarp; w < from.words; w += kWarp) to[w] = row[w];
}

}  // namespace

std::span<const int32_t> CodewordBalance::owners(std::span<const int64_t> tokens, int ranks) {
  // Classes of counts: three bits below the leading one. A stable counting sort, heaviest first.
  constexpr int kClasses = 64 * 8;
  const auto class_of = [](int64_t count) {
    if (count < 8) return static_cast<int>(count);
    const int shift = std::bit_width(static_cast<uint64_t>(count)) - 4;
    return 8 * shift + static_cast<int>(count >> shift);
  };
  std::array<int32_t, kClasses + 1> place = {};
  for (const int64_t count : tokens) ++place[kClasses - 1 - class_of(count) + 1];
  std::partial_sum(place.begin(), place.end(), place.begin());
  order_.resize(tokens.size());
  for (std::size_t g = 0; g < tokens.size(); ++g) {
    order_[place[kClasses - 1 - class_of(tokens[g])]++] = static_cast<int32_t>(g);
  }
  owner_.resize(tokens.size());
  load_.assign(static_cast<std::size_t>(ranks), 0);
  for (const int32_t g : order_) {
    const auto least = std::min_element(load_.begin(), load_.end()) - load_.begin();
    owner_[g] = static_cast<int32_t>(least);
    load_[least] += tokens[g];
  }
  return owner_;
}

TokenExchange::TokenExchange(comm::cuda::DeviceCommunicator& comm, int64_t codewords)
    : comm_(comm), codewords_(codewords), total_(static_cast<std::size_t>(codewords)) {
  const auto ranks = static_cast<std::size_t>(comm_.size());
  counts_.ensure((comm_.size() + 1) * codewords);
  host_counts_.ensure(comm_.size() * codewords);
  host_start_.ensure(codewords);
  start_.ensure(codewords);
  next_.resize(ranks);
  plan_.send_counts.resize(ranks);
  plan_.recv_counts.resize(ranks);
}

void TokenExchange::begin(const int32_t* codeword, int64_t n, int64_t first_token,
                          cudaStream_t stream) {
  codeword_ = codeword;
  tokens_ = n;
  first_token_ = first_token;
  order_.build(codeword, n, codewords_, stream);
  count_codewords<<<blocks_for(codewords_), kThreads, 0, stream>>>(order_.view().begin, codewords_,
                                                                   counts_.data());
  AIRMOE_CUDA_LAUNCHED();
  int32_t* all = counts_.data() + codewords_;
  comm_.all_gather(counts_.data(), codewords_, all, stream);
  AIRMOE_CUDA(cudaMemcpyAsync(host_counts_.data(), all,
                              static_cast<std::size_t>(host_counts_.size()) * sizeof(int32_t),
                              cudaMemcpyDeviceToHost, stream));
  counted_.record(stream);
}

void TokenExchange::plan(cudaStream_t stream) {
  comm_.wait(counted_);
  const int ranks = comm_.size(), rank = comm_.rank();
  std::fill(total_.begin(), total_.end(), 0);
  for (int r = 0; r < ranks; ++r) {
    for (int64_t g = 0; g < codewords_; ++g) total_[g] += host_counts_[r * codewords_ + g];
  }
  const std::span<const int32_t> owner = balance_.owners(total_, ranks);
  for (int r = 0; r < ranks; ++r) {
    plan_.send_counts[r] = plan_.recv_counts[r] = 0;
  }
  const int32_t* own = host_counts_.data() + rank * codewords_;
  for (int64_t g = 0; g < codewords_; ++g) {
    plan_.send_counts[owner[g]] += own[g];
    if (owner[g] != rank) continue;
    for (int r = 0; r < ranks; ++r) plan_.recv_counts[r] += host_counts_[r * codewords_ + g];
  }
  std::exclusive_scan(plan_.send_counts.begin(), plan_.send_counts.end(), next_.begin(),
                      int64_t{0});
  for (int64_t g = 0; g < codewords_; ++g) {
    host_start_[g] = static_cast<int32_t>(next_[owner[g]]);
    next_[owner[g]] += own[g];
  }
  start_.upload({host_start_.data(), owner.size()}, stream);
  rows_.ensure(tokens_);
  tag_.ensure(2 * tokens_);
  if (tokens_ > 0) {
    place_tokens<<<blocks_for(tokens_), kThreads, 0, stream>>>(
        order_.view().token, order_.view().begin, codeword_, start_.data(), tokens_, first_token_,
        rows_.data(), reinterpret_cast<int2*>(tag_.data()));
    AIRMOE_CUDA_LAUNCHED();
  }
  plan_.rows = rows_.data();
  plan_.sent = tokens_;
  plan_.received = std::accumulate(plan_.recv_counts.begin(), plan_.recv_counts.end(), int64_t{0});
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
  comm_.return_rows(plan_, away, width, reinterpret_cast<X*>(returned_.data()), stream, false);
  if (tokens_ * width == 0) return;
  const auto before = [rank = comm_.rank()](const std::vector<int64_t>& counts) {
    return std::accumulate(counts.begin(), counts.begin() + rank, int64_t{0});
  };
  const int64_t own = before(plan_.send_counts);
  const X* own_rows = away + before(plan_.recv_counts) * width;
  const auto scatter = [&](auto word) {
    using Word = decltype(word);
    const Returned<Word> from{
        reinterpret_cast<const Word*>(returned_.data()), reinterpret_cast<const Word*>(own_rows),
        own, own + plan_.send_counts[comm_.rank()], row_bytes / static_cast<int64_t>(sizeof(Word))};
    scatter_rows<<<blocks_for(tokens_ * kWarp), kThreads, 0, stream>>>(
        from, rows_.data(), tokens_, reinterpret_cast<Word*>(home));
    AIRMOE_CUDA_LAUNCHED();
  };
  const auto places = reinterpret_cast<uintptr_t>(home) | reinterpret_cast<uintptr_t>(own_rows);
  if (row_bytes % sizeof(uint4) == 0 && places % sizeof(uint4) == 0) return scatter(uint4{});
  scatter(X{});
}
template void TokenExchange::give_back<float>(const float*, int64_t, float*, cudaStream_t);
template void TokenExchange::give_back<uint16_t>(const uint16_t*, int64_t, uint16_t*, cudaStream_t);

}  // namespace airmoe::scheduler::cuda
