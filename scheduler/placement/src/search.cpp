#include "scheduler/placement/src/search.hpp"

#include <algorithm>
#include <numeric>
#include <utility>

#include "scheduler/placement/src/plan_steps.hpp"

namespace airmoe::scheduler::placement {
namespace {

std::vector<int32_t> count_uses(const PlanInput& input, const Parts& parts) {
  std::vector<int32_t> uses(static_cast<std::size_t>(input.experts));
  for (int64_t g = 0; g < input.codewords; ++g) {
    const int32_t times = parts.begin[g + 1] - parts.begin[g];
    const int32_t* list = input.lists.data() + g * input.length;
    for (int64_t j = 0; j < input.length; ++j) uses[list[j]] += times;
  }
  return uses;
}

}  // namespace

Search::Search(const PlanInput& input, const Parts& parts, int64_t row_limit)
    : input_(input),
      parts_(parts),
      holders_(count_uses(input, parts), input.ranks),
      rank_(parts.count() * input.length),
      placed_(parts.codeword.size()),
      load_(static_cast<std::size_t>(input.ranks)),
      elsewhere_(static_cast<double>(input.ranks - 1) / input.ranks),
      row_limit_(row_limit),
      present_(load_.size()),
      own_rows_(load_.size()),
      own_entries_(load_.size()),
      room_(load_.size()),
      in_cover_(load_.size()),
      new_rank_(static_cast<std::size_t>(input.length)) {
  const double tokens = std::accumulate(input.tokens.begin(), input.tokens.end(), 0.0);
  load_limit_ = kLoadLimit * tokens * static_cast<double>(input.length) / input.ranks;
}

int Search::primary(int64_t part) const {
  const std::span<const uint16_t> at = ranks(part);
  if (std::count(at.begin(), at.end(), at[0]) * 2 > std::ssize(at)) return at[0];
  std::vector<int64_t> entries(load_.size());
  for (const uint16_t r : at) ++entries[r];
  return static_cast<int>(std::max_element(entries.begin(), entries.end()) - entries.begin());
}

bool Search::within_row_limit() const {
  const std::span<const int64_t> rows = holders_.rows();
  return std::all_of(rows.begin(), rows.end(), [&](int64_t r) { return r <= row_limit_; });
}

int64_t Search::total_rows() const {
  const std::span<const int64_t> rows = holders_.rows();
  return std::accumulate(rows.begin(), rows.end(), int64_t{0});
}

double Search::bytes() const {
  double bytes = static_cast<double>(total_rows() - input_.experts) * input_.costs.per_copy();
  std::vector<char> in_cover(load_.size());
  for (int64_t p = 0; p < parts_.count(); ++p) {
    if (!placed_[p]) continue;
    std::fill(in_cover.begin(), in_cover.end(), 0);
    for (const uint16_t r : ranks(p)) in_cover[r] = 1;
    const auto cover = std::count(in_cover.begin(), in_cover.end(), 1);
    bytes += parts_.tokens[p] * elsewhere_ * input_.costs.per_token(cover);
  }
  return bytes;
}

void Search::place_all(Buffer<uint16_t> ranks) {
  rank_ = std::move(ranks);
  std::vector<int64_t> begin(load_.size() + 1), entries(load_.size());
  Buffer<int32_t> experts;
  for (const bool fill : {false, true}) {
    for (int64_t p = 0; p < parts_.count(); ++p) {
      const uint16_t* at = rank_.data() + p * input_.length;
      if (at[0] == kNotPlaced) continue;
      if (!fill) {
        std::fill(entries.begin(), entries.end(), 0);
        for (int64_t j = 0; j < input_.length; ++j) ++entries[at[j]];
        for (std::size_t r = 0; r < entries.size(); ++r) {
          begin[r + 1] += entries[r];
          load_[r] += parts_.tokens[p] * static_cast<double>(entries[r]);
        }
        placed_[p] = 1;
      } else {
        const std::span<const int32_t> candidates = list(p);
        for (int64_t j = 0; j < input_.length; ++j) experts[begin[at[j]]++] = candidates[j];
      }
    }
    if (!fill) {
      std::partial_sum(begin.begin(), begin.end(), begin.begin());
      experts.ensure(begin.back());
    }
  }
  // Filling moved every begin to the next one's place.
  std::copy_backward(begin.begin(), begin.end() - 1, begin.end());
  begin[0] = 0;
  holders_.use_all(experts.span(), begin);
}

void Search::place_as(int64_t part, std::span<const uint16_t> ranks) {
  constexpr std::size_t kAhead = 16;  // entries, for prefetching
  const std::span<const int32_t> experts = list(part);
  const double tokens = parts_.tokens[part];
  uint16_t* at = rank_.data() + part * input_.length;
  const bool placed = placed_[part];
  for (std::size_t j = 0; j < experts.size(); ++j) {
    holders_.prefetch(experts[std::min(j + kAhead, experts.size() - 1)]);
    if (placed) {
      if (at[j] == ranks[j]) continue;
      holders_.release(experts[j], at[j]);
      load_[at[j]] -= tokens;
    }
    holders_.use(experts[j], ranks[j]);
    load_[ranks[j]] += tokens;
  }
  std::copy(ranks.begin(), ranks.end(), at);
  placed_[part] = 1;
}

void Search::place_whole(int64_t part, int rank) {
  std::fill(new_rank_.begin(), new_rank_.end(), static_cast<uint16_t>(rank));
  place_as(part, new_rank_);
}

void Search::place_at_homes(int64_t part) {
  const std::span<const int32_t> experts = list(part);
  for (std::size_t j = 0; j < experts.size(); ++j) {
    new_rank_[j] = static_cast<uint16_t>(holders_.home(experts[j]));
  }
  place_as(part, new_rank_);
}

int Search::least_loaded_holder(int32_t expert, int rank) const {
  int best = holders_.home(expert);
  for (const Holders::Holder& holder : holders_.of(expert)) {
    if (holder.rank != rank && load_[holder.rank] < load_[best]) best = holder.rank;
  }
  return best;
}

void Search::move_entry(int64_t part, int64_t entry, int rank) {
  uint16_t& at = rank_[part * input_.length + entry];
  const int32_t expert = list(part)[static_cast<std::size_t>(entry)];
  holders_.release(expert, at);
  holders_.use(expert, rank);
  load_[at] -= parts_.tokens[part];
  load_[rank] += parts_.tokens[part];
  at = static_cast<uint16_t>(rank);
}

}  // namespace airmoe::scheduler::placement
