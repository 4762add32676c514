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
    return {holder_.data() + begin_[expert], static_cast<std::size_t>(count_[expert])};
  }
  int home(int32_t expert) const { return holder_[begin_[expert]].rank; }
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

  /// One more part uses the expert on the rank; it gets a row there if it had none.
  /// @return parts that use it there now
  int use(int32_t expert, int rank) {
    Holder* list = holder_.data() + begin_[expert];
    const int count = count_[expert];
    for (int i = 0; i < count; ++i) {
      if (list[i].rank == rank) {
        return ++list[i].uses;
      }
    }
    list[count] = {static_cast<uint16_t>(rank), 1};
    ++count_[expert];
    ++rows_[rank];
    return 1;
  }
  /// One part less, of at least one; a copy without uses is dropped.
  /// @return parts that use it there now
  int release(int32_t expert, int rank) {
    Holder* list = holder_.data() + begin_[expert];
    for (int i = 0;; ++i) {
      if (list[i].rank != rank) continue;
      const int left = --list[i].uses;
      if (left == 0 && !(has_homes_ && i == 0)) {
        list[i] = list[--count_[expert]];
        --rows_[rank];
      }
      return left;
    }
  }

 private:
  bool has_homes_ = false;
  Buffer<int64_t> begin_;
  Buffer<uint16_t> count_;
  Buffer<Holder> holder_;
  std::vector<int64_t> rows_;
};

}  // namespace airmoe::scheduler::placement
