#include "scheduler/placement/src/group_refiner.hpp"

#include <algorithm>
#include <limits>
#include <utility>

namespace airmoe::scheduler::placement {
namespace {

// Experts that a sweep must save, as a share of all, for another one to follow.
constexpr double kLeastSaved = 2e-3;

std::vector<int32_t> counts(const InvertedLists& lists, int64_t experts) {
  std::vector<int32_t> count(static_cast<std::size_t>(experts));
  for (int64_t e = 0; e < experts; ++e) count[e] = static_cast<int32_t>(lists.count(e));
  return count;
}

/// The same pseudo-random order everywhere (std::shuffle is left to the library).
void shuffle(std::vector<int32_t>& order, uint64_t& state) {
  for (std::size_t i = order.size(); i > 1; --i) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    std::swap(order[i - 1], order[(state >> 33) % i]);
  }
}

}  // namespace

GroupRefiner::GroupRefiner(const PlanInput& input, const Parts& parts, const InvertedLists& lists,
                           std::vector<int32_t> group, std::vector<double> most_tokens)
    : input_(input),
      parts_(parts),
      lists_(lists),
      groups_(std::ssize(most_tokens)),
      group_(std::move(group)),
      most_tokens_(std::move(most_tokens)),
      load_(most_tokens_.size()),
      users_(counts(lists, input.experts), static_cast<int>(groups_)),
      present_(parts.count() * groups_, 0),
      sole_(parts.count(), 0) {
  for (int32_t p = 0; p < parts.count(); ++p) {
    if (parts.tokens[p] == 0) continue;
    order_.push_back(p);
    load_[group_[p]] += parts.tokens[p];
  }
  for (int32_t e = 0; e < input.experts; ++e) {
    const std::span<const int32_t> users = lists.parts_of(e);
    for (const int32_t p : users) users_.use(e, group_[p]);
    for (const int32_t p : users) {
      int32_t* present = present_.data() + int64_t{p} * groups_;
      for (const Holders::Holder& holder : users_.of(e)) {
        ++present[holder.rank];
        sole_[p] += holder.rank == group_[p] && holder.uses == 1;
      }
    }
  }
}

int32_t GroupRefiner::other_user(int32_t expert, int group, int32_t part) const {
  for (const int32_t p : lists_.parts_of(expert)) {
    if (group_[p] == group && p != part) return p;
  }
  return part;
}

void GroupRefiner::move(int32_t part, int to) {
  const int from = group_[part];
  const int32_t* list = input_.lists.data() + parts_.codeword[part] * input_.length;
  sole_[part] = 0;
  for (int64_t j = 0; j < input_.length; ++j) {
    const int32_t e = list[j];
    if (!lists_.sampled(e)) continue;
    const int left = users_.release(e, from), there = users_.use(e, to);
    if (left == 0) {
      for (const int32_t p : lists_.parts_of(e)) --present_[int64_t{p} * groups_ + from];
    } else if (left == 1) {
      ++sole_[other_user(e, from, part)];
    }
    if (there == 1) {
      for (const int32_t p : lists_.parts_of(e)) ++present_[int64_t{p} * groups_ + to];
      ++sole_[part];
    } else if (there == 2) {
      --sole_[other_user(e, to, part)];
    }
  }
  load_[from] -= parts_.tokens[part];
  load_[to] += parts_.tokens[part];
  group_[part] = to;
}

double GroupRefiner::overload(int64_t part, int group) const {
  const double more = group == group_[part] ? 0 : parts_.tokens[part];
  const double excess = load_[group] + more - most_tokens_[group];
  return excess <= 0 ? 0 : 1e7 * excess / most_tokens_[group];
}

void GroupRefiner::run(int sweeps) {
  for (int s = 0; s < sweeps; ++s) {
    shuffle(order_, shuffle_state_);
    double saved = 0;
    for (const int32_t p : order_) {
      const double now = static_cast<double>(missing(p, group_[p])) + overload(p, group_[p]);
      int best = group_[p];
      double least = now;
      for (int r = 0; r < static_cast<int>(groups_); ++r) {
        const double cost = static_cast<double>(missing(p, r)) + overload(p, r);
        if (cost < least) least = cost, best = r;
      }
      if (best == group_[p]) continue;
      saved += now - least;
      move(p, best);
    }
    if (saved < kLeastSaved * static_cast<double>(input_.experts / lists_.stride())) break;
  }
}

}  // namespace airmoe::scheduler::placement
