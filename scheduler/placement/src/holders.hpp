#pragma once
// Which ranks have a row of each expert while a placement is made: its owner and the ranks where
// parts use it.

#include <cstdint>
#include <span>
#include <vector>

#include "comm/base/buffer.hpp"

namespace airmoe::scheduler::placement {

class Holders {
 public:
  /// One rank with a row of an expert, and how many parts use it there. The first holder of an
  /// expert is its owner, once owners are set, even if nothing uses the expert there.
  struct Holder {
    uint16_t rank = 0;
    uint16_t uses = 0;
  };

  /// @param uses  upper bound of the parts that use an expert. Shape: [E]
  Holders(std::span<const int32_t> uses, int ranks);

  /// Sets all owners. Only one call with owners is made while parts are being used; a second call
  /// replaces them.
  void set_homes(std::span<const int32_t> home);
  bool has_homes() const { return has_homes_; }

  std::span<const Holder> of(int32_t expert) const {
    const Row& row = row_[expert];
    return {holder_.data() + row.begin, static_cast<std::size_t>(row.count)};
  }
  /// Brings an expert's holders towards the cache: lists visit experts in no order.
  void prefetch(int32_t expert) const { __builtin_prefetch(holder_.data() + row_[expert].begin); }
  /// True if a part that uses the expert there could leave without ending that row.
  bool stays_without(const Holder& holder, bool first) const {
    return holder.uses > 1 || (first && has_homes_);
  }
  int home(int32_t expert) const { return holder_[row_[expert].begin].rank; }
  bool owns(int32_t expert, int rank) const { return has_homes_ && home(expert) == rank; }
  /// Owned experts (once owners are set) plus copies. Shape: [R]
  std::span<const int64_t> rows() const { return rows_; }

  /// Parts that use the expert on the rank.
  int uses(int32_t expert, int rank) const {
    for (const Holder& holder : of(expert)) {
      if (holder.rank == rank) return holder.uses;
    }
    return 0;
  }

  /// Many uses at once, of experts that nothing uses yet: `experts` of each rank in turn, those of
  /// rank r in [begin[r], begin[r + 1]), an expert once per part.
  void use_all(std::span<const int32_t> experts, std::span<const int64_t> begin);

  /// One more part uses the expert on the rank; it gets a row there if it had none.
  /// @return parts that use it there now
  int use(int32_t expert, int rank) {
    Row& row = row_[expert];
    Holder* list = holder_.data() + row.begin;
    for (int64_t i = 0; i < row.count; ++i) {
      if (list[i].rank == rank) {
        return ++list[i].uses;
      }
    }
    list[row.count++] = {static_cast<uint16_t>(rank), 1};
    ++rows_[rank];
    return 1;
  }
  /// One part less, of at least one; a copy without uses is dropped.
  /// @return parts that use it there now
  int release(int32_t expert, int rank) {
    Row& row = row_[expert];
    Holder* list = holder_.data() + row.begin;
    for (int64_t i = 0;; ++i) {
      if (list[i].rank != rank) continue;
      const int left = --list[i].uses;
      if (left == 0 && !(has_homes_ && i == 0)) {
        list[i] = list[--row.count];
        --rows_[rank];
      }
      return left;
    }
  }

 private:
  struct Row {
    int64_t begin;  // in holder_
    int64_t count;
  };

  bool has_homes_ = false;
  Buffer<Row> row_;
  Buffer<Holder> holder_;
  std::vector<int64_t> rows_;
};

}  // namespace airmoe::scheduler::placement
