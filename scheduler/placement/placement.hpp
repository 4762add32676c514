#pragma once
// Which rank owns each expert and which ranks take the tokens of each codeword.
//
// Words: a *part* is a share of a codeword's tokens; a codeword has one part unless it is too heavy
// for one rank. Parts are numbered through: part p belongs to one codeword. The *cover* of a part
// is the set of ranks that score at least one of its candidates; each candidate is scored on
// exactly one of them. A rank that scores a candidate it does not own holds a *copy* of it.

#include <cstdint>
#include <vector>

namespace airmoe::scheduler {

struct Placement {
  int ranks = 1;
  /// Owner of each expert; every rank owns BlockPartition{E, ranks}.size(rank) experts. Shape: [E]
  std::vector<int32_t> home;
  /// Parts of codeword g: [part_begin[g], part_begin[g + 1]), at least one. Shape: [G + 1]
  std::vector<int32_t> part_begin;
  /// Rank of a part that takes candidates which enter the list later. Shape: [parts]
  std::vector<int32_t> primary;
  /// False: candidates are scored by their owners only, there are no copies.
  bool copies = false;
  /// Rank that scores the j-th entry of the codeword's list, per part. Empty without copies (then
  /// it is the owner). Shape: [parts, M]
  std::vector<uint16_t> candidate_rank;

  int64_t codewords() const { return static_cast<int64_t>(part_begin.size()) - 1; }
  int64_t parts() const { return part_begin.empty() ? 0 : part_begin.back(); }
};

}  // namespace airmoe::scheduler
