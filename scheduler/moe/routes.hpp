#pragma once
// Which ranks take the tokens of each part of each codeword, and which of its candidates each of
// them scores (placement.hpp). Every rank knows the covers and the number of candidates per rank;
// the candidates themselves are known where they are scored.

#include <cstdint>
#include <span>
#include <vector>

#include "comm/communicator.hpp"
#include "scheduler/exchange_config.hpp"
#include "scheduler/moe/shortlists.hpp"
#include "scheduler/placement/placement.hpp"
#include "scheduler/residency/expert_residency.hpp"

namespace airmoe::scheduler {

class Routes {
 public:
  /// One part per codeword, every candidate scored by its owner, until a placement is set.
  Routes(comm::Communicator& comm, ExpertResidency& residency, int64_t codewords, int64_t length);

  /// Local, the same on all ranks, before an update() of all lists. gather: every token is its own
  /// rank's, whatever the placement. selected and gather: every rank gets all lists.
  void set_exchange(Exchange exchange) { exchange_ = exchange; }

  /// Collective. Takes over parts, primaries and candidates' ranks from `placement` of rank 0
  /// (ignored elsewhere), which was made for the present lists. Homes are the caller's business.
  void set_placement(const Placement& placement, const Shortlists& lists);

  /// Collective. The lists of the codewords `which` changed: a candidate that stayed keeps its
  /// rank, a new one goes to its owner if that is in the part's cover, else to the part's primary;
  /// without copies always to its owner. Afterwards needed() says what has to be resident here.
  /// Bytes sent: 4 per candidate and part to the rank that scores it, a table of counts to all.
  void update(const Shortlists& lists, std::span<const int32_t> which);
  /// Local: experts that the parts of the last update() need on this rank; repetitions are
  /// possible.
  std::span<const int32_t> needed() const { return {id_.data() + needed_begin_, needed_count()}; }
  /// Local, gather only: these codewords occur among this rank's tokens. Afterwards needed() and
  /// bind() are about those that did not since all lists were updated.
  void require(std::span<const int32_t> codewords);
  /// Local, once they are resident: looks their rows up.
  void bind();

  int64_t parts() const { return static_cast<int64_t>(codeword_of_part_.size()); }
  int32_t part_begin(int64_t codeword) const { return part_begin_[codeword]; }
  int32_t codeword(int64_t part) const { return codeword_of_part_[part]; }
  bool copies() const { return copies_; }
  Exchange exchange() const { return exchange_; }
  /// Local: candidates of a part that rank r scores, for tokens of this rank.
  int32_t candidates(int64_t part, int r) const {
    if (exchange_ == Exchange::gather) return r == rank_ ? static_cast<int32_t>(length_) : 0;
    return counts_[part * ranks_ + r];
  }
  /// Local: ranks that score at least one candidate of the part.
  int32_t cover_size(int64_t part) const {
    return exchange_ == Exchange::gather ? 1 : cover_size_[part];
  }
  /// Local, selected and gather only: a codeword's candidates by ascending id. Shape: [M]
  std::span<const int32_t> list(int64_t codeword) const {
    return std::span<const int32_t>(all_lists_).subspan(codeword * length_, length_);
  }
  /// Local: this rank's candidates of a part as local rows, by ascending expert id.
  std::span<const int32_t> resident(int64_t part) const {
    return {row_.data() + slot_[part], static_cast<std::size_t>(candidates(part, rank_))};
  }

 private:
  std::size_t needed_count() const { return id_.size() - static_cast<std::size_t>(needed_begin_); }
  void gather_lists(const Shortlists& lists, std::span<const int32_t> which);
  // entries_ = (id, rank) of the part's candidates by ascending id.
  void assign(int64_t part, std::span<const int32_t> list);

  comm::Communicator& comm_;
  ExpertResidency& residency_;
  int rank_, ranks_;
  int64_t length_;
  Exchange exchange_ = Exchange::cover;
  bool copies_ = false;
  std::vector<int32_t> part_begin_, codeword_of_part_, primary_;

  // Merging rank: the candidates of each part and their ranks, by ascending id. Only with copies.
  int64_t first_part_ = 0;                            // of this rank's merged codewords
  std::vector<int32_t> assigned_id_, assigned_rank_;  // [merged parts, M]

  std::vector<int32_t> counts_, cover_size_;  // [parts, ranks], [parts]
  std::vector<int64_t> slot_;                 // [parts]: first of its resident ids and rows, or -1
  std::vector<int32_t> all_lists_;            // [G, M], each by ascending id
  std::vector<int32_t> id_, row_;
  int64_t needed_begin_ = 0;

  std::vector<std::pair<int32_t, int32_t>> entries_;  // (id, rank) of one part
  std::vector<std::vector<int32_t>> outgoing_;        // to each rank
  std::vector<comm::Send<int32_t>> sends_;
  comm::Inbox<int32_t> inbox_;
  std::vector<int32_t> my_counts_, all_counts_;
  std::vector<int64_t> gather_counts_;
  std::vector<uint8_t> in_cover_;  // [ranks]
  std::vector<int32_t> my_lists_, gathered_;
};

}  // namespace airmoe::scheduler
