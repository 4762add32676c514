#include "scheduler/placement/src/home_swaps.hpp"

#include <algorithm>
#include <numeric>
#include <tuple>
#include <utility>

namespace airmoe::scheduler::placement {

namespace {

/// An expert whose owner does not use it and that one of its users would like to own.
struct Wish {
  int32_t from, to, expert;
  bool operator<(const Wish& o) const {
    return std::tie(from, to, expert) < std::tie(o.from, o.to, o.expert);
  }
};

}  // namespace

std::vector<int32_t> swap_homes(const Holders& holders, const std::vector<int32_t>& home, int ranks,
                                int64_t most_moved) {
  std::vector<Wish> wishes;
  std::vector<std::vector<int32_t>> unused(static_cast<std::size_t>(ranks));  // by anybody
  for (std::size_t i = 0; i < home.size(); ++i) {
    const auto e = static_cast<int32_t>(i);
    const std::span<const Holders::Holder> held = holders.of(e);
    if (held.front().uses > 0) continue;
    if (held.size() == 1) unused[home[i]].push_back(e);
    for (const Holders::Holder& user : held.subspan(1)) wishes.push_back({home[i], user.rank, e});
  }
  std::sort(wishes.begin(), wishes.end());
  // First wish between each pair of ranks that may still be open, at the place of the pair's first.
  std::vector<std::size_t> open(wishes.size());
  std::iota(open.begin(), open.end(), std::size_t{0});

  std::vector<int32_t> out = home;
  int64_t moved = 0;
  for (const Wish& wish : wishes) {
    if (moved + 2 > most_moved) break;
    if (out[wish.expert] != wish.from) continue;
    int32_t other = -1;
    if (auto& free = unused[wish.to]; !free.empty()) {
      other = free.back();  // as well off at any other rank
      free.pop_back();
      unused[wish.from].push_back(other);
    } else {
      const auto pair = std::lower_bound(wishes.begin(), wishes.end(), Wish{wish.to, wish.from, 0});
      if (pair == wishes.end()) continue;
      std::size_t& next = open[static_cast<std::size_t>(pair - wishes.begin())];
      for (; next < wishes.size() && other < 0; ++next) {
        const Wish& back = wishes[next];
        if (back.from != wish.to || back.to != wish.from) break;
        if (out[back.expert] == back.from) other = back.expert;
      }
    }
    if (other < 0) continue;
    std::swap(out[wish.expert], out[other]);
    moved += 2;
  }
  return out;
}

}  // namespace airmoe::scheduler::placement
