// Brings the routing of the last forward back to the home ranks, for traces and quality metrics.

#include <algorithm>
#include <cmath>

#include "comm/base/error.hpp"
#include "scheduler/moe/moe_layer.hpp"
#include "scheduler/moe/src/message_tags.hpp"

namespace airmoe::scheduler {

void MoeLayer::capture(RoutingRecord& record) {
  const comm::ScopedPhase phase(comm_, "capture");
  const int64_t active = config_.active;
  record.tokens = home_tokens_;
  record.codeword.ensure(home_tokens_);
  std::copy_n(codeword_.data(), home_tokens_, record.codeword.data());
  record.expert.ensure(home_tokens_ * active);
  record.gate.ensure(home_tokens_ * active);
  record.log_sum_exp.ensure(home_tokens_);
  record.hidden.ensure(home_tokens_ * dim_);
  std::copy_n(hidden_home_.data(), home_tokens_ * dim_, record.hidden.data());
  record.output.ensure(home_tokens_ * dim_);
  std::copy_n(output_.data(), home_tokens_ * dim_, record.output.data());
  if (home_selects()) {
    capture_at_home(record);
  } else {
    capture_returned(record);
  }
}

// Strategy selected: everything is here already.
void MoeLayer::capture_at_home(RoutingRecord& record) const {
  const int64_t active = config_.active;
  for (const PresentPart& part : plan_.present()) {
    const std::span<const int32_t> ids = routes_.list(routes_.codeword(part.part));
    for (int64_t place = part.begin; place < part.begin + part.count; ++place) {
      const int64_t token = plan_.home_order()[place];
      for (int64_t k = 0; k < active; ++k) {
        record.expert[token * active + k] = ids[home_position_[place * active + k]];
        record.gate[token * active + k] = home_gate_[place * active + k];
      }
      record.log_sum_exp[token] = home_lse_[place];
    }
  }
}

// (expert) and (gate) of each pair, then the token's log-sum-exp, come back in stream order.
void MoeLayer::capture_returned(RoutingRecord& record) {
  const int64_t active = config_.active;
  std::vector<int32_t> expert_out;
  std::vector<float> gate_out;
  std::vector<int64_t> expert_begin(ranks_ + 1, 0), gate_begin(ranks_ + 1, 0);
  for (int r = 0; r < ranks_; ++r) {
    for (const CandidateSegment& segment : segments_from(r)) {
      for (int64_t t = segment.token_begin; t < segment.token_begin + segment.count; ++t) {
        if (pair_offset_[t] == pair_offset_[t + 1]) continue;
        for (int64_t p = pair_offset_[t]; p < pair_offset_[t + 1]; ++p) {
          expert_out.push_back(residency_.expert(pair_expert_[p]));
          gate_out.push_back(gate_[p]);
        }
        gate_out.push_back(cuts_[t].max - std::log(cuts_[t].inverse_sum));
      }
    }
    expert_begin[r + 1] = std::ssize(expert_out);
    gate_begin[r + 1] = std::ssize(gate_out);
  }
  // Home side: sizes follow from what was taken.
  std::vector<int64_t> experts_in(ranks_ + 1, 0), gates_in(ranks_ + 1, 0);
  for (int r = 0; r < ranks_; ++r) {
    const auto [begin, end] = home_stream(r);
    int64_t pairs = 0, tokens = 0;
    for (int64_t i = begin; i < end; ++i) {
      pairs += taken_[i];
      tokens += taken_[i] > 0;
    }
    experts_in[r + 1] = experts_in[r] + pairs;
    gates_in[r + 1] = gates_in[r] + pairs + tokens;
  }
  std::vector<int32_t> expert_in(experts_in[ranks_]);
  std::vector<float> gate_in(gates_in[ranks_]);
  int_sends_.clear();
  int_recvs_.clear();
  float_sends_.clear();
  float_recvs_.clear();
  const auto part = [](auto& all, const std::vector<int64_t>& begin, int r) {
    return std::span(all).subspan(begin[r], begin[r + 1] - begin[r]);
  };
  for (int r = 0; r < ranks_; ++r) {
    int_sends_.push_back({r, part(expert_out, expert_begin, r)});
    float_sends_.push_back({r, part(gate_out, gate_begin, r)});
    int_recvs_.push_back({r, part(expert_in, experts_in, r)});
    float_recvs_.push_back({r, part(gate_in, gates_in, r)});
  }
  comm_.exchange<int32_t>(int_sends_, int_recvs_, kTagCaptureExpert).wait();
  comm_.exchange<float>(float_sends_, float_recvs_, kTagCaptureGate).wait();

  std::vector<std::vector<std::pair<int32_t, float>>> pairs(home_tokens_);
  const int32_t* expert = expert_in.data();
  const float* gate = gate_in.data();
  for (std::size_t i = 0; i < plan_.home_tokens().size(); ++i) {
    const int32_t taken = taken_[static_cast<int64_t>(i)];
    if (taken == 0) continue;
    const int32_t token = plan_.home_tokens()[i];
    for (int32_t k = 0; k < taken; ++k) pairs[token].emplace_back(*expert++, *gate++);
    record.log_sum_exp[token] = *gate++;
  }
  for (int64_t t = 0; t < home_tokens_; ++t) {
    AIRMOE_CHECK(std::ssize(pairs[t]) == active, "token {} has {} experts, not {}", t,
                 pairs[t].size(), active);
    std::sort(pairs[t].begin(), pairs[t].end());
    for (int64_t k = 0; k < active; ++k) {
      record.expert[t * active + k] = pairs[t][k].first;
      record.gate[t * active + k] = pairs[t][k].second;
    }
  }
}

// All chunks of the stream to rank r, as [begin, end).
std::pair<int64_t, int64_t> MoeLayer::home_stream(int r) const {
  return {plan_.home_range(r, 0).token_begin, plan_.home_range(r, plan_.chunks() - 1).token_end};
}

std::span<const CandidateSegment> MoeLayer::segments_from(int r) const {
  const int64_t begin = plan_.candidate_range(r, 0).segment_begin;
  const int64_t end = plan_.candidate_range(r, plan_.chunks() - 1).segment_end;
  return std::span<const CandidateSegment>(plan_.candidate_segments()).subspan(begin, end - begin);
}

}  // namespace airmoe::scheduler
