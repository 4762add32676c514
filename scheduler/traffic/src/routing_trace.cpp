#include "scheduler/traffic/routing_trace.hpp"

#include <algorithm>
#include <numeric>

#include "comm/base/error.hpp"

namespace airmoe::scheduler {

namespace {

// Visits the tokens codeword by codeword.
template <class Visit>
void for_each_by_codeword(const RoutingTrace& trace, Visit&& visit) {
  std::vector<int64_t> order(static_cast<std::size_t>(trace.tokens()));
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](int64_t a, int64_t b) { return trace.codeword[a] < trace.codeword[b]; });
  for (const int64_t t : order) visit(t);
}

}  // namespace

void RoutingTrace::validate(const std::string& name) const {
  const auto bad = [&](const std::string& what) { fail(ExitCode::bad_data, "{}: {}", name, what); };
  if (experts < 1 || active < 1 || length < active || length > experts) {
    bad(fmt::format("K = {}, M = {}, E = {} do not fit together (1 <= K <= M <= E)", active, length,
                    experts));
  }
  if (lists.empty() || std::ssize(lists) % length != 0) bad("the lists have no rows of M entries");
  if (std::ssize(expert) != tokens() * active) bad("there are not K selected experts per token");
  if (!home_rank.empty() && std::ssize(home_rank) != tokens()) bad("home ranks miss tokens");
  std::vector<int64_t> seen(static_cast<std::size_t>(experts), -1);
  for (int64_t g = 0; g < codewords(); ++g) {
    for (const int32_t e : list(g)) {
      if (e < 0 || e >= experts) {
        bad(fmt::format("the list of codeword {} has expert {}, of {}", g, e, experts));
      }
      if (seen[e] == g) bad(fmt::format("the list of codeword {} has expert {} twice", g, e));
      seen[e] = g;
    }
  }
  for (int64_t t = 0; t < tokens(); ++t) {
    if (codeword[t] < 0 || codeword[t] >= codewords()) {
      bad(fmt::format("token {} has codeword {}, of {}", t, codeword[t], codewords()));
    }
    if (!home_rank.empty() && home_rank[t] < 0) {
      bad(fmt::format("token {} has home rank {}", t, home_rank[t]));
    }
  }
  std::fill(seen.begin(), seen.end(), int64_t{-1});
  std::vector<int64_t> taken(static_cast<std::size_t>(experts), -1);
  int64_t current = -1;
  for_each_by_codeword(*this, [&](int64_t t) {
    if (codeword[t] != current) {
      current = codeword[t];
      for (const int32_t e : list(current)) seen[e] = current;
    }
    for (const int32_t e : selected(t)) {
      if (e < 0 || e >= experts || seen[e] != current) {
        bad(
            fmt::format("token {} selected expert {}, which is not in the list "
                        "of its codeword {}",
                        t, e, current));
      }
      if (taken[e] == t) bad(fmt::format("token {} selected expert {} twice", t, e));
      taken[e] = t;
    }
  });
}

std::vector<int32_t> RoutingTrace::positions() const {
  std::vector<int32_t> position(expert.size());
  std::vector<int32_t> place(static_cast<std::size_t>(experts), 0);
  int64_t current = -1;
  for_each_by_codeword(*this, [&](int64_t t) {
    if (codeword[t] != current) {
      current = codeword[t];
      const std::span<const int32_t> entries = list(current);
      for (std::size_t j = 0; j < entries.size(); ++j) place[entries[j]] = static_cast<int32_t>(j);
    }
    for (int64_t k = t * active; k < (t + 1) * active; ++k) position[k] = place[expert[k]];
  });
  return position;
}

std::vector<int64_t> RoutingTrace::histogram() const {
  std::vector<int64_t> count(static_cast<std::size_t>(codewords()), 0);
  for (const int32_t g : codeword) ++count[g];
  return count;
}

}  // namespace airmoe::scheduler
