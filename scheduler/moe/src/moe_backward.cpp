// Backward of the MoE layer. The home rank sends dY and the scalar sum of gate * d_gate, which
// equals <dY, Y> plus the balance loss's share; so the softmax needs no further exchange (design).
// Chunks as in the forward: while one is differentiated, the gradients of the next and the results
// of those before are under way.

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
  post_gradients(d_out);
  d_gate_.ensure(pair_offset_[plan_.tokens()]);
  d_score_.ensure(pair_offset_[plan_.tokens()]);
  for (int64_t c = 0; c < plan_.chunks(); ++c) {
    unpack_gradients(c);
    differentiate(c);
    post_return(c, dim_, home_selects(), partial_, kTagBackwardCombine);
  }
  for (const int32_t row : usage_.touched()) residency_.touch(row);

  total_.fill(0.0);
  home_d_gate_.ensure(home_selects() ? home_tokens_ * config_.active : 0);
  {
    const PhaseClock::Scope time(clock_, Phase::backward_combine);
    const comm::ScopedPhase phase(comm_, "backward_combine");
    for (int64_t c = 0; c < plan_.chunks(); ++c) finish_return(c, dim_, home_selects(), total_);
  }
  if (home_selects()) backward_at_home(d_out);
  for (int64_t t = 0; t < d_hidden.rows; ++t) {
    const double* total = total_.data() + t * dim_;
    for (int64_t k = 0; k < dim_; ++k) d_hidden(t, k) = static_cast<float>(total[k]);
  }
}

// Only ranks that computed something for the token hear of it again: the rows of combine, reversed.
void MoeLayer::post_gradients(ConstMatrix d_out) {
  const PhaseClock::Scope time(clock_, Phase::backward_dispatch);
  const comm::ScopedPhase phase(comm_, "backward_dispatch");
  const int64_t width = dim_ + 1;
  for (int64_t t = 0; t < home_tokens_; ++t) {
    double dot = 0.0;
    const float* y = output_.data() + t * dim_;
    for (int64_t k = 0; k < dim_; ++k) dot += static_cast<double>(d_out(t, k)) * y[k];
    balance_dot_[t] += static_cast<float>(dot);
  }
  for (int64_t c = 0; c < plan_.chunks(); ++c) {
    Chunk& chunk = chunks_[c];
    int64_t sent = 0;
    for (int r = 0; r < ranks_; ++r) {
      const StreamRange range = plan_.home_range(r, c);
      for (int64_t i = range.token_begin; i < range.token_end; ++i) sent += taken_[i] > 0;
    }
    int64_t received = 0;
    const GroupRange groups = plan_.group_range(c);
    for (int64_t t = groups.token_begin; t < groups.token_end; ++t) {
      received += pair_offset_[t + 1] > pair_offset_[t];
    }
    chunk.row_out.ensure(sent * width);
    chunk.row_in.ensure(received * width);
    float_sends_.clear();
    float_recvs_.clear();
    float* out = chunk.row_out.data();
    float* in = chunk.row_in.data();
    for (int r = 0; r < ranks_; ++r) {
      const float* begin = out;
      const StreamRange range = plan_.home_range(r, c);
      for (int64_t i = range.token_begin; i < range.token_end; ++i) {
        if (taken_[i] == 0) continue;
        const int32_t token = plan_.home_tokens()[i];
        std::copy_n(d_out.row(token), dim_, out);
        out[dim_] = balance_dot_[token];
        out += width;
      }
      float_sends_.push_back({r, {begin, static_cast<std::size_t>(out - begin)}});
      int64_t rows = 0;
      const StreamRange arriving = plan_.candidate_range(r, c);
      for (int64_t s = arriving.segment_begin; s < arriving.segment_end; ++s) {
        const CandidateSegment& segment = plan_.candidate_segments()[s];
        for (int64_t t = segment.token_begin; t < segment.token_begin + segment.count; ++t) {
          rows += pair_offset_[t + 1] > pair_offset_[t];
        }
      }
      float_recvs_.push_back({r, {in, static_cast<std::size_t>(rows * width)}});
      in += rows * width;
    }
    chunk.rows.start(exchange_clock_,
                     comm_.exchange<float>(float_sends_, float_recvs_, kTagBackwardDispatch));
  }
}

