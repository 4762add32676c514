#pragma once
// What plan() and replan() share.

#include <cstdint>
#include <vector>

#include "scheduler/placement/plan.hpp"
#include "scheduler/placement/src/search.hpp"

namespace airmoe::scheduler::placement {

/// Work that a rank may have over the mean: below the 1.10 that is promised, because placements
/// stay while tokens drift.
inline constexpr double kLoadLimit = 1.08;

/// The same for groups of several ranks, which have to balance work among them.
inline constexpr double kGroupLimit = 1.04;
/// Experts that a group needs after refinement, as a share of those before.
inline constexpr double kRefinedRows = 0.94;

inline constexpr int kGroupSweeps = 20;  // most; they end when little is saved
/// Entries of lists that groups are found from.
inline constexpr int64_t kSampledEntries = 500'000;

inline constexpr int kCoverSweeps = 2;
/// Entries times rows of an expert from which on there is one sweep: the second saves few per cent.
inline constexpr double kManyVisits = 5e6;

/// Throws unless the input is complete and its options make sense.
void check_input(const PlanInput& input);

/// Share of the copies that a budget allows which a plan leaves for entries of lists to come:
/// without it the next rebuild would already go beyond the budget.
inline constexpr double kPlanReserve = 0.05, kReplanReserve = 0.02;

/// Row limit with that much room left.
int64_t limit_with_reserve(const PlanInput& input, double reserve);

/// True if some rank may have a row more than it owns.
bool allows_copies(const PlanInput& input);

/// @param home  owners, or null: chosen by use
Placement plan_with_copies(const PlanInput& input, const std::vector<int32_t>* home);

/// The search's state as a placement.
Placement placement_of(const Search& search);

}  // namespace airmoe::scheduler::placement
