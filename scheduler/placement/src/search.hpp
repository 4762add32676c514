#pragma once
// A placement while it is improved part by part: which rank scores each candidate of each part, who
// holds what because of that, and how much work each rank has.

#include <cstdint>
#include <span>
#include <vector>

#include "comm/base/buffer.hpp"
#include "scheduler/placement/plan.hpp"
#include "scheduler/placement/src/holders.hpp"
#include "scheduler/placement/src/parts.hpp"

namespace airmoe::scheduler::placement {

class Search {
 public:
  /// Nothing is placed. `input` and `parts` must outlive this.
  Search(const PlanInput& input, const Parts& parts, int64_t row_limit);

  const PlanInput& input() const { return input_; }
  const Parts& parts() const { return parts_; }
  const Holders& holders() const { return holders_; }
  std::span<const int32_t> list(int64_t part) const {
    return input_.lists.subspan(static_cast<std::size_t>(parts_.codeword[part] * input_.length),
                                static_cast<std::size_t>(input_.length));
  }
  /// Rank of each entry of a placed part. Shape: [M]
  std::span<const uint16_t> ranks(int64_t part) const {
    return {rank_.data() + part * input_.length, static_cast<std::size_t>(input_.length)};
  }
  /// The same of all parts. Shape: [parts, M]
  std::span<const uint16_t> all_ranks() const { return rank_.span(); }
  bool placed(int64_t part) const { return placed_[part]; }
  /// Rank with most entries of a placed part.
  int primary(int64_t part) const;
  int64_t row_limit() const { return row_limit_; }
  /// No rank has more rows than row_limit().
  bool within_row_limit() const;
  int64_t total_rows() const;
  /// Bytes per step of everything placed.
  double bytes() const;

  /// Owners of all experts; may be called again.
  void set_homes(std::span<const int32_t> home) { holders_.set_homes(home); }

  /// Places all parts, of which none is placed yet; kNotPlaced as first rank leaves a part out.
  /// Much faster than one after the other. Shape: [parts, M]
  void place_all(Buffer<uint16_t> ranks);
  static constexpr uint16_t kNotPlaced = 0xffff;
  /// Scores the entries of a part, placed or not, on the ranks given. Shape: [M]
  void place_as(int64_t part, std::span<const uint16_t> ranks);
  /// Scores all entries on one rank.
  void place_whole(int64_t part, int rank);
  /// Scores the entries at their owners.
  void place_at_homes(int64_t part);
  /// Another rank that has a row of an expert which `rank` does not own.
  int least_loaded_holder(int32_t expert, int rank) const;
  double load(int rank) const { return load_[rank]; }
  double load_limit() const { return load_limit_; }

  /// Scores one entry of a placed part elsewhere.
  void move_entry(int64_t part, int64_t entry, int rank);

  /// Places a part where it costs least, on one rank or several. It stays
  /// where it is if nothing is cheaper. With `strict` no rank gets copies beyond its row limit, and
  /// a part with copies on a rank beyond that must change.
  void place_at_least_cost(int64_t part, bool strict);

 private:
  /// Counts as if the part were not placed: entries that each rank holds anyway (present_), rows
  /// that each rank would not have (own_rows_), entries of the part there (own_entries_).
  void count_without(int64_t part);
  /// Cost of work beyond the limit that comes from the part scoring `entries` on the rank: far
  /// dearer than any bytes, so that such work is least first of all.
  double overload(int64_t part, int rank, int64_t entries) const;
  /// What the placed part costs.
  double cost_now(int64_t part) const;
  /// Entries of the part that each rank can score within the limit (room_).
  void count_room(int64_t part);
  /// Entries of the part that each rank holds anyway (held_), as counted in present_.
  void index_holders(int64_t part);
  /// Ranks that would hold an entry of the part if it were not placed.
  template <class Visit>
  void for_each_holder(int64_t part, int64_t entry, Visit&& visit) const {
    const int32_t expert = list(part)[static_cast<std::size_t>(entry)];
    const int own = placed_[part] ? rank_[part * input_.length + entry] : -1;
    const std::span<const Holders::Holder> holders = holders_.of(expert);
    for (const Holders::Holder& h : holders) {
      if (h.rank != own || holders_.stays_without(h, &h == holders.data())) visit(h.rank);
    }
  }

  const PlanInput& input_;
  const Parts& parts_;
  Holders holders_;
  Buffer<uint16_t> rank_;
  std::vector<char> placed_;
  std::vector<double> load_;
  double elsewhere_;   // share of tokens that do not live on a given rank
  double load_limit_;  // largest work that a rank should have
  int64_t row_limit_;

  // Working memory. Shape: [R]
  std::vector<int64_t> present_, own_rows_, own_entries_, room_;
  std::vector<char> in_cover_;
  std::vector<int> cover_;
  std::vector<int64_t> taken_;       // entries that each rank of cover_ has
  std::vector<int64_t> held_begin_;  // [R + 1]
  Buffer<int32_t> held_;             // entries, by rank that holds them
  std::vector<uint16_t> new_rank_;   // [M]
};

}  // namespace airmoe::scheduler::placement
