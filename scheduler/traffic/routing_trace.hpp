#pragma once
// Who was selected for each token of a batch, and where tokens live: what
// traffic is counted from.

#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace airmoe::scheduler {

/// The routing of T tokens in one MoE layer. It may come from a trace, a
/// capture or a generator.
struct RoutingTrace {
  int64_t experts = 0;             ///< E
  int64_t active = 0;              ///< K
  int64_t length = 0;              ///< M
  std::vector<int32_t> codeword;   ///< Shape: [T]
  std::vector<int32_t> expert;     ///< selected experts; each in its token's list. Shape: [T, K]
  std::vector<int32_t> home_rank;  ///< as recorded; may be empty. Shape: [T]
  std::vector<int32_t> lists;      ///< shortlists in list order. Shape: [G, M]
  bool synthetic = false;          ///< generated, not recorded

  int64_t tokens() const { return std::ssize(codeword); }
  int64_t codewords() const { return length == 0 ? 0 : std::ssize(lists) / length; }
  std::span<const int32_t> selected(int64_t token) const {
    return {expert.data() + token * active, static_cast<std::size_t>(active)};
  }
  std::span<const int32_t> list(int64_t g) const {
    return {lists.data() + g * length, static_cast<std::size_t>(length)};
  }

  /// Local. Throws Error(ExitCode::bad_data), beginning with `name`, unless all
  /// shapes and ids fit together: ids below their limits, lists without
  /// repetition, K distinct selected experts per token that are all in its
  /// list. O(G M + T K); E integers of memory.
  void validate(const std::string& name) const;
  /// Local. Place of each selected expert in its token's list. validate()
  /// passes. Shape: [T, K]
  std::vector<int32_t> positions() const;
  /// Local. Tokens of each codeword. Shape: [G]
  std::vector<int64_t> histogram() const;
};

}  // namespace airmoe::scheduler
