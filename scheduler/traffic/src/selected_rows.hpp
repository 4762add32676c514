#pragma once
// Traffic of tokens that go to the owners of their selected experts. Private.

#include <cstdint>
#include <vector>

#include "comm/base/error.hpp"
#include "scheduler/traffic/predict.hpp"
#include "scheduler/traffic/src/owner_counts.hpp"

namespace airmoe::scheduler {

/// Counts what each (token, owner rank) sends: in `Channel` c from the home
/// bytes_there(c, n), from the owner bytes_back(c, n), n its selected experts
/// there. Visits each token of the trace once per rank and each token of the
/// batch once.
template <class Bytes>
void count_rows(const RoutingTrace& trace, const TokenSpread& spread, const OwnerCounts& owners,
                Channel channel, bool from_home, Bytes&& bytes_of, StepTraffic& traffic) {
  const int ranks = spread.ranks();
  std::vector<int64_t> total(static_cast<std::size_t>(trace.tokens()), 0), all(total);
  for (int64_t t = 0; t < trace.tokens(); ++t) {
    for_each_in(owners.ranks_of(t),
                [&](int64_t r) { all[t] += bytes_of(owners.at(t, static_cast<int>(r))); });
  }
  const auto home_side = [&](RankTraffic& t) -> int64_t& {
    return from_home ? t.sent : t.received;
  };
  const auto owner_side = [&](RankTraffic& t) -> int64_t& {
    return from_home ? t.received : t.sent;
  };
  BitRows peers(1, ranks);
  for (int h = 0; h < ranks; ++h) {
    RankTraffic& home = traffic.at(channel, h);
    peers.clear();
    for (int u = 0; u < spread.micro_batches(); ++u) {
      peers.clear();
      spread.for_each(u, h, [&](int64_t t) {
        ++total[t];
        unite(peers.row(0), owners.ranks_of(t));
        const int64_t here = owners.at(t, h);
        const int64_t own = here > 0 ? bytes_of(here) : 0;
        home_side(home) += all[t] - own;
        owner_side(home) -= own;
      });
      for_each_in(peers.row(0), [&](int64_t r) {
        if (r != h) ++traffic.at(channel, from_home ? h : static_cast<int>(r)).messages;
      });
    }
  }
  for (int64_t t = 0; t < trace.tokens(); ++t) {
    if (total[t] == 0) continue;
    for_each_in(owners.ranks_of(t), [&](int64_t r) {
      owner_side(traffic.at(channel, static_cast<int>(r))) +=
          total[t] * bytes_of(owners.at(t, static_cast<int>(r)));
    });
  }
}

/// Tokens, pairs and ranks: homes score, owners compute.
StepPrediction selected_load(const RoutingTrace& trace, const TokenSpread& spread,
                             const Placement& placement, const OwnerCounts& owners);

}  // namespace airmoe::scheduler
