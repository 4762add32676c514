#pragma once
// Routing that nobody recorded: clustered token states and experts, for shapes too large to train
// here. Its lists overlap about as those of trained models do; it is no substitute for a trace.

#include <cstdint>

#include "scheduler/traffic/routing_trace.hpp"

namespace airmoe::scheduler {

struct SyntheticRouting {
  int64_t experts = 65536;  ///< E
  int64_t active = 512;     ///< K
  int64_t length = 2048;    ///< M
  int64_t codewords = 512;  ///< G
  int64_t tokens = 8192;    ///< T
  double zipf = 0.7;        ///< codeword of popularity rank i has i^-zipf of the tokens
  double spread = 1.4;      ///< distance of codewords and experts from their cluster's centre
  uint64_t seed = 1;

  /// Throws Error(ExitCode::usage) naming the value that does not fit.
  void validate() const;
};

/// Local, deterministic. Codewords and experts are unit vectors of 24 dimensions around centres of
/// clusters (16 codewords each; experts by the popularity of the cluster); a list is the best M
/// experts of the clusters nearest to the codeword; a token is its codeword plus noise and selects
/// the best K of the list. Tokens come in sequences of 64 that prefer one cluster. O(G * 4 M + T M)
/// products.
RoutingTrace make_synthetic(const SyntheticRouting& options);

}  // namespace airmoe::scheduler
