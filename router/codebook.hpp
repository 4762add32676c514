#pragma once
// The codebook: adaptive spherical k-means with exponential moving averages (paper, "Codebook"). It
// is replicated; every rank applies the same global statistics and holds the same bits.

#include <cstdint>
#include <span>
#include <vector>

#include "comm/base/buffer.hpp"
#include "comm/base/matrix_view.hpp"

namespace airmoe::router {

struct CodebookConfig {
  int64_t codewords = 0;        ///< G
  int64_t dim = 0;              ///< d
  float decay = 0.95f;          ///< gamma
  float dead_threshold = 1.0f;  ///< tau
};

class Codebook {
 public:
  explicit Codebook(const CodebookConfig& config);

  const CodebookConfig& config() const { return config_; }
  /// State arrays, also for checkpoints: unit codewords [G, d], counts [G], sums [G, d].
  Matrix codewords() { return {codewords_.data(), config_.codewords, config_.dim}; }
  ConstMatrix codewords() const { return {codewords_.data(), config_.codewords, config_.dim}; }
  std::span<float> counts() { return counts_.span(); }
  Matrix sums() { return {sums_.data(), config_.codewords, config_.dim}; }

  /// Codewords from tokens (any scale; a zero row becomes the first unit vector). counts = `count`,
  /// sums = count * codeword.
  void initialise(ConstMatrix tokens, float count);

  /// Elements of a statistics array: one count and d fixed-point sums per codeword.
  int64_t statistics_size() const { return config_.codewords * (config_.dim + 1); }
  /// Adds counts and sums of h / |h| of local tokens, as integers (sums scaled by 2^40), so that
  /// adding the arrays of all ranks is exact in any order (up to 2^22 tokens per codeword and
  /// micro-batch over all ranks; update() checks). Rows with |h| = 0 or not finite add to
  /// counts only. statistics layout: [G] counts, then [G, d] sums. Local.
  void collect(ConstMatrix hidden, std::span<const int32_t> codeword,
               std::span<int64_t> statistics) const;
  /// n <- gamma n + (1 - gamma) n_b, m likewise, c <- m / |m|, with the statistics summed over all
  /// ranks. dead receives the codewords with n < tau, ascending (they are updated too, until
  /// replace()). A codeword whose sum is zero keeps its direction. Local; same bits on all ranks.
  void update(std::span<const int64_t> global_statistics, std::vector<int32_t>& dead);
  /// Codeword dead[i] restarts from row i of tokens (any scale; a zero row becomes the first unit
  /// vector): m <- h / |h|, n <- 1, c <- m. Shape of tokens: [dead.size(), d]. Local.
  void replace(std::span<const int32_t> dead, ConstMatrix tokens);

 private:
  CodebookConfig config_;
  Buffer<float> codewords_, counts_, sums_;
};

}  // namespace airmoe::router