void MoeLayer::unpack_gradients(int64_t c) {
  const PhaseClock::Scope time(clock_, Phase::backward_dispatch);
  const comm::ScopedPhase phase(comm_, "backward_dispatch");
  chunks_[c].rows.wait();
  d_y_.ensure(plan_.tokens() * dim_);
  dot_.ensure(plan_.tokens());
  quantum_.ensure(plan_.tokens());
  const float* in = chunks_[c].row_in.data();
  for (int r = 0; r < ranks_; ++r) {
    const StreamRange range = plan_.candidate_range(r, c);
    for (int64_t s = range.segment_begin; s < range.segment_end; ++s) {
      const CandidateSegment& segment = plan_.candidate_segments()[s];
      for (int64_t t = segment.token_begin; t < segment.token_begin + segment.count; ++t) {
        float* d_y = d_y_.data() + t * dim_;
        if (pair_offset_[t] == pair_offset_[t + 1]) {
          std::fill_n(d_y, dim_, 0.0f);
          dot_[t] = 0.0f;
          quantum_[t] = 1.0;
          continue;
        }
        std::copy_n(in, dim_, d_y);
        dot_[t] = in[dim_];
        quantum_[t] = quantum_below(d_y, dim_, kGradientExponent);
        in += dim_ + 1;
      }
    }
  }
}

void MoeLayer::differentiate(int64_t c) {
  const PhaseClock::Scope time(clock_, Phase::backward_compute);
  const Chunk& chunk = chunks_[c];
  const GroupRange range = plan_.group_range(c);
  const experts::ExpertTable experts_here = table();
  const experts::ExpertGradients expert_gradients = gradients();
  const MatrixView<double> d_unit = unit_gradients();
  const float slope = balance_slope(config_, batch_);
  // The gate of a single expert is 1 whatever its score. Without this, the rounding of d_gate - dot
  // would be the whole gradient of the centroids, and Adam would take steps of full size along it.
  const bool scores_here = config_.active > 1 && !home_selects();
  const float* saved = chunk.saved.data() - chunk.pair_begin * experts_here.saved_per_pair();
  const ConstMatrix unit(unit_.data(), residency_.rows(), dim_);
  std::fill_n(partial_.data() + range.token_begin * dim_,
              (range.token_end - range.token_begin) * dim_, 0.0);
  const auto add_balance = [&](int64_t begin, int64_t end) {
    if (slope == 0.0f) return;
    for (int64_t p = begin; p < end; ++p) {
      d_gate_[p] += slope * static_cast<float>(usage_.count(pair_expert_[p]));
    }
  };

  if (path_taken_ == experts::Path::grouped) {
    const int64_t first = range.token_begin;
    const int64_t tokens = range.token_end - first;
    const double* quantum = quantum_.data() + first;
    const ConstMatrix hidden(hidden_.data() + first * dim_, tokens, dim_);
    const MatrixView<double> d_hidden(partial_.data() + first * dim_, tokens, dim_);
    const SelectionView by_expert{tokens, pair_offset_.data() + first, pair_expert_.data(),
                                  gate_.data()};
    experts::backward_grouped(experts_here, chunk.grouping, hidden, by_expert, saved,
                              {d_y_.data() + first * dim_, tokens, dim_}, d_gate_.data(), quantum,
                              d_hidden, expert_gradients, grouped_);
    add_balance(chunk.pair_begin, chunk.pair_end);
    if (!scores_here) return;
    router::softmax_backward(by_expert, d_gate_.data(), dot_.data() + first, d_score_.data());
    router::score_backward(unit, nullptr, hidden, by_expert, chunk.grouping, d_score_.data(),
                           quantum, d_hidden, expert_quantum_, d_unit, score_backward_);
    poll();
    return;
  }
  block_hidden_.ensure(kBlockTokens * dim_);
  block_d_y_.ensure(kBlockTokens * dim_);
  block_sum_.ensure(kBlockTokens * dim_);
  block_dot_.ensure(kBlockTokens);
  block_quantum_.ensure(kBlockTokens);
  const double* quantum = block_quantum_.data();
  for (int64_t i = range.group_begin; i < range.group_end; ++i) {
    const TokenGroup& group = plan_.groups()[i];
    const std::span<const int32_t> rows = routes_.resident(group.part);
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
      block_grouping_.build(pairs_here, std::ssize(rows));
      experts::backward_dense(experts_here, block, block_grouping_, saved, d_y, d_gate_.data(),
                              quantum, d_hidden, expert_gradients, dense_);
      add_balance(block_offset_[0], block_offset_[count]);
      if (scores_here) {
        router::softmax_backward(pairs_here, d_gate_.data(), block_dot_.data(), d_score_.data());
        router::score_backward(unit, rows.data(), hidden, pairs_here, block_grouping_,
                               d_score_.data(), quantum, d_hidden, expert_quantum_, d_unit,
                               score_backward_);
      }
      for (int64_t t = 0; t < count; ++t) {
        std::copy_n(d_hidden.row(t), dim_, partial_.data() + block_token_[t] * dim_);
      }
    });
    poll();
  }
}

}  // namespace airmoe::scheduler
