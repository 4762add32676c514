#pragma once
// How a sparse exchange finds out who sends to whom.

#include <array>
#include <cstdint>
#include <string>

namespace airmoe::comm {

/// All give the same result. docs/performance/network.md has what they cost.
///
/// pairwise    every rank tells every other how much it will send, in one message that carries the
///             data too when that is short: ranks - 1 messages, one latency, no barrier.
/// nbx         only those that have something to say speak (synchronous sends), a barrier that does
///             not block ends it: as many messages as there are peers, log2(ranks) latencies more.
/// neighbour   MPI's neighbourhood collectives on a graph that is kept while it holds all peers.
/// node_aware  within a node through shared memory; short messages to another node are gathered on
///             a local leader, travel as one message per pair of nodes and are spread there. Each
///             rank of a node leads for other nodes of its own. Long messages go straight.
/// automatic   node_aware where a node holds several ranks or all ranks, else pairwise up to
///             kMostPairwiseRanks ranks, else nbx.
enum class SparseAlgorithm : uint8_t { automatic, pairwise, nbx, neighbour, node_aware };

inline constexpr std::array kSparseAlgorithms = {
    SparseAlgorithm::automatic, SparseAlgorithm::pairwise, SparseAlgorithm::nbx,
    SparseAlgorithm::neighbour, SparseAlgorithm::node_aware};

/// Nodes up to which `automatic` lets every node speak to every other.
inline constexpr int kMostPairwiseRanks = 64;

/// "automatic", "pairwise", ... as in the enumeration.
const char* name_of(SparseAlgorithm algorithm);
/// Throws Error(ExitCode::usage) that names `option` and all values.
SparseAlgorithm parse_sparse_algorithm(const std::string& name, const char* option);

/// What `automatic` stands for; the others stand for themselves. Local.
/// @param nodes  nodes that the ranks live on
SparseAlgorithm resolve(SparseAlgorithm algorithm, int ranks, int nodes);

}  // namespace airmoe::comm
