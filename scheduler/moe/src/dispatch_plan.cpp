#include "scheduler/moe/dispatch_plan.hpp"

#include <algorithm>

#include "comm/base/partition.hpp"

namespace airmoe::scheduler {

DispatchPlan::DispatchPlan(comm::Communicator& comm)
    : comm_(comm), home_begin_(comm.size() + 1, 0), candidate_begin_(comm.size() + 1, 0) {}

void DispatchPlan::order(const router::CodewordOrder& order, const Routes& routes,
                         std::span<const int32_t> chunk_begin) {
  chunk_begin_.assign(chunk_begin.begin(), chunk_begin.end());
  const auto parts = static_cast<std::size_t>(routes.parts());
  if (tokens_of_.size() < parts) tokens_of_.resize(parts, 0);
  if (group_of_.size() < parts) group_of_.resize(parts, 0);
  home_order_.clear();
  present_.clear();
  for (int64_t i = 0; i < order.present.size(); ++i) {
    const int32_t g = order.present[i];
    const int32_t first = routes.part_begin(g);
    const int32_t count = routes.part_begin(g + 1) - first;
    const BlockPartition slices{order.begin[i + 1] - order.begin[i], count};
    for (int32_t p = 0; p < count; ++p) {
      const int slice = ((p - comm_.rank()) % count + count) % count;
      if (slices.size(slice) == 0) continue;
      present_.push_back({first + p, std::ssize(home_order_), slices.size(slice)});
      const int32_t* tokens = order.token.data() + order.begin[i] + slices.begin(slice);
      home_order_.insert(home_order_.end(), tokens, tokens + slices.size(slice));
    }
  }
  present_chunk_.assign(1, 0);
  for (int64_t c = 0; c < chunks(); ++c) {
    int64_t end = present_chunk_.back();
    while (end < std::ssize(present_) && present_[end].part < chunk_begin_[c + 1]) ++end;
    present_chunk_.push_back(end);
  }
}

void DispatchPlan::begin_streams() {
  home_.clear();
  home_token_.clear();
  outgoing_.clear();
  home_begin_[0] = 0;
}

void DispatchPlan::add_segment(int32_t present, int64_t count, int64_t pairs) {
  const int32_t part = present_[present].part;
  home_.push_back({part, present, std::ssize(home_token_) - count, count});
  outgoing_.push_back(part);
  outgoing_.push_back(static_cast<int32_t>(count));
  if (words_ == 3) outgoing_.push_back(static_cast<int32_t>(pairs));
}

void DispatchPlan::end_stream(int r) {
  home_begin_[r + 1] = std::ssize(home_);
}

void DispatchPlan::build(const Routes& routes) {
  words_ = 2;
  begin_streams();
  for (int r = 0; r < comm_.size(); ++r) {
    for (std::size_t i = 0; i < present_.size(); ++i) {
      const PresentPart& p = present_[i];
      if (routes.candidates(p.part, r) == 0) continue;
      const auto tokens = home_order_.begin() + p.begin;
      home_token_.insert(home_token_.end(), tokens, tokens + p.count);
      add_segment(static_cast<int32_t>(i), p.count, 0);
    }
    end_stream(r);
  }
  exchange_segments();
}

void DispatchPlan::build(std::span<const std::vector<Selected>> to) {
  words_ = 3;
  begin_streams();
  for (int r = 0; r < comm_.size(); ++r) {
    auto next = to[r].begin();
    for (std::size_t i = 0; next != to[r].end(); ++i) {
      const PresentPart& p = present_[i];
      int64_t count = 0, pairs = 0;
      for (; next != to[r].end() && next->place < p.begin + p.count; ++next) {
        home_token_.push_back(home_order_[next->place]);
        pairs += next->pairs;
        ++count;
      }
      if (count > 0) add_segment(static_cast<int32_t>(i), count, pairs);
    }
    end_stream(r);
  }
  exchange_segments();
}

void DispatchPlan::exchange_segments() {
  sends_.clear();
  for (int r = 0; r < comm_.size(); ++r) {
    const int64_t begin = words_ * home_begin_[r];
    const int64_t count = words_ * home_begin_[r + 1] - begin;
    if (count > 0) sends_.push_back({r, std::span<const int32_t>(outgoing_).subspan(begin, count)});
  }
  comm_.sparse_exchange<int32_t>(sends_, inbox_);
  group_by_part();
  find_ranges();
}

void DispatchPlan::group_by_part() {
  candidate_.clear();
  arrived_part_.clear();
  touched_.clear();
  groups_.clear();
  std::fill(candidate_begin_.begin(), candidate_begin_.end(), 0);
  tokens_ = 0;
  for (const comm::Arrival& arrival : inbox_.arrivals()) {
    const std::span<const int32_t> words = inbox_.data(arrival);
    for (std::size_t i = 0; i < words.size(); i += words_) {
      const int32_t part = words[i];
      const int64_t count = words[i + 1];
      if (tokens_of_[part] == 0) touched_.push_back(part);
      candidate_.push_back({0, tokens_, tokens_of_[part], count, words_ == 3 ? words[i + 2] : 0});
      arrived_part_.push_back(part);
      tokens_of_[part] += count;
      tokens_ += count;
    }
    candidate_begin_[arrival.source + 1] = static_cast<int64_t>(words.size()) / words_;
  }
  for (int r = 0; r < comm_.size(); ++r) candidate_begin_[r + 1] += candidate_begin_[r];

  std::sort(touched_.begin(), touched_.end());
  int64_t token = 0;
  for (const int32_t part : touched_) {
    group_of_[part] = static_cast<int32_t>(groups_.size());
    groups_.push_back({part, token, tokens_of_[part]});
    token += tokens_of_[part];
    tokens_of_[part] = 0;
  }
  for (std::size_t i = 0; i < candidate_.size(); ++i) {
    const int32_t group = group_of_[arrived_part_[i]];
    candidate_[i].group = group;
    candidate_[i].token_begin += groups_[group].token_begin;
  }
}

void DispatchPlan::find_ranges() {
  const int ranks = comm_.size();
  home_range_.clear();
  candidate_range_.clear();
  group_range_.clear();
  const auto home_token = [&](int64_t s) {
    return s < std::ssize(home_) ? home_[s].stream_begin : std::ssize(home_token_);
  };
  const auto candidate_token = [&](int64_t s) {
    return s < std::ssize(candidate_) ? candidate_[s].stream_begin : tokens_;
  };
  for (int r = 0; r < ranks; ++r) {
    int64_t home = home_begin_[r];
    int64_t candidate = candidate_begin_[r];
    for (int64_t c = 0; c < chunks(); ++c) {
      const int64_t home_first = home;
      while (home < home_begin_[r + 1] && home_[home].part < chunk_begin_[c + 1]) ++home;
      home_range_.push_back({home_first, home, home_token(home_first), home_token(home)});
      const int64_t candidate_first = candidate;
      while (candidate < candidate_begin_[r + 1] &&
             arrived_part_[candidate] < chunk_begin_[c + 1]) {
        ++candidate;
      }
      candidate_range_.push_back({candidate_first, candidate, candidate_token(candidate_first),
                                  candidate_token(candidate)});
    }
  }
  int64_t group = 0;
  int64_t token = 0;
  for (int64_t c = 0; c < chunks(); ++c) {
    GroupRange range{group, group, token, token};
    while (group < std::ssize(groups_) && groups_[group].part < chunk_begin_[c + 1]) {
      token += groups_[group].count;
      ++group;
    }
    range.group_end = group;
    range.token_end = token;
    group_range_.push_back(range);
  }
}

}  // namespace airmoe::scheduler
