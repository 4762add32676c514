#pragma once
// The shortlists of one MoE layer. Every codeword's whole list exists on one rank, the one that
// merges it; who else needs to know what is the business of routes.hpp.

#include <cstdint>
#include <optional>
#include <span>

#include "comm/base/buffer.hpp"
#include "comm/base/matrix_view.hpp"
#include "comm/base/partition.hpp"
#include "comm/communicator.hpp"
#include "router/shortlist.hpp"

namespace airmoe::scheduler {

class Shortlists {
 public:
  /// @param experts   E; rank r owns BlockPartition{E, ranks}.size(r) of them, whichever
  /// @param length    M <= E
  /// @param rank_cap  most owners that a list may span, 0: any. With a cap the list is the exact
  ///                  top M of the experts of the owners that have most of the uncapped list.
  Shortlists(comm::Communicator& comm, int64_t codewords, int64_t experts, int64_t length,
             int64_t rank_cap = 0);

  /// Collective. Lists of the codewords `which` (ascending; the same on all ranks) become the exact
  /// global top M of their scores, ties by expert id. Owners score against their own centroids; the
  /// sorted parts meet on the rank that merges the codeword. Bytes sent per rank: at most
  /// 8 * |which| * min(M, owned experts).
  /// @param codebook        unit codewords. Shape: [G, d]
  /// @param unit_centroids  of the owned experts. Shape: [owned, d]
  /// @param owned_experts   their ids, ascending. Shape: [owned]
  void rebuild(ConstMatrix codebook, ConstMatrix unit_centroids,
               std::span<const int32_t> owned_experts, std::span<const int32_t> which,
               const std::optional<router::Jitter>& jitter);

  int64_t codewords() const { return merged_.total; }
  int64_t length() const { return length_; }
  /// Number of experts by owner.
  const BlockPartition& experts() const { return experts_; }
  /// 0, 1, ..., G - 1: rebuild all.
  std::span<const int32_t> all_codewords() const { return all_codewords_.span(); }

  /// Which codewords this rank merged, and their whole lists in list order (score descending).
  /// Shape: [merged_codewords().size(rank), M]
  const BlockPartition& merged_codewords() const { return merged_; }
  std::span<const int32_t> merged_lists() const { return lists_.span(); }
  /// Local: the list of a codeword that this rank merged.
  std::span<const int32_t> merged_list(int64_t codeword) const {
    return lists_.span().subspan((codeword - merged_.begin(rank_)) * length_, length_);
  }
  /// Local: entries of `which` (ascending) that rank r merges, as [begin, end).
  std::pair<int64_t, int64_t> part_of(std::span<const int32_t> which, int r) const;

  /// Local: replaces the lists that this rank merges, as made elsewhere (a device). Shape as
  /// merged_lists().
  void set_merged(std::span<const int32_t> lists);

  /// Collective. All lists, on every rank. Shape: [G, M]
  void gather_all(std::span<int32_t> lists) const;
  /// Collective. All lists, on one rank; `lists` is ignored on the others.
  void gather_to(int root, std::span<int32_t> lists) const;

 private:
  void send_to_mergers(std::span<const int32_t> which);
  void merge(std::span<const int32_t> which);
  void keep_best_owners(std::span<int32_t> list);

  comm::Communicator& comm_;
  int rank_;
  int ranks_;
  int64_t length_;
  int64_t rank_cap_;
  BlockPartition experts_;
  BlockPartition merged_;
  Buffer<int32_t> lists_;  // [merged codewords, M]

  router::LocalTop top_;
  router::ShortlistWorkspace workspace_;
  Buffer<float> picked_codewords_, received_score_;
  Buffer<int32_t> received_expert_, taken_, all_codewords_;
  std::vector<int64_t> send_counts_, recv_counts_, recv_begin_;
  std::vector<router::TopSlice> slices_;
  std::vector<int32_t> owners_;
};

}  // namespace airmoe::scheduler
