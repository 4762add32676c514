// The way back of combine and of the backward: every candidate rank that has a selected expert of a
// token returns one row, the home rank adds the rows in double precision.
//
// A rank that has all K of a token's experts holds the whole sum and returns it in float. Otherwise
// the row is a part of a sum, and travels in double (SumPrecision::f64), so that it does not matter
// how many parts there are.

#include <cstring>

#include "scheduler/moe/moe_layer.hpp"
#include "scheduler/moe/src/message_tags.hpp"

namespace airmoe::scheduler {

// With d_gate the home rank has a part of the sum itself.
int64_t MoeLayer::row_bytes(int64_t taken, int64_t width, bool with_d_gate) const {
  const bool is_part = taken < config_.active || with_d_gate;
  const bool in_double = sums_ == SumPrecision::f64 && is_part;
  return width * static_cast<int64_t>(in_double ? sizeof(double) : sizeof(float));
}

// Candidate side of chunk c, in stream order: a row of `partial` per token with pairs; with_d_gate:
// behind each row d_gate of the token's pairs.
void MoeLayer::post_return(int64_t c, int64_t width, bool with_d_gate,
                           const Buffer<double>& partial, int tag) {
  const PhaseClock::Scope time(
      clock_, tag == kTagBackwardCombine ? Phase::backward_combine : Phase::combine);
  const comm::ScopedPhase phase(comm_, tag == kTagBackwardCombine
                                           ? "backward_combine"
                                           : phase_name("combine", "eval_combine"));
  Chunk& chunk = chunks_[c];
  const int64_t whole = width * static_cast<int64_t>(sizeof(float));
  const int64_t per_pair = with_d_gate ? static_cast<int64_t>(sizeof(float)) : 0;
  const auto bytes_of = [&](int64_t taken) {
    return taken > 0 ? row_bytes(taken, width, with_d_gate) + taken * per_pair : 0;
  };
  const GroupRange groups = plan_.group_range(c);
  int64_t bytes = 0;
  for (int64_t t = groups.token_begin; t < groups.token_end; ++t) {
    bytes += bytes_of(pair_offset_[t + 1] - pair_offset_[t]);
  }
  chunk.result_out.ensure(bytes);
  row_.ensure(width);
  byte_sends_.clear();
  uint8_t* out = chunk.result_out.data();
  for (int r = 0; r < ranks_; ++r) {
    uint8_t* begin = out;
    const StreamRange range = plan_.candidate_range(r, c);
    for (int64_t s = range.segment_begin; s < range.segment_end; ++s) {
      const CandidateSegment& segment = plan_.candidate_segments()[s];
      for (int64_t t = segment.token_begin; t < segment.token_begin + segment.count; ++t) {
        const int64_t taken = pair_offset_[t + 1] - pair_offset_[t];
        if (taken == 0) continue;
        const double* row = partial.data() + t * width;
        const int64_t size = row_bytes(taken, width, with_d_gate);
        if (size == whole) {
          for (int64_t k = 0; k < width; ++k) row_[k] = static_cast<float>(row[k]);
          std::memcpy(out, row_.data(), static_cast<std::size_t>(size));
        } else {
          std::memcpy(out, row, static_cast<std::size_t>(size));
        }
        out += size;
        if (with_d_gate) {
          std::memcpy(out, d_gate_.data() + pair_offset_[t],
                      static_cast<std::size_t>(taken * per_pair));
          out += taken * per_pair;
        }
      }
    }
    byte_sends_.push_back({r, {begin, static_cast<std::size_t>(out - begin)}});
  }

  bytes = 0;
  for (int r = 0; r < ranks_; ++r) {
    const StreamRange range = plan_.home_range(r, c);
    for (int64_t i = range.token_begin; i < range.token_end; ++i) bytes += bytes_of(taken_[i]);
  }
  chunk.result_in.ensure(bytes);
  byte_recvs_.clear();
  uint8_t* in = chunk.result_in.data();
  for (int r = 0; r < ranks_; ++r) {
    uint8_t* begin = in;
    const StreamRange range = plan_.home_range(r, c);
    for (int64_t i = range.token_begin; i < range.token_end; ++i) in += bytes_of(taken_[i]);
    byte_recvs_.push_back({r, {begin, static_cast<std::size_t>(in - begin)}});
  }
  chunk.result.start(exchange_clock_, comm_.exchange<uint8_t>(byte_sends_, byte_recvs_, tag));
}

// Home side: total(token, :) += the rows that came back for it.
void MoeLayer::finish_return(int64_t c, int64_t width, bool with_d_gate, Buffer<double>& total) {
  Chunk& chunk = chunks_[c];
  chunk.result.wait();
  const int64_t whole = width * static_cast<int64_t>(sizeof(float));
  row_.ensure(2 * width);  // one row, of doubles at most
  const uint8_t* received = chunk.result_in.data();
  for (int r = 0; r < ranks_; ++r) {
    const StreamRange range = plan_.home_range(r, c);
    for (int64_t i = range.token_begin; i < range.token_end; ++i) {
      const int64_t taken = taken_[i];
      if (taken == 0) continue;
      double* sum = total.data() + plan_.home_tokens()[i] * width;
      const int64_t size = row_bytes(taken, width, with_d_gate);
      std::memcpy(row_.data(), received, static_cast<std::size_t>(size));
      received += size;
      if (size == whole) {
        const float* row = row_.data();
        for (int64_t k = 0; k < width; ++k) sum[k] += static_cast<double>(row[k]);
      } else {
        const auto* row = reinterpret_cast<const double*>(row_.data());
        for (int64_t k = 0; k < width; ++k) sum[k] += row[k];
      }
      if (!with_d_gate) continue;
      for (int64_t j = 0; j < taken; ++j) {
        std::memcpy(&home_d_gate_[home_pair_[home_pair_begin_[i] + j]], received, sizeof(float));
        received += sizeof(float);
      }
    }
  }
}

}  // namespace airmoe::scheduler
