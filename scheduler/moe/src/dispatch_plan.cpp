#include "scheduler/moe/dispatch_plan.hpp"

#include <algorithm>

namespace airmoe::scheduler {

DispatchPlan::DispatchPlan(comm::Communicator& comm, int64_t codewords)
    : comm_(comm),
      home_begin_(comm.size() + 1, 0),
      home_stream_(comm.size() + 1, 0),
      candidate_begin_(comm.size() + 1, 0),
      candidate_stream_(comm.size() + 1, 0),
      tokens_of_(codewords, 0),
      group_of_(codewords, 0) {}

void DispatchPlan::build(const router::CodewordOrder& order, const Shortlists& shortlists) {
  const int ranks = comm_.size();
  home_.clear();
  outgoing_.clear();
  sends_.clear();
  int64_t stream = 0;
  for (int r = 0; r < ranks; ++r) {
    home_begin_[r] = std::ssize(home_);
    home_stream_[r] = stream;
    for (int64_t i = 0; i < order.present.size(); ++i) {
      const int32_t g = order.present[i];
      if (shortlists.candidates(g, r) == 0) continue;
      const int64_t count = order.begin[i + 1] - order.begin[i];
      home_.push_back({static_cast<int32_t>(i), g, order.begin[i], stream, count});
      outgoing_.push_back(g);
      outgoing_.push_back(static_cast<int32_t>(count));
      stream += count;
    }
  }
  home_begin_[ranks] = std::ssize(home_);
  home_stream_[ranks] = stream;
  for (int r = 0; r < ranks; ++r) {
    const int64_t begin = 2 * home_begin_[r];
    const int64_t count = 2 * home_begin_[r + 1] - begin;
    if (count > 0) sends_.push_back({r, std::span<const int32_t>(outgoing_).subspan(begin, count)});
  }
  comm_.sparse_exchange<int32_t>(sends_, inbox_);
  group_by_codeword();
}

void DispatchPlan::group_by_codeword() {
  const int ranks = comm_.size();
  candidate_.clear();
  arrived_codeword_.clear();
  touched_.clear();
  groups_.clear();
  std::fill(candidate_begin_.begin(), candidate_begin_.end(), 0);
  std::fill(candidate_stream_.begin(), candidate_stream_.end(), 0);

  int64_t stream = 0;
  for (const comm::Arrival& arrival : inbox_.arrivals()) {
    const std::span<const int32_t> pairs = inbox_.data(arrival);
    const int64_t first = stream;
    for (std::size_t i = 0; i < pairs.size(); i += 2) {
      const int32_t g = pairs[i];
      const int64_t count = pairs[i + 1];
      if (tokens_of_[g] == 0) touched_.push_back(g);
      candidate_.push_back({0, stream, tokens_of_[g], count});
      arrived_codeword_.push_back(g);
      tokens_of_[g] += count;
      stream += count;
    }
    candidate_begin_[arrival.source + 1] = static_cast<int64_t>(pairs.size()) / 2;
    candidate_stream_[arrival.source + 1] = stream - first;
  }
  for (int r = 0; r < ranks; ++r) {
    candidate_begin_[r + 1] += candidate_begin_[r];
    candidate_stream_[r + 1] += candidate_stream_[r];
  }

  std::sort(touched_.begin(), touched_.end());
  int64_t token = 0;
  for (const int32_t g : touched_) {
    group_of_[g] = static_cast<int32_t>(groups_.size());
    groups_.push_back({g, token, tokens_of_[g]});
    token += tokens_of_[g];
    tokens_of_[g] = 0;
  }
  for (std::size_t i = 0; i < candidate_.size(); ++i) {
    const int32_t group = group_of_[arrived_codeword_[i]];
    candidate_[i].group = group;
    candidate_[i].token_begin += groups_[group].token_begin;
  }
}

}  // namespace airmoe::scheduler
