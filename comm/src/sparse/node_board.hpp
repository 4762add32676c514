#pragma once
// Headers through memory that the ranks of a node share: writing costs a copy, waiting one look at
// each peer's counter of rounds.

#include <memory>
#include <vector>

#include "comm/src/sparse/header_carrier.hpp"
#include "comm/src/sparse/shared_memory.hpp"
#include "comm/src/sparse/sparse_route.hpp"

namespace airmoe::comm {

/// Every rank has two sets of slots, one per peer, used in turn. A rank that publishes round n has
/// seen all others publish round n - 1, so all of them are done with round n - 2, whose slots it
/// overwrites.
class NodeBoard final : public HeaderCarrier {
 public:
  /// Collective over `ranks`, ascending ranks of the link that include this one; null on all of
  /// them when they cannot share memory. No message ever has `unused_tag`.
  static std::unique_ptr<NodeBoard> make(const SparseLink& link, std::span<const int> ranks,
                                         int unused_tag);

  int64_t slot_bytes() const override { return slot_bytes_; }
  std::byte* outgoing(std::size_t i) override;
  void publish(std::span<const int64_t> bytes, const char* phase) override;
  void wait(const char* phase) override;
  ConstBytes incoming(std::size_t i) const override;

 private:
  NodeBoard(const SparseLink& link, std::span<const int> ranks, int64_t slot_bytes,
            std::unique_ptr<SharedMemory> memory, int unused_tag);

  // Of the local rank at `place`. Peers are places without one's own.
  int64_t& rounds_of(int place) const;
  int64_t& bytes_from_to(int64_t round, int from, int to) const;
  std::byte* slot_from_to(int64_t round, int from, int to) const;
  int place_of_peer(std::size_t i) const {
    return static_cast<int>(i) < place_ ? static_cast<int>(i) : static_cast<int>(i) + 1;
  }

  SparseLink link_;
  std::vector<int> ranks_;
  int place_ = 0;  // of this rank
  int64_t slot_bytes_;
  int64_t rank_bytes_;  // of the memory of one rank
  std::unique_ptr<SharedMemory> memory_;
  int unused_tag_;
  int64_t round_ = 1;  // the one being written or waited for
};

}  // namespace airmoe::comm
