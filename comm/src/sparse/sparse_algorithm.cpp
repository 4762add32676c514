#include "comm/sparse_algorithm.hpp"

#include <vector>

#include "comm/base/error.hpp"

namespace airmoe::comm {

const char* name_of(SparseAlgorithm algorithm) {
  switch (algorithm) {
    case SparseAlgorithm::automatic:
      return "automatic";
    case SparseAlgorithm::pairwise:
      return "pairwise";
    case SparseAlgorithm::nbx:
      return "nbx";
    case SparseAlgorithm::neighbour:
      return "neighbour";
    case SparseAlgorithm::node_aware:
      return "node_aware";
  }
  return "unknown";
}

SparseAlgorithm parse_sparse_algorithm(const std::string& name, const char* option) {
  std::vector<const char*> known;
  for (const SparseAlgorithm algorithm : kSparseAlgorithms) {
    if (name == name_of(algorithm)) return algorithm;
    known.push_back(name_of(algorithm));
  }
  fail(ExitCode::usage, "{} {}: unknown; choose one of {}", option, name, fmt::join(known, ", "));
}

SparseAlgorithm resolve(SparseAlgorithm algorithm, int ranks, int nodes) {
  if (algorithm != SparseAlgorithm::automatic) return algorithm;
  if (nodes > kMostPairwiseRanks) return SparseAlgorithm::nbx;
  return nodes < ranks ? SparseAlgorithm::node_aware : SparseAlgorithm::pairwise;
}

}  // namespace airmoe::comm
