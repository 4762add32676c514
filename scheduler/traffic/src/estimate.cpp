#include "scheduler/traffic/estimate.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "comm/base/error.hpp"
#include "comm/base/partition.hpp"
#include "scheduler/traffic/cover_table.hpp"

namespace airmoe::scheduler {

namespace {

// Sums of expected traffic by channel and rank. What a home sends is spread over all ranks alike.
class Expectation {
 public:
  Expectation(const Placement& placement, const TrafficShape& shape)
      : placement_(placement),
        shape_(shape),
        ranks_(placement.ranks),
        owned_(owned_by_rank(placement)),
        copies_(static_cast<std::size_t>(ranks_), 0.0),
        scored_(copies_),
        selected_(copies_) {
    out_.rank.resize(static_cast<std::size_t>(ranks_));
  }

  double ranks() const { return ranks_; }
  double remote() const { return (ranks() - 1) / ranks(); }

  /// `bytes` from one rank to others that are not named.
  void from(Channel c, int rank, double bytes, double messages = 0) {
    out_.bytes[static_cast<int>(c)] += bytes;
    out_.rank[rank].sent += bytes;
    out_.rank[rank].messages += messages;
    from_all_received_ += bytes / ranks();
  }
  /// `bytes` to one rank from others that are not named.
  void to(Channel c, int rank, double bytes, double messages = 0) {
    out_.bytes[static_cast<int>(c)] += bytes;
    out_.rank[rank].received += bytes;
    from_all_sent_ += bytes / ranks();
    messages_of_all_ += messages / ranks();
  }
  /// `bytes` from one rank to another.
  void between(Channel c, int sender, int receiver, double bytes) {
    out_.bytes[static_cast<int>(c)] += bytes;
    out_.rank[sender].sent += bytes;
    out_.rank[receiver].received += bytes;
  }
  /// Every rank sends `bytes` in `messages`.
  void all(Channel c, double bytes, double messages) {
    out_.bytes[static_cast<int>(c)] += bytes * ranks();
    from_all_sent_ += bytes;
    from_all_received_ += bytes;
    messages_of_all_ += messages;
  }
  void pairs(int rank, double scored, double selected) {
    scored_[rank] += scored;
    selected_[rank] += selected;
  }
  /// A copy of an expert on `holder`: used in `batches` micro-batches, in the step with `used`.
  void copy(int holder, int32_t expert, double batches, double used) {
    const int owner = placement_.home[expert];
    if (owner == holder) return;
    out_.copies += 1;
    copies_[holder] += 1;
    between(Channel::copy_requests, holder, owner, 4 + 4 * used);
    between(
        Channel::copy_values, owner, holder,
        4 * (static_cast<double>(shape_.dim) + used * static_cast<double>(shape_.used_values())));
    between(Channel::copy_gradients, holder, owner,
            used * static_cast<double>(shape_.copy_gradient_bytes()));
    between(Channel::usage_to_owner, holder, owner, 8 * batches);
    between(Channel::usage_to_copy, owner, holder, 4 * batches);
  }
  /// Copies come from about every rank: one message per phase and peer.
  void copy_messages(int micro_batches) {
    const double phases = 6 + 2 * micro_batches;
    for (int r = 0; r < ranks_; ++r) {
      out_.rank[r].messages += phases * std::min(ranks() - 1, copies_[r]);
    }
  }
  /// Best min(M, owned) of each list to mergers, and what these send on: `entries` ids to each
  /// rank.
  void lists(const EstimateInput& input, std::span<const double> entries) {
    for (int r = 0; r < ranks_; ++r) {
      const auto best = static_cast<double>(std::min(input.length, owned_[r]));
      const double codewords = static_cast<double>(input.codewords()) * remote();
      from(Channel::lists, r, 8 * best * codewords, ranks() - 1);
      to(Channel::lists, r, 4 * entries[r] * remote(), ranks() - 1);
    }
  }

  double owned(int rank) const { return static_cast<double>(owned_[rank]); }

  StrategyEstimate finish(double tokens, const MachineConstants& machine) {
    if (tokens > 0) {
      out_.candidate_ranks /= tokens;
      out_.selected_ranks /= tokens;
    }
    for (int r = 0; r < ranks_; ++r) {
      RankCost& cost = out_.rank[r];
      cost.sent += from_all_sent_;
      cost.received += from_all_received_;
      cost.messages += messages_of_all_;
      cost.touched = touched_bytes(cost.sent + cost.received, owned(r), copies_[r], shape_);
      cost.flops = pair_flops(scored_[r], selected_[r], shape_);
      out_.seconds = std::max(out_.seconds, cost.seconds(machine));
    }
    return std::move(out_);
  }

