#pragma once
// How tokens and experts meet: the options of the exchange.

#include <cstdint>
#include <string>

#include "scheduler/traffic/cost_model.hpp"

namespace airmoe::scheduler {

/// cover: a token goes once to each rank of its codeword's cover. selected: centroids are
/// replicated, the home rank scores, tokens go to the owners of selected experts. gather: no token
/// moves, every rank fetches the experts that its tokens need. automatic: whichever the planner
/// predicts to be fastest; only ever resolved to one of the three.
enum class Exchange : uint8_t { cover, selected, gather, automatic };

struct ExchangeConfig {
  Exchange exchange = Exchange::automatic;
  /// Experts with a row on a rank, as a multiple of E / ranks; 1: no copies. Bounds `cover` and
  /// what `automatic` may choose.
  double copy_budget = 1.0;
  int64_t replan_every = 50;   ///< optimizer steps between placements
  bool move_homes = true;      ///< placements may move experts to other owners
  int64_t overlap_chunks = 4;  ///< pieces of a micro-batch whose exchange and compute overlap
  int64_t rank_cap = 0;  ///< most owners that a shortlist may span; 0: any. Changes the model.
  MachineConstants machine = {};  ///< what automatic predicts time with
};

/// "cover", "selected", "gather" or "auto"; parsing throws Error(ExitCode::usage) for another name.
const char* name_of(Exchange exchange);
Exchange parse_exchange(const std::string& name);

}  // namespace airmoe::scheduler
