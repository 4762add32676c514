#pragma once
// The codebook (router/codebook.hpp) on a device: the same bits as on the host from the same fp32
// tokens and codewords of tokens.

#include <cstdint>

#include "comm/base/cuda/device_buffer.hpp"
#include "comm/base/cuda/routed.hpp"
#include "comm/base/random.hpp"
#include "router/codebook.hpp"
#include "router/cuda/device_codewords.hpp"

namespace airmoe::router::cuda {

using airmoe::cuda::CodewordTokens;
using airmoe::cuda::DeviceBuffer;

/// T: type of the tokens and of the codewords that kernels compute with, float or __nv_bfloat16.
/// The state itself is fp32. All functions but upload() and download() are asynchronous.
///
/// On one rank a micro-batch calls update(). On several, every rank calls
///   collect(); all-reduce of statistics(); advance(); fetch(); all-reduce of fetched(); replace()
/// with the tokens of all ranks as `global_tokens`, and ends with the same bits.
template <class T>
class DeviceCodebook {
 public:
  /// Local: allocates. Throws Error naming --dim unless d is a multiple of 8.
  explicit DeviceCodebook(const CodebookConfig& config);

  const CodebookConfig& config() const { return config_; }
  /// Local: the state from and to a host codebook of the same shape; waits.
  void upload(Codebook& from, cudaStream_t stream);
  void download(Codebook& to, cudaStream_t stream) const;

  /// Local: unit codewords that kernels read. Shape: [G, d], device memory.
  const T* compute() const;
  const float* codewords() const { return codewords_.data(); }
  const float* counts() const { return counts_.data(); }

  /// Local: codewords become tokens of this rank's batch as CodebookStep::initialise() draws them
  /// on one rank. Throws Error when there are none. Shape of hidden: [n, d].
  void initialise(const T* hidden, int64_t tokens, const RandomStream& stream_of_draws,
                  cudaStream_t stream);
  /// The same on several ranks: fetch_initial(), all-reduce of fetched(),
  /// initialise_from_fetched().
  void fetch_initial(const T* hidden, int64_t local_tokens, int64_t first_token,
                     int64_t global_tokens, const RandomStream& stream_of_draws,
                     cudaStream_t stream);
  void initialise_from_fetched(int64_t global_tokens, cudaStream_t stream);

  /// Local: one k-means step on one rank: statistics of the tokens, moving averages, dead codewords
  /// restarted from tokens. Shape of hidden: [tokens.tokens, d], token order.
  void update(const T* hidden, const CodewordTokens& tokens, const RandomStream& stream_of_draws,
              cudaStream_t stream);

  /// Local: statistics() = counts and fixed-point sums of these tokens.
  void collect(const T* hidden, const CodewordTokens& tokens, cudaStream_t stream);
  /// Layout [G] counts, then [G, d] sums: integers, exact in any order of additions.
  int64_t* statistics() { return statistics_.data(); }
  int64_t statistics_size() const { return statistics_.size(); }
  /// Local: moving averages from statistics(); finds dead(). At most 2^22 global tokens.
  void advance(int64_t global_tokens, cudaStream_t stream);
  /// Local: fetched() = the tokens that dead codewords restart from, rows of tokens of other ranks
  /// and unused rows zero. `first_token`: global index of token 0. Shape of hidden: [local_tokens,
  /// d].
  void fetch(const T* hidden, int64_t local_tokens, int64_t first_token, int64_t global_tokens,
             const RandomStream& stream_of_draws, cudaStream_t stream);
  float* fetched() { return fetched_.data(); }
  int64_t fetched_size() const { return fetched_.size(); }
  /// Local: dead codewords restart from fetched().
  void replace(cudaStream_t stream);

  /// The codewords restarted last, ascending: their lists must be rebuilt. At most one per token.
  DeviceCodewords dead() const { return {dead_.data(), dead_count_.data()}; }

 private:
  CodebookConfig config_;
  DeviceBuffer<float> codewords_, counts_, sums_, fetched_;
  DeviceBuffer<T> compute_;  // unused for float
  DeviceBuffer<int64_t> statistics_;
  DeviceBuffer<int32_t> dead_, dead_count_;
};

}  // namespace airmoe::router::cuda
