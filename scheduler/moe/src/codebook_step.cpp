#include "scheduler/moe/codebook_step.hpp"

#include <algorithm>

#include "comm/base/error.hpp"

namespace airmoe::scheduler {

ConstMatrix CodebookStep::fetch_tokens(ConstMatrix hidden, const TokenRange& range,
                                       const RandomStream& stream, int64_t count) {
  const RandomPermutation permutation(stream, static_cast<uint64_t>(range.global_tokens));
  const int64_t dim = hidden.cols;
  fetched_.ensure(count * dim);
  fetched_.fill(0.0f);
  for (int64_t i = 0; i < count; ++i) {
    const auto token =
        static_cast<int64_t>(permutation(static_cast<uint64_t>(i % range.global_tokens)));
    const int64_t local = token - range.first;
    if (local >= 0 && local < hidden.rows) {
      // Adding to zero turns -0 into the +0 that a sum over several ranks gives.
      for (int64_t k = 0; k < dim; ++k) fetched_[i * dim + k] += hidden(local, k);
    }
  }
  comm_.all_reduce(fetched_.span(), comm::Reduction::sum);  // one rank adds to a row: exact
  return {fetched_.data(), count, dim};
}

void CodebookStep::initialise(router::Codebook& codebook, ConstMatrix hidden,
                              const TokenRange& range, const RandomStream& stream) {
  AIRMOE_CHECK(range.global_tokens > 0, "a codebook cannot start from a batch without tokens");
  const int64_t codewords = codebook.config().codewords;
  const float share = static_cast<float>(range.global_tokens) / static_cast<float>(codewords);
  codebook.initialise(fetch_tokens(hidden, range, stream, codewords), std::max(1.0f, share));
}

std::span<const int32_t> CodebookStep::update(router::Codebook& codebook, ConstMatrix hidden,
                                              const TokenRange& range, const RandomStream& stream,
                                              router::AssignWorkspace& workspace) {
  codeword_.ensure(hidden.rows);
  router::assign_codewords(hidden, codebook.codewords(), codeword_.span(), workspace);
  statistics_.ensure(codebook.statistics_size());
  statistics_.fill(0);
  codebook.collect(hidden, codeword_.span(), statistics_.span());
  comm_.all_reduce(statistics_.span(), comm::Reduction::sum);
  codebook.update(statistics_.span(), dead_);
  if (std::ssize(dead_) > range.global_tokens) dead_.resize(range.global_tokens);
  if (!dead_.empty()) {
    codebook.replace(dead_, fetch_tokens(hidden, range, stream, std::ssize(dead_)));
  }
  return dead_;
}

}  // namespace airmoe::scheduler
