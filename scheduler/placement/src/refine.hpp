#pragma once
// Sweeps over all parts that lower the cost of a placement, and the row limit.

#include <cstdint>
#include <vector>

#include "scheduler/placement/src/search.hpp"

namespace airmoe::scheduler::placement {

/// Gives each part of `order` that has tokens its cheapest cover. With `strict` no rank gets copies
/// beyond its row limit.
void refine_covers(Search& search, const std::vector<int32_t>& order, bool strict);

/// Brings the work of every rank within the limit, as far as that goes: entries move within their
/// covers first, then covers change.
void balance_work(Search& search, const std::vector<int32_t>& order);

/// Brings every rank within its row limit: copies that cost few tokens a wider cover go to the
/// owners.
void meet_row_limit(Search& search);

}  // namespace airmoe::scheduler::placement
