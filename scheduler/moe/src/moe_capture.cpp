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
  // Candidate side: (expert) and (gate) of each pair, then the token's log-sum-exp, in stream
  // order.
  std::vector<int32_t> expert_out;
  std::vector<float> gate_out;
  std::vector<comm::Send<int32_t>> expert_sends;
  std::vector<int64_t> expert_begin(ranks_ + 1, 0), gate_begin(ranks_ + 1, 0);
  for (int r = 0; r < ranks_; ++r) {
    for (int64_t i = plan_.candidate_segments_begin(r); i < plan_.candidate_segments_begin(r + 1);
         ++i) {
      const CandidateSegment& segment = plan_.candidate_segments()[i];
      for (int64_t t = segment.token_begin; t < segment.token_begin + segment.count; ++t) {
        if (pair_offset_[t] == pair_offset_[t + 1]) continue;
        for (int64_t p = pair_offset_[t]; p < pair_offset_[t + 1]; ++p) {
          expert_out.push_back(first_expert_ + pair_expert_[p]);
          gate_out.push_back(gate_[p]);
        }
        gate_out.push_back(cuts_[t].max - std::log(cuts_[t].inverse_sum));
      }
    }
    expert_begin[r + 1] = std::ssize(expert_out);
    gate_begin[r + 1] = std::ssize(gate_out);
  }
  float_sends_.clear();
  for (int r = 0; r < ranks_; ++r) {
    expert_sends.push_back(
        {r, std::span<const int32_t>(expert_out)
                .subspan(expert_begin[r], expert_begin[r + 1] - expert_begin[r])});
    float_sends_.push_back({r, std::span<const float>(gate_out).subspan(
                                   gate_begin[r], gate_begin[r + 1] - gate_begin[r])});
  }

  // Home side: sizes follow from what was taken.
  std::vector<int64_t> experts_in(ranks_ + 1, 0), gates_in(ranks_ + 1, 0);
  for (int r = 0; r < ranks_; ++r) {
    int64_t pairs = 0, tokens = 0;
    for (int64_t i = plan_.home_stream_begin(r); i < plan_.home_stream_begin(r + 1); ++i) {
      pairs += taken_[i];
      tokens += taken_[i] > 0;
    }
    experts_in[r + 1] = experts_in[r] + pairs;
    gates_in[r + 1] = gates_in[r] + pairs + tokens;
  }
  std::vector<int32_t> expert_in(experts_in[ranks_]);
  std::vector<float> gate_in(gates_in[ranks_]);
  std::vector<comm::Recv<int32_t>> expert_recvs;
  float_recvs_.clear();
  for (int r = 0; r < ranks_; ++r) {
    expert_recvs.push_back({r, std::span<int32_t>(expert_in).subspan(
                                   experts_in[r], experts_in[r + 1] - experts_in[r])});
    float_recvs_.push_back(
        {r, std::span<float>(gate_in).subspan(gates_in[r], gates_in[r + 1] - gates_in[r])});
  }
  comm_.exchange<int32_t>(expert_sends, expert_recvs, kTagCaptureExpert).wait();
  comm_.exchange<float>(float_sends_, float_recvs_, kTagCaptureGate).wait();

  record.tokens = home_tokens_;
  record.codeword.ensure(home_tokens_);
  std::copy_n(codeword_.data(), home_tokens_, record.codeword.data());
  record.expert.ensure(home_tokens_ * active);
  record.gate.ensure(home_tokens_ * active);
  record.log_sum_exp.ensure(home_tokens_);
  record.hidden.ensure(home_tokens_ * dim_);
  for (int64_t i = 0; i < home_tokens_; ++i) {
    std::copy_n(sorted_.data() + i * dim_, dim_, record.hidden.data() + order_.token[i] * dim_);
  }
  record.output.ensure(home_tokens_ * dim_);
  std::copy_n(output_.data(), home_tokens_ * dim_, record.output.data());
  std::vector<int64_t> filled(home_tokens_, 0);
  const int32_t* expert = expert_in.data();
  const float* gate = gate_in.data();
  for (const HomeSegment& segment : plan_.home_segments()) {
    for (int64_t j = 0; j < segment.count; ++j) {
      const int32_t taken = taken_[segment.stream_begin + j];
      if (taken == 0) continue;
      const int64_t token = order_.token[segment.order_begin + j];
      const int64_t at = token * active + filled[token];
      std::copy_n(expert, taken, record.expert.data() + at);
      std::copy_n(gate, taken, record.gate.data() + at);
      filled[token] += taken;
      record.log_sum_exp[token] = gate[taken];
      expert += taken;
      gate += taken + 1;
    }
  }
  for (int64_t t = 0; t < home_tokens_; ++t) {
    AIRMOE_CHECK(filled[t] == active, "token {} has {} experts, not {}", t, filled[t], active);
  }
}

}  // namespace airmoe::scheduler
