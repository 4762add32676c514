// Backward of the MoE layer. The home rank sends dY and the scalar sum of gate * d_gate, which
// equals <dY, Y> plus the balance loss's share; so the softmax needs no further exchange (design).

#include <algorithm>
#include <cstring>

#include "comm/base/error.hpp"
#include "comm/base/exact_sum.hpp"
#include "scheduler/moe/moe_layer.hpp"
#include "scheduler/moe/src/active_blocks.hpp"
#include "scheduler/moe/src/message_tags.hpp"

namespace airmoe::scheduler {

void MoeLayer::backward(ConstMatrix d_out, Matrix d_hidden) {
  AIRMOE_ASSERT(batch_.training && d_out.rows == home_tokens_);
  dispatch_gradients(d_out);
  differentiate();
  return_gradients(d_hidden);
}

void MoeLayer::dispatch_gradients(ConstMatrix d_out) {
  const PhaseClock::Scope time(clock_, Phase::backward_dispatch);
  const comm::ScopedPhase phase(comm_, "backward_dispatch");
  const int64_t width = dim_ + 1;
  balance_dot_.ensure(home_tokens_);
  for (int64_t t = 0; t < home_tokens_; ++t) {
    double dot = 0.0;
    const float* y = output_.data() + t * dim_;
    for (int64_t k = 0; k < dim_; ++k) dot += static_cast<double>(d_out(t, k)) * y[k];
    balance_dot_[t] += static_cast<float>(dot);
  }
  // Only ranks that computed something for the token hear of it again: the rows of combine,
  // reversed.
  int64_t rows = 0;
  home_rows_.assign(ranks_, 0);
  candidate_rows_.assign(ranks_, 0);
  for (int r = 0; r < ranks_; ++r) {
    for (int64_t i = plan_.home_stream_begin(r); i < plan_.home_stream_begin(r + 1); ++i) {
      home_rows_[r] += taken_[i] > 0;
    }
    rows += home_rows_[r];
    for (int64_t s = plan_.candidate_segments_begin(r); s < plan_.candidate_segments_begin(r + 1);
         ++s) {
      const CandidateSegment& segment = plan_.candidate_segments()[s];
      for (int64_t t = segment.token_begin; t < segment.token_begin + segment.count; ++t) {
        candidate_rows_[r] += pair_offset_[t + 1] > pair_offset_[t];
      }
    }
  }
  row_out_.ensure(rows * width);
  float* out = row_out_.data();
  for (const HomeSegment& segment : plan_.home_segments()) {
    for (int64_t j = 0; j < segment.count; ++j) {
      if (taken_[segment.stream_begin + j] == 0) continue;
      const int64_t token = order_.token[segment.order_begin + j];
      std::copy_n(d_out.row(token), dim_, out);
      out[dim_] = balance_dot_[token];
      out += width;
    }
  }
  rows = 0;
  for (int r = 0; r < ranks_; ++r) rows += candidate_rows_[r];
  row_in_.ensure(rows * width);
  exchange_rows(row_out_.data(), home_rows_, row_in_.data(), candidate_rows_, width,
                kTagBackwardDispatch);

  d_y_.ensure(plan_.tokens() * dim_);
  dot_.ensure(plan_.tokens());
  const float* in = row_in_.data();
  for (const CandidateSegment& segment : plan_.candidate_segments()) {
    for (int64_t t = segment.token_begin; t < segment.token_begin + segment.count; ++t) {
      if (pair_offset_[t] == pair_offset_[t + 1]) {
        std::fill_n(d_y_.data() + t * dim_, dim_, 0.0f);
        dot_[t] = 0.0f;
        continue;
      }
      std::copy_n(in, dim_, d_y_.data() + t * dim_);
      dot_[t] = in[dim_];
      in += width;
    }
  }
}

void MoeLayer::differentiate() {
  const PhaseClock::Scope time(clock_, Phase::backward_compute);
  const int64_t tokens = plan_.tokens();
  const int64_t pairs = pair_offset_[tokens];
  const experts::ExpertTable experts_here = table();
  const experts::ExpertGradients expert_gradients = gradients();
  const MatrixView<double> d_unit = centroid_->gradient_sums();
  const float slope = balance_slope();
  // The gate of a single expert is 1 whatever its score. Without this, the rounding of d_gate - dot
  // would be the whole gradient of the centroids, and Adam would take steps of full size along it.
  const bool scores_matter = config_.active > 1;
  d_gate_.ensure(pairs);
  d_score_.ensure(pairs);
  partial_.ensure(tokens * dim_);
  partial_.fill(0.0);
  const auto add_balance = [&](int64_t begin, int64_t end) {
    if (slope == 0.0f) return;
    for (int64_t p = begin; p < end; ++p) {
      d_gate_[p] += slope * static_cast<float>(usage_.count(pair_expert_[p]));
    }
  };

  quantum_.ensure(tokens);
  for (int64_t t = 0; t < tokens; ++t) {
    quantum_[t] = quantum_below(d_y_.data() + t * dim_, dim_, kGradientExponent);
  }

  if (path_taken_ == experts::Path::grouped) {
    const double* quantum = quantum_.data();
    const ConstMatrix hidden(hidden_.data(), tokens, dim_);
    const MatrixView<double> d_hidden(partial_.data(), tokens, dim_);
    const SelectionView by_expert{tokens, pair_offset_.data(), pair_expert_.data(), gate_.data()};
    experts::backward_grouped(experts_here, grouping_, hidden, by_expert, saved_.data(),
                              {d_y_.data(), tokens, dim_}, d_gate_.data(), quantum, d_hidden,
                              expert_gradients, grouped_);
    if (!scores_matter) return;
    add_balance(0, pairs);
    router::softmax_backward(by_expert, d_gate_.data(), dot_.data(), d_score_.data());
    router::score_backward(unit_centroids(), nullptr, hidden, by_expert, grouping_, d_score_.data(),
                           quantum, d_hidden, expert_gradients.quantum, d_unit, score_backward_);
    return;
  }
  block_hidden_.ensure(kBlockTokens * dim_);
  block_d_y_.ensure(kBlockTokens * dim_);
  block_sum_.ensure(kBlockTokens * dim_);
  block_dot_.ensure(kBlockTokens);
  block_quantum_.ensure(kBlockTokens);
  const double* quantum = block_quantum_.data();
  for (const TokenGroup& group : plan_.groups()) {
    const std::span<const int32_t> rows = shortlists_.resident(group.codeword);
    for_each_active_block(group, [&](int64_t count) {
      for (int64_t t = 0; t < count; ++t) {
        const int64_t token = block_token_[t];
        std::copy_n(hidden_.data() + token * dim_, dim_, block_hidden_.data() + t * dim_);
        std::copy_n(d_y_.data() + token * dim_, dim_, block_d_y_.data() + t * dim_);
        block_dot_[t] = dot_[token];
        block_quantum_[t] = quantum_[token];
      }
      const ConstMatrix hidden(block_hidden_.data(), count, dim_);
      const ConstMatrix d_y(block_d_y_.data(), count, dim_);
      const MatrixView<double> d_hidden(block_sum_.data(), count, dim_);
      std::fill_n(block_sum_.data(), count * dim_, 0.0);
      const SelectionView pairs_here{count, block_offset_.data(), position_.data(), gate_.data()};
      const experts::DenseBlock block{hidden, rows.data(), std::ssize(rows), pairs_here};
      grouping_.build(pairs_here, block.count);
      experts::backward_dense(experts_here, block, grouping_, saved_.data(), d_y, d_gate_.data(),
                              quantum, d_hidden, expert_gradients, dense_);
      if (scores_matter) {
        add_balance(block_offset_[0], block_offset_[count]);
        router::softmax_backward(pairs_here, d_gate_.data(), block_dot_.data(), d_score_.data());
        router::score_backward(unit_centroids(), rows.data(), hidden, pairs_here, grouping_,
                               d_score_.data(), quantum, d_hidden, expert_gradients.quantum, d_unit,
                               score_backward_);
      }
      for (int64_t t = 0; t < count; ++t) {
        std::copy_n(d_hidden.row(t), dim_, partial_.data() + block_token_[t] * dim_);
      }
    });
  }
}

void MoeLayer::return_gradients(Matrix d_hidden) {
  const PhaseClock::Scope time(clock_, Phase::backward_combine);
  const comm::ScopedPhase phase(comm_, "backward_combine");
  return_rows(partial_, dim_, kTagBackwardCombine);
  for (int64_t t = 0; t < d_hidden.rows; ++t) {
    const double* total = total_.data() + t * dim_;
    for (int64_t k = 0; k < dim_; ++k) d_hidden(t, k) = static_cast<float>(total[k]);
  }
}

}  // namespace airmoe::scheduler
