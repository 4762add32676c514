#pragma once
// Barrier that does not block, by dissemination: in round k a rank tells the one 2^k after it that
// it is here, and hears from the one 2^k before it. (D. Hensgen, R. Finkel, U. Manber, "Two
// algorithms for barrier synchronization", 1988.)

#include "comm/src/ucx_operations.hpp"

namespace airmoe::comm {

class UcxBarrier {
 public:
  explicit UcxBarrier(UcxWorker& worker) : worker_(worker), operations_(worker) {}

  /// Enters.
  void start();
  /// Goes on as far as possible without waiting; true when all ranks have entered.
  bool advance();
  /// Who is waited for; that one may itself be waiting for another.
  std::string missing() const { return operations_.missing(); }

 private:
  void post_round();

  UcxWorker& worker_;
  UcxOperations operations_;
  int distance_ = 1;
  std::byte out_{};
  std::byte in_{};
};

}  // namespace airmoe::comm
