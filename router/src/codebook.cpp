#include "router/codebook.hpp"

#include <bit>
#include <cmath>

#include "comm/base/error.hpp"
#include "router/src/norm.hpp"

namespace airmoe::router {
namespace {

constexpr double kScale = static_cast<double>(int64_t{1} << 40);
// A sum of this many unit vectors times 2^40 still fits into 63 bits.
constexpr int64_t kMaxTokens = int64_t{1} << 22;
// Adding 1.5 * 2^52 to a double below 2^51 leaves its rounded integer in the low bits: a conversion
// that every processor vectorises.
constexpr double kRounder = 6755399441055744.0;

// to = from / |from|; false, and nothing written, where that is not defined.
bool normalise(const float* from, float* to, int64_t dim) {
  const double norm = detail::norm(from, dim);
  if (!(norm > 0.0) || !std::isfinite(norm)) return false;
  const double inverse = 1.0 / norm;
  for (int64_t k = 0; k < dim; ++k) to[k] = static_cast<float>(from[k] * inverse);
  return true;
}

void first_unit_vector(float* to, int64_t dim) {
  std::fill_n(to, dim, 0.0f);
  to[0] = 1.0f;
}

}  // namespace

Codebook::Codebook(const CodebookConfig& config) : config_(config) {
  AIRMOE_CHECK(config.codewords >= 1 && config.dim >= 1, "codebook of {} codewords, {} columns",
               config.codewords, config.dim);
  codewords_ = Buffer<float>(config.codewords * config.dim, 0.0f);
  sums_ = Buffer<float>(config.codewords * config.dim, 0.0f);
  counts_ = Buffer<float>(config.codewords, 0.0f);
  for (int64_t g = 0; g < config.codewords; ++g) codewords_[g * config.dim] = 1.0f;
}

void Codebook::initialise(ConstMatrix tokens, float count) {
  AIRMOE_CHECK(tokens.rows == config_.codewords && tokens.cols == config_.dim,
               "codebook of [{}, {}] initialised from [{}, {}]", config_.codewords, config_.dim,
               tokens.rows, tokens.cols);
  counts_.fill(count);
  for (int64_t g = 0; g < config_.codewords; ++g) {
    float* codeword = codewords().row(g);
    if (!normalise(tokens.row(g), codeword, config_.dim)) first_unit_vector(codeword, config_.dim);
    float* sum = sums().row(g);
    for (int64_t k = 0; k < config_.dim; ++k) sum[k] = count * codeword[k];
  }
}

void Codebook::collect(ConstMatrix hidden, std::span<const int32_t> codeword,
                       std::span<int64_t> statistics) const {
  const int64_t dim = config_.dim;
  AIRMOE_CHECK(hidden.cols == dim && static_cast<int64_t>(codeword.size()) == hidden.rows &&
                   static_cast<int64_t>(statistics.size()) == statistics_size(),
               "codebook: tokens [{}, {}], {} codewords, statistics of {}", hidden.rows,
               hidden.cols, codeword.size(), statistics.size());
  const int64_t bias = std::bit_cast<int64_t>(kRounder);
  int64_t* counts = statistics.data();
  for (int64_t t = 0; t < hidden.rows; ++t) {
    const float* h = hidden.row(t);
    ++counts[codeword[t]];
    const double norm = detail::norm(h, dim);
    if (!(norm > 0.0) || !std::isfinite(norm)) continue;
    const double scale = kScale / norm;
    int64_t* __restrict sums = statistics.data() + config_.codewords + codeword[t] * dim;
    for (int64_t k = 0; k < dim; ++k) {
      sums[k] += std::bit_cast<int64_t>(static_cast<double>(h[k]) * scale + kRounder) - bias;
    }
  }
}

void Codebook::update(std::span<const int64_t> global_statistics, std::vector<int32_t>& dead) {
  const int64_t dim = config_.dim;
  AIRMOE_CHECK(static_cast<int64_t>(global_statistics.size()) == statistics_size(),
               "codebook: statistics of {} values, expected {}", global_statistics.size(),
               statistics_size());
  const double decay = config_.decay, fresh = 1.0 - decay;
  dead.clear();
  for (int64_t g = 0; g < config_.codewords; ++g) {
    const int64_t tokens = global_statistics[g];
    AIRMOE_CHECK(tokens >= 0 && tokens <= kMaxTokens,
                 "codeword {} has {} tokens in one micro-batch, at most {} can be summed", g,
                 tokens, kMaxTokens);
    counts_[g] = static_cast<float>(decay * counts_[g] + fresh * static_cast<double>(tokens));
    float* sum = sums().row(g);
    const int64_t* batch = global_statistics.data() + config_.codewords + g * dim;
    for (int64_t k = 0; k < dim; ++k) {
      sum[k] = static_cast<float>(decay * sum[k] + fresh / kScale * static_cast<double>(batch[k]));
    }
    normalise(sum, codewords().row(g), dim);  // a sum of zero keeps the old codeword
    if (counts_[g] < config_.dead_threshold) dead.push_back(static_cast<int32_t>(g));
  }
}

void Codebook::replace(std::span<const int32_t> dead, ConstMatrix tokens) {
  AIRMOE_CHECK(static_cast<int64_t>(dead.size()) == tokens.rows && tokens.cols == config_.dim,
               "codebook: {} codewords replaced by tokens [{}, {}]", dead.size(), tokens.rows,
               tokens.cols);
  for (int64_t i = 0; i < tokens.rows; ++i) {
    const int64_t g = dead[i];
    AIRMOE_CHECK(g >= 0 && g < config_.codewords, "codebook: no codeword {}", g);
    float* codeword = codewords().row(g);
    if (!normalise(tokens.row(i), codeword, config_.dim)) first_unit_vector(codeword, config_.dim);
    std::copy_n(codeword, config_.dim, sums().row(g));
    counts_[g] = 1.0f;
  }
}

}  // namespace airmoe::router
