#pragma once
// How good the routing of a few tokens was, against exact routing over all experts.

#include <cstdint>

#include "comm/communicator.hpp"
#include "scheduler/moe/moe_layer.hpp"

namespace airmoe::scheduler {

/// Means over the probed tokens (paper, "Mass recall and its lower bound"; shared terms in
/// docs/glossary.md). pi is the softmax over all experts' scores.
struct RoutingQuality {
  int64_t tokens = 0;
  double overlap = 0;            ///< |selected and exact top K| / K
  double topk_mass_ratio = 0;    ///< pi(selected) / pi(exact top K)
  double mass_recall = 0;        ///< pi(shortlist of the token's codeword)
  double mass_recall_bound = 0;  ///< its lower bound, exact-numerator form
};

/// Collective, after forward() without jitter and capture(). Probes at most `max_tokens` tokens,
/// evenly spread over the global batch, so the result does not depend on the rank count. This is
/// the exact oracle: work max_tokens x E x d spread over the ranks. Same result on all ranks.
RoutingQuality probe_routing(comm::Communicator& comm, const MoeLayer& layer,
                             const RoutingRecord& record, int64_t max_tokens);

}  // namespace airmoe::scheduler
