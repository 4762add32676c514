// The way back of combine and of the backward: every candidate rank that has a selected expert of a
// token returns one row, the home rank adds the rows in rank order in double precision.
//
// A rank that has all K of a token's experts holds the whole sum and returns it in float. Otherwise
// the row is a part of a sum, and travels in double (SumPrecision::f64), so that it does not matter
// how many parts there are.

#include <cstring>

#include "scheduler/moe/moe_layer.hpp"

namespace airmoe::scheduler {

int64_t MoeLayer::row_bytes(int64_t taken, int64_t width) const {
  const bool part_in_double = sums_ == SumPrecision::f64 && taken < config_.active;
  return width * static_cast<int64_t>(part_in_double ? sizeof(double) : sizeof(float));
}

void MoeLayer::return_rows(const Buffer<double>& partial, int64_t width, int tag) {
  const int64_t whole = row_bytes(config_.active, width);
  byte_sends_.clear();
  byte_recvs_.clear();

  // Candidate side, in stream order.
  int64_t bytes = 0;
  for (int64_t t = 0; t < plan_.tokens(); ++t) {
    const int64_t taken = pair_offset_[t + 1] - pair_offset_[t];
    if (taken > 0) bytes += row_bytes(taken, width);
  }
  return_out_.ensure(bytes);
  row_out_.ensure(width);
  uint8_t* out = return_out_.data();
  for (int r = 0; r < ranks_; ++r) {
    uint8_t* begin = out;
    for (int64_t s = plan_.candidate_segments_begin(r); s < plan_.candidate_segments_begin(r + 1);
         ++s) {
      const CandidateSegment& segment = plan_.candidate_segments()[s];
      for (int64_t t = segment.token_begin; t < segment.token_begin + segment.count; ++t) {
        const int64_t taken = pair_offset_[t + 1] - pair_offset_[t];
        if (taken == 0) continue;
        const double* row = partial.data() + t * width;
        const int64_t size = row_bytes(taken, width);
        if (size == whole) {
          for (int64_t k = 0; k < width; ++k) row_out_[k] = static_cast<float>(row[k]);
          std::memcpy(out, row_out_.data(), static_cast<std::size_t>(size));
        } else {
          std::memcpy(out, row, static_cast<std::size_t>(size));
        }
        out += size;
      }
    }
    byte_sends_.push_back({r, {begin, static_cast<std::size_t>(out - begin)}});
  }

  // Home side.
  bytes = 0;
  for (int64_t i = 0; i < plan_.home_stream_begin(ranks_); ++i) {
    if (taken_[i] > 0) bytes += row_bytes(taken_[i], width);
  }
  return_in_.ensure(bytes);
  uint8_t* in = return_in_.data();
  for (int r = 0; r < ranks_; ++r) {
    uint8_t* begin = in;
    for (int64_t i = plan_.home_stream_begin(r); i < plan_.home_stream_begin(r + 1); ++i) {
      if (taken_[i] > 0) in += row_bytes(taken_[i], width);
    }
    byte_recvs_.push_back({r, {begin, static_cast<std::size_t>(in - begin)}});
  }
  comm_.exchange<uint8_t>(byte_sends_, byte_recvs_, tag).wait();

  total_.ensure(home_tokens_ * width);
  total_.fill(0.0);
  row_in_.ensure(2 * width);  // one row, of doubles at most
  const uint8_t* received = return_in_.data();
  for (const HomeSegment& segment : plan_.home_segments()) {
    for (int64_t j = 0; j < segment.count; ++j) {
      const int64_t taken = taken_[segment.stream_begin + j];
      if (taken == 0) continue;
      double* total = total_.data() + order_.token[segment.order_begin + j] * width;
      const int64_t size = row_bytes(taken, width);
      std::memcpy(row_in_.data(), received, static_cast<std::size_t>(size));
      if (size == whole) {
        const float* row = row_in_.data();
        for (int64_t k = 0; k < width; ++k) total[k] += static_cast<double>(row[k]);
      } else {
        const auto* row = reinterpret_cast<const double*>(row_in_.data());
        for (int64_t k = 0; k < width; ++k) total[k] += row[k];
      }
      received += size;
    }
  }
}

}  // namespace airmoe::scheduler
