// Strategy selected: unit centroids are on every rank, so the home rank scores and selects, and
// tokens go to the owners of selected experts only, with (place in the owner's candidates, gate) of
// each pair. Owners return d_gate of each pair in the backward; the home rank goes on from there.

#include <algorithm>
#include <cmath>
#include <cstring>

#include "comm/base/exact_sum.hpp"
#include "scheduler/moe/moe_layer.hpp"
#include "scheduler/moe/src/message_tags.hpp"

namespace airmoe::scheduler {

// Rows of all_unit_ of the codeword's candidates, the owner of each and its place among the owner's
// candidates.
void MoeLayer::look_up_list(int32_t codeword) {
  const std::span<const int32_t> ids = routes_.list(codeword);
  list_row_.resize(ids.size());
  list_owner_.resize(ids.size());
  list_slot_.resize(ids.size());
  owner_count_.assign(static_cast<std::size_t>(ranks_), 0);
  for (std::size_t j = 0; j < ids.size(); ++j) {
    list_row_[j] = centroids_->row(ids[j]);
    list_owner_[j] = residency_.home(ids[j]);
    list_slot_[j] = owner_count_[list_owner_[j]]++;
  }
}

void MoeLayer::select_at_home(ConstMatrix hidden) {
  const int64_t active = config_.active;
  const int64_t pairs = home_tokens_ * active;
  home_position_.ensure(pairs);
  home_gate_.ensure(pairs);
  home_slot_.ensure(pairs);
  home_lse_.ensure(home_tokens_);
  block_hidden_.ensure(kBlockTokens * dim_);
  token_index_.ensure(kBlockTokens);
  to_.resize(ranks_);
  pairs_to_.resize(ranks_);
  for (int r = 0; r < ranks_; ++r) {
    to_[r].clear();
    pairs_to_[r].clear();
  }
  const RandomStream noise(seed_, Purpose::jitter_score, batch_.step, batch_.index,
                           static_cast<uint32_t>(layer_));
  for (const PresentPart& part : plan_.present()) {
    const int32_t codeword = routes_.codeword(part.part);
    look_up_list(codeword);
    const std::span<const int32_t> ids = routes_.list(codeword);
    const int64_t candidates = std::ssize(ids);
    const ConstPanel panel{all_unit_.data(), list_row_.data(), candidates, dim_, dim_};
    tile_.ensure(candidates * tile_ld(kBlockTokens));
    for (int64_t begin = 0; begin < part.count; begin += kBlockTokens) {
      const int64_t count = std::min(kBlockTokens, part.count - begin);
      const int64_t first = part.begin + begin;
      {
        const PhaseClock::Scope time(clock_, Phase::score);
        for (int64_t t = 0; t < count; ++t) {
          const int32_t token = plan_.home_order()[first + t];
          std::copy_n(hidden.row(token), dim_, block_hidden_.data() + t * dim_);
          token_index_[t] = static_cast<int32_t>(batch_.range.first + token);
        }
        panel_scores(panel, {block_hidden_.data(), count, dim_}, tile_.data(), panel_);
        for (int64_t j = 0; jittered() && j < candidates; ++j) {
          add_jitter(tile_.data() + j * tile_ld(count), token_index_.data(), count, config_.jitter,
                     noise, static_cast<uint32_t>(ids[j]), static_cast<uint32_t>(codeword));
        }
      }
      const PhaseClock::Scope time(clock_, Phase::select);
      const int64_t at = first * active;
      router::select_top_k(tile_.data(), candidates, count, active, home_position_.data() + at,
                           home_gate_.data() + at);
      for (int64_t t = 0; t < count; ++t) select_token(first + t);
    }
  }
}

// Gates of one token, by place in home order, and its pairs to their owners.
void MoeLayer::select_token(int64_t place) {
  const int64_t active = config_.active;
  const int64_t at = place * active;
  router::Cut cut;
  int32_t taken = 0;
  router::cut_top_k({home_gate_.data() + at, static_cast<std::size_t>(active)}, {&active, 1},
                    active, {&cut, 1}, {&taken, 1}, cut_workspace_);
  router::apply_cut(cut, home_position_.data() + at, home_gate_.data() + at, active,
                    home_position_.data() + at, home_gate_.data() + at);
  home_lse_[place] = cut.max - std::log(cut.inverse_sum);
  for (int64_t p = at; p < at + active; ++p) {
    const int32_t j = home_position_[p];
    const int32_t owner = list_owner_[j];
    home_slot_[p] = list_slot_[j];
    if (to_[owner].empty() || to_[owner].back().place != place) {
      to_[owner].push_back({static_cast<int32_t>(place), 0});
    }
    ++to_[owner].back().pairs;
    pairs_to_[owner].push_back(p);
  }
}

// Per (chunk, rank) one message of 4-byte words: all rows, all counts, all places, all gates.
void MoeLayer::post_selected(ConstMatrix hidden) {
  plan_.build(to_);
  chunks_.resize(static_cast<std::size_t>(plan_.chunks()));
  const int64_t stream = std::ssize(plan_.home_tokens());
  taken_.ensure(stream);
  home_pair_.clear();
  home_pair_begin_.clear();
  int64_t i = 0;
  for (int r = 0; r < ranks_; ++r) {
    int64_t begin = std::ssize(home_pair_);
    home_pair_.insert(home_pair_.end(), pairs_to_[r].begin(), pairs_to_[r].end());
    for (const Selected& s : to_[r]) {
      taken_[i++] = s.pairs;
      home_pair_begin_.push_back(begin);
      begin += s.pairs;
    }
  }
  home_pair_begin_.push_back(std::ssize(home_pair_));

  for (int64_t c = 0; c < plan_.chunks(); ++c) {
    Chunk& chunk = chunks_[c];
    int64_t sent = 0, received = 0;
    for (int r = 0; r < ranks_; ++r) {
      const StreamRange out = plan_.home_range(r, c);
      sent += out.tokens() * (dim_ + 1) +
              2 * (home_pair_begin_[out.token_end] - home_pair_begin_[out.token_begin]);
      received += words_from(r, c);
    }
    chunk.row_out.ensure(sent);
    chunk.row_in.ensure(received);
    float_sends_.clear();
    float_recvs_.clear();
    float* out = chunk.row_out.data();
    float* in = chunk.row_in.data();
    for (int r = 0; r < ranks_; ++r) {
      const float* begin = out;
      const StreamRange range = plan_.home_range(r, c);
      for (int64_t t = range.token_begin; t < range.token_end; ++t, out += dim_) {
        std::copy_n(hidden.row(plan_.home_tokens()[t]), dim_, out);
      }
      std::memcpy(out, taken_.data() + range.token_begin,
                  static_cast<std::size_t>(range.tokens()) * sizeof(int32_t));
      out += range.tokens();
      const int64_t pair_begin = home_pair_begin_[range.token_begin];
      const int64_t pair_end = home_pair_begin_[range.token_end];
      for (int64_t p = pair_begin; p < pair_end; ++p, ++out) {
        std::memcpy(out, home_slot_.data() + home_pair_[p], sizeof(int32_t));
      }
      for (int64_t p = pair_begin; p < pair_end; ++p) *out++ = home_gate_[home_pair_[p]];
      float_sends_.push_back({r, {begin, static_cast<std::size_t>(out - begin)}});
      const auto words = static_cast<std::size_t>(words_from(r, c));
      float_recvs_.push_back({r, {in, words}});
      in += words;
    }
    chunk.rows.start(exchange_clock_,
                     comm_.exchange<float>(float_sends_, float_recvs_, kTagDispatch));
  }
}

// Words of the message of chunk c that rank r sends here.
int64_t MoeLayer::words_from(int r, int64_t c) const {
  const StreamRange range = plan_.candidate_range(r, c);
  int64_t words = range.tokens() * (dim_ + 1);
  for (int64_t s = range.segment_begin; s < range.segment_end; ++s) {
    words += 2 * plan_.candidate_segments()[s].pairs;
  }
  return words;
}

void MoeLayer::unpack_selected(int64_t c) {
  const GroupRange groups = plan_.group_range(c);
  const float* in = chunks_[c].row_in.data();
  // The number of pairs of each token gives their places, in group order.
  for (int r = 0; r < ranks_; ++r) {
    const StreamRange range = plan_.candidate_range(r, c);
    const float* counts = in + range.tokens() * dim_;
    for (int64_t s = range.segment_begin; s < range.segment_end; ++s) {
      const CandidateSegment& segment = plan_.candidate_segments()[s];
      for (int64_t t = segment.token_begin; t < segment.token_begin + segment.count; ++t) {
        int32_t pairs = 0;
        std::memcpy(&pairs, counts++, sizeof(pairs));
        pair_offset_[t + 1] = pairs;
      }
    }
    in += words_from(r, c);
  }
  for (int64_t t = groups.token_begin; t < groups.token_end; ++t) {
    pair_offset_[t + 1] += pair_offset_[t];
  }
  in = chunks_[c].row_in.data();
  for (int r = 0; r < ranks_; ++r) {
    const StreamRange range = plan_.candidate_range(r, c);
    const int64_t words = words_from(r, c);
    const int64_t pairs = (words - range.tokens() * (dim_ + 1)) / 2;
    const float* rows = in;
    const float* slots = in + range.tokens() * (dim_ + 1);
    const float* gates = slots + pairs;
    for (int64_t s = range.segment_begin; s < range.segment_end; ++s) {
      const CandidateSegment& segment = plan_.candidate_segments()[s];
      const std::span<const int32_t> resident =
          routes_.resident(plan_.groups()[segment.group].part);
      std::copy_n(rows, segment.count * dim_, hidden_.data() + segment.token_begin * dim_);
      rows += segment.count * dim_;
      const int64_t begin = pair_offset_[segment.token_begin];
      for (int64_t p = begin; p < begin + segment.pairs; ++p) {
        std::memcpy(position_.data() + p, slots++, sizeof(int32_t));
        gate_[p] = *gates++;
        pair_expert_[p] = resident[position_[p]];
      }
    }
    in += words;
  }
}

// After d_gate of all pairs has come back: softmax, scores, and the gradients of centroids.
void MoeLayer::backward_at_home(ConstMatrix d_out) {
  if (config_.active == 1) return;  // see differentiate()
  const PhaseClock::Scope time(clock_, Phase::backward_compute);
  const int64_t active = config_.active;
  const ConstMatrix unit(all_unit_.data(), centroids_->rows(), dim_);
  const MatrixView<double> d_unit(d_all_unit_.data(), centroids_->rows(), dim_);
  block_hidden_.ensure(kBlockTokens * dim_);
  block_sum_.ensure(kBlockTokens * dim_);
  block_dot_.ensure(kBlockTokens);
  block_quantum_.ensure(kBlockTokens);
  block_offset_.ensure(kBlockTokens + 1);
  home_d_score_.ensure(home_tokens_ * active);
  for (const PresentPart& part : plan_.present()) {
    look_up_list(routes_.codeword(part.part));
    for (int64_t begin = 0; begin < part.count; begin += kBlockTokens) {
      const int64_t count = std::min(kBlockTokens, part.count - begin);
      const int64_t first = part.begin + begin;
      block_offset_[0] = first * active;
      for (int64_t t = 0; t < count; ++t) {
        const int32_t token = plan_.home_order()[first + t];
        std::copy_n(hidden_home_.data() + token * dim_, dim_, block_hidden_.data() + t * dim_);
        block_dot_[t] = balance_dot_[token];
        block_quantum_[t] = quantum_below(d_out.row(token), dim_, kGradientExponent);
        block_offset_[t + 1] = (first + t + 1) * active;
      }
      std::fill_n(block_sum_.data(), count * dim_, 0.0);
      const SelectionView selection{count, block_offset_.data(), home_position_.data(),
                                    home_gate_.data()};
      const MatrixView<double> d_hidden(block_sum_.data(), count, dim_);
      block_grouping_.build(selection, std::ssize(list_row_));
      router::softmax_backward(selection, home_d_gate_.data(), block_dot_.data(),
                               home_d_score_.data());
      router::score_backward(unit, list_row_.data(), {block_hidden_.data(), count, dim_}, selection,
                             block_grouping_, home_d_score_.data(), block_quantum_.data(), d_hidden,
                             expert_quantum_, d_unit, score_backward_);
      for (int64_t p = block_offset_[0]; p < block_offset_[count]; ++p) {
        centroids_->touch(list_row_[home_position_[p]]);
      }
      for (int64_t t = 0; t < count; ++t) {
        double* sum = total_.data() + plan_.home_order()[first + t] * dim_;
        for (int64_t k = 0; k < dim_; ++k) sum[k] += d_hidden(t, k);
      }
    }
  }
}

}  // namespace airmoe::scheduler