  StrategyEstimate& out() { return out_; }

 private:
  const Placement& placement_;
  const TrafficShape& shape_;
  int ranks_;
  std::vector<int64_t> owned_;
  std::vector<double> copies_, scored_, selected_;
  double from_all_sent_ = 0, from_all_received_ = 0, messages_of_all_ = 0;
  StrategyEstimate out_;
};

double sum(std::span<const double> tokens) {
  return std::accumulate(tokens.begin(), tokens.end(), 0.0);
}

RoutingTrace without_tokens(const EstimateInput& input) {
  RoutingTrace trace;
  trace.experts = input.experts;
  trace.active = input.active;
  trace.length = input.length;
  trace.lists.assign(input.lists.begin(), input.lists.end());
  return trace;
}

// Chance that a Poisson count with this mean is not zero.
double occurs(double mean) {
  return -std::expm1(-mean);
}

// Rows that return from a rank with `candidates` of a token's M.
double return_bytes(const TrafficShape& shape, const DrawChances& chances, int64_t width,
                    int64_t candidates) {
  const double all = chances.all(candidates);
  const double some = 1 - chances.none(candidates);
  return static_cast<double>(width) *
         (4 * all + static_cast<double>(shape.sum_bytes()) * (some - all));
}

// One micro-batch of `tokens` tokens of a part, at a rank of its cover.
struct Visit {
  int rank;
  int64_t candidates;
  double tokens;
};

void check(const EstimateInput& input, const Placement& placement) {
  AIRMOE_CHECK(
      std::ssize(input.lists) == input.codewords() * input.length && input.active >= 1 &&
          input.active <= input.length && input.micro_batches >= 1 &&
          placement.codewords() == input.codewords() && std::ssize(placement.home) == input.experts,
      "lists of {} x {}, K = {}, a placement of {} codewords and {} experts", input.codewords(),
      input.length, input.active, placement.codewords(), placement.home.size());
}

// Combine and the backward's way there.
void add_selected_rows(Expectation& e, const TrafficShape& shape, const DrawChances& chances,
                       const Visit& v) {
  const double tokens = v.tokens * e.remote();
  const double some = 1 - chances.none(v.candidates);
  e.from(Channel::combine, v.rank,
         tokens * return_bytes(shape, chances, shape.combine_width(), v.candidates));
  e.to(Channel::backward_dispatch, v.rank,
       tokens * some * static_cast<double>(shape.backward_bytes()));
  e.out().selected_ranks += v.tokens * some;
}

}  // namespace

double StrategyEstimate::total_bytes() const {
  return std::accumulate(bytes.begin(), bytes.end(), 0.0);
}

StrategyEstimate estimate_cover(const EstimateInput& input, const Placement& placement,
                                const TrafficShape& shape, const MachineConstants& machine) {
  check(input, placement);
  const RoutingTrace lists = without_tokens(input);
  const CoverTable cover(lists, placement);
  const DrawChances chances(input.length, input.active);
  const auto active = static_cast<double>(input.active);
  const double share = active / static_cast<double>(input.length);
  const double homes = placement.ranks * static_cast<double>(input.micro_batches);
  Expectation e(placement, shape);
  std::vector<double> part_tokens(static_cast<std::size_t>(placement.parts()), 0.0);
  std::vector<double> entries(static_cast<std::size_t>(placement.ranks), 0.0);
  bool shared = false;
  for (int64_t g = 0; g < input.codewords(); ++g) {
    for (int64_t v = placement.part_begin[g]; v < placement.part_begin[g + 1]; ++v) {
      const double tokens =
          input.tokens[g] / (placement.part_begin[g + 1] - placement.part_begin[g]);
      part_tokens[v] = tokens;
      shared = shared || cover.size(v) > 1;
      e.out().candidate_ranks += tokens * cover.size(v);
      for (int64_t i = 0; i < cover.size(v); ++i) {
        const Visit visit{cover.ranks(v)[i], cover.candidates(v)[i], tokens};
        const auto candidates = static_cast<double>(visit.candidates);
        const double away = tokens * e.remote();
        entries[visit.rank] += candidates;
        e.to(Channel::metadata, visit.rank, 8 * e.remote() * homes * occurs(tokens / homes));
        e.to(Channel::dispatch, visit.rank, away * static_cast<double>(shape.dispatch_bytes()));
        e.pairs(visit.rank, tokens * candidates, tokens * candidates * share);
        if (cover.size(v) > 1) {
          e.from(Channel::scores, visit.rank, away * 4 * std::min(active, candidates));
          e.to(Channel::cuts, visit.rank, away * 16);
        }
        add_selected_rows(e, shape, chances, visit);
        e.from(Channel::backward_combine, visit.rank,
               away * return_bytes(shape, chances, shape.dim, visit.candidates));
      }
    }
  }
  const double token_messages =
      (5 + (shape.balance ? 1 : 0) + (shared ? 2 : 0)) * (e.ranks() - 1) * input.micro_batches;
  e.all(Channel::dispatch, 0, token_messages);
  e.lists(input, entries);

  // Copies, rank by rank: entries sorted by the rank that scores them.
  const int64_t total = placement.parts() * input.length;
  std::vector<int64_t> begin(static_cast<std::size_t>(placement.ranks) + 1, 0);
  std::vector<int64_t> entry(static_cast<std::size_t>(total));
  const auto rank_of = [&](int64_t v, int64_t j) { return cover.ranks(v)[cover.scorer(v)[j]]; };
  for (int64_t v = 0; v < placement.parts(); ++v) {
    for (int64_t j = 0; j < input.length; ++j) ++begin[rank_of(v, j) + 1];
  }
  std::partial_sum(begin.begin(), begin.end(), begin.begin());
  std::vector<int64_t> end(begin.begin(), begin.end() - 1);
  for (int64_t g = 0; g < input.codewords(); ++g) {
    for (int64_t v = placement.part_begin[g]; v < placement.part_begin[g + 1]; ++v) {
      for (int64_t j = 0; j < input.length; ++j) {
        entry[end[rank_of(v, j)]++] = v * input.experts + lists.lists[g * input.length + j];
      }
    }
  }
  std::vector<double> selections(static_cast<std::size_t>(input.experts), -1.0);
  std::vector<int32_t> touched;
  for (int r = 0; r < placement.ranks; ++r) {
    touched.clear();
    for (int64_t i = begin[r]; i < begin[r + 1]; ++i) {
      const auto x = static_cast<int32_t>(entry[i] % input.experts);
      if (placement.home[x] == r) continue;
      if (selections[x] < 0) {
        selections[x] = 0;
        touched.push_back(x);
      }
      selections[x] += part_tokens[entry[i] / input.experts] * share;
    }
    for (const int32_t x : touched) {
      const double used = input.used_copies >= 0 ? input.used_copies : occurs(selections[x]);
      e.copy(r, x, input.micro_batches * occurs(selections[x] / input.micro_batches), used);
      selections[x] = -1;
    }
  }
  e.copy_messages(input.micro_batches);
  return e.finish(sum(input.tokens), machine);
}

StrategyEstimate estimate_gather(const EstimateInput& input, const Placement& placement,
                                 const TrafficShape& shape, const MachineConstants& machine) {
  check(input, placement);
  Expectation e(placement, shape);
  const double tokens = sum(input.tokens);
  const double home = tokens / e.ranks();
  const double share = static_cast<double>(input.active) / static_cast<double>(input.length);
  // Expected tokens of a home rank that have an expert in their list.
  std::vector<double> listed(static_cast<std::size_t>(input.experts), 0.0);
  double present = 0;
  for (int64_t g = 0; g < input.codewords(); ++g) {
    const double here = input.tokens[g] / e.ranks();
    present += occurs(here);
    for (int64_t j = 0; j < input.length; ++j) listed[input.lists[g * input.length + j]] += here;
  }
  double copies = 0;
  std::vector<double> of_owner(static_cast<std::size_t>(placement.ranks), 0.0);
  std::vector<double> used_of_owner(of_owner), counted_of_owner(of_owner);
  for (int64_t x = 0; x < input.experts; ++x) {
    if (listed[x] <= 0) continue;
    const double held = occurs(listed[x]);
    const double selections = listed[x] * share;
    copies += held;
    of_owner[placement.home[x]] += held;
    used_of_owner[placement.home[x]] +=
        input.used_copies >= 0 ? held * input.used_copies : occurs(selections);
    counted_of_owner[placement.home[x]] +=
        input.micro_batches * occurs(selections / input.micro_batches);
  }
  for (int r = 0; r < placement.ranks; ++r) {
    e.pairs(r, home * static_cast<double>(input.length), home * static_cast<double>(input.active));
    const double others = e.ranks() - 1;  // that hold a copy of what r owns
    const double used = used_of_owner[r];
    e.to(Channel::copy_requests, r, 4 * others * (of_owner[r] + used));
    e.from(Channel::copy_values, r,
           4 * others *
               (of_owner[r] * static_cast<double>(shape.dim) +
                used * static_cast<double>(shape.used_values())));
    e.to(Channel::copy_gradients, r,
         others * used * static_cast<double>(shape.copy_gradient_bytes()));
    e.to(Channel::usage_to_owner, r, 8 * others * counted_of_owner[r]);
    e.from(Channel::usage_to_copy, r, 4 * others * counted_of_owner[r]);
  }
  const double phases = 6 + 2 * input.micro_batches;
  e.all(Channel::copy_values, 0, phases * (e.ranks() - 1));
  const std::vector<double> entries(static_cast<std::size_t>(placement.ranks),
                                    present * static_cast<double>(input.length));
  e.lists(input, entries);
  e.out().copies = copies * (e.ranks() - 1);
  e.out().candidate_ranks = e.out().selected_ranks = tokens;
  return e.finish(tokens, machine);
}

StrategyEstimate estimate_selected(const EstimateInput& input, const Placement& placement,
                                   const TrafficShape& shape, const MachineConstants& machine) {
  check(input, placement);
  Placement owners = block_placement(input.experts, input.codewords(), placement.ranks);
  owners.home = placement.home;
  const RoutingTrace lists = without_tokens(input);
  const CoverTable cover(lists, owners);
  const DrawChances chances(input.length, input.active);
  const double share = static_cast<double>(input.active) / static_cast<double>(input.length);
  const double tokens = sum(input.tokens);
  const double homes = placement.ranks * static_cast<double>(input.micro_batches);
  Expectation e(placement, shape);
  std::vector<double> listed(static_cast<std::size_t>(input.experts), -1.0);  // < 0: in no list
  for (int64_t g = 0; g < input.codewords(); ++g) {
    const double here = input.tokens[g];
    for (int64_t j = 0; j < input.length; ++j) {
      double& x = listed[input.lists[g * input.length + j]];
      x = std::max(x, 0.0) + here / e.ranks();
    }
    for (int64_t i = 0; i < cover.size(g); ++i) {
      const Visit visit{cover.ranks(g)[i], cover.candidates(g)[i], here};
      const double some = 1 - chances.none(visit.candidates);
      const double selected = static_cast<double>(visit.candidates) * share;  // per token, there
      const double away = here * e.remote();
      e.to(Channel::metadata, visit.rank, 12 * e.remote() * homes * occurs(here * some / homes));
      e.to(Channel::dispatch, visit.rank,
           away * (some * static_cast<double>(4 * shape.dim + 4) + 8 * selected));
      e.pairs(visit.rank, 0, here * selected);
      add_selected_rows(e, shape, chances, visit);
      e.from(Channel::backward_combine, visit.rank,
             away * (some * static_cast<double>(shape.dim * shape.sum_bytes()) + 4 * selected));
    }
  }
  for (int r = 0; r < placement.ranks; ++r) {
    e.pairs(r, tokens / e.ranks() * static_cast<double>(input.length), 0);
  }
  const double gradient = static_cast<double>(4 + shape.dim * shape.sum_bytes());
  const double others = e.ranks() - 1;
  for (int64_t x = 0; x < input.experts; ++x) {
    if (listed[x] < 0) continue;
    const double used = input.active > 1 ? occurs(listed[x] * share) : 0;
    e.to(Channel::copy_requests, placement.home[x], 4 * others);
    e.from(Channel::copy_values, placement.home[x], static_cast<double>(4 * shape.dim) * others);
    e.to(Channel::copy_gradients, placement.home[x], others * used * gradient);
  }
  const std::vector<double> none(static_cast<std::size_t>(placement.ranks), 0.0);
  e.lists(input, none);
  e.all(Channel::dispatch, 0,
        ((shape.balance ? 6.0 : 5.0) * input.micro_batches + 4) * (e.ranks() - 1));
  e.out().candidate_ranks = e.out().selected_ranks;
  return e.finish(tokens, machine);
}

}  // namespace airmoe::scheduler
