#pragma once
// The shortlists of one MoE layer, distributed: each rank knows which of its own experts are in
// each list and how many each other rank has there (the cover); nobody holds all lists.

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
  /// @param experts  E, spread over ranks in blocks (BlockPartition)
  /// @param length   M <= E
  Shortlists(comm::Communicator& comm, int64_t codewords, int64_t experts, int64_t length);

  /// Collective. Lists of the codewords `which` (ascending; the same on all ranks) become the exact
  /// global top M of their scores, ties by expert id. Owners score against their own centroids; the
  /// sorted parts meet on the rank that merges the codeword; what comes back is one prefix length
  /// per (codeword, rank). Bytes sent per rank: at most 8 * |which| * min(M, local experts).
  /// @param codebook        unit codewords. Shape: [G, d]
  /// @param unit_centroids  Shape: [local experts, d]
  void rebuild(ConstMatrix codebook, ConstMatrix unit_centroids, std::span<const int32_t> which,
               const std::optional<router::Jitter>& jitter);
  /// Collective. rebuild() of every codeword.
  void rebuild_all(ConstMatrix codebook, ConstMatrix unit_centroids,
                   const std::optional<router::Jitter>& jitter);

  int64_t length() const { return length_; }
  const BlockPartition& experts() const { return experts_; }
  /// Local: candidates of codeword g that live on rank r.
  int32_t candidates(int64_t g, int r) const { return counts_[g * ranks_ + r]; }
  /// Local: ranks that hold at least one candidate of codeword g.
  int32_t cover_size(int64_t g) const { return cover_size_[g]; }
  /// Local: this rank's candidates of codeword g as local expert rows, ascending.
  std::span<const int32_t> resident(int64_t g) const {
    return {resident_.data() + g * stride_, static_cast<std::size_t>(candidates(g, rank_))};
  }

  /// Which codewords this rank merged, and their whole lists in list order (score descending).
  /// Shape: [merged_codewords().size(rank), M]
  const BlockPartition& merged_codewords() const { return merged_; }
  std::span<const int32_t> merged_lists() const { return lists_.span(); }

 private:
  void send_to_mergers(std::span<const int32_t> which);
  void merge(std::span<const int32_t> which);
  void keep_resident(std::span<const int32_t> which);

  comm::Communicator& comm_;
  int rank_;
  int ranks_;
  int64_t length_;
  int64_t stride_;  // most candidates that can live here: min(M, local experts)
  BlockPartition experts_;
  BlockPartition merged_;
  Buffer<int32_t> counts_;      // [G, ranks]
  Buffer<int32_t> cover_size_;  // [G]
  Buffer<int32_t> resident_;    // [G, stride]
  Buffer<int32_t> lists_;       // [merged codewords, M]

  router::LocalTop top_;
  router::ShortlistWorkspace workspace_;
  Buffer<float> picked_codewords_, received_score_;
  Buffer<int32_t> received_expert_, taken_, all_taken_, all_codewords_, own_experts_;
  std::vector<int64_t> send_counts_, recv_counts_, gather_counts_, recv_begin_;
  std::vector<router::TopSlice> slices_;
};

}  // namespace airmoe::scheduler
