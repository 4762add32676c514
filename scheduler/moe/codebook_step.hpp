#pragma once
// One k-means step of a replicated codebook over the tokens of all ranks (paper, "Codebook").

#include <cstdint>
#include <span>
#include <vector>

#include "comm/base/buffer.hpp"
#include "comm/base/random.hpp"
#include "comm/communicator.hpp"
#include "router/assign.hpp"
#include "router/codebook.hpp"

namespace airmoe::scheduler {

/// Tokens of a micro-batch and where this rank's stand among them.
struct TokenRange {
  int64_t global_tokens = 0;  ///< over all ranks
  int64_t first = 0;          ///< global index of this rank's token 0
};

class CodebookStep {
 public:
  explicit CodebookStep(comm::Communicator& comm) : comm_(comm) {}

  /// Collective. Codewords become tokens of the global batch, drawn without repetition (with
  /// repetition once there are fewer tokens than codewords); the count of each starts at its fair
  /// share of the tokens, at least 1. Throws Error when the batch has no tokens.
  void initialise(router::Codebook& codebook, ConstMatrix hidden, const TokenRange& range,
                  const RandomStream& stream);

  /// Collective. Assigns the tokens, updates the codebook with the statistics of all ranks and
  /// restarts dead codewords from tokens of the global batch, no token twice (at most one codeword
  /// per token; the others wait for the next call). Every rank ends with the same bits, whatever
  /// the rank count.
  /// @return the restarted codewords, ascending; valid until the next call
  std::span<const int32_t> update(router::Codebook& codebook, ConstMatrix hidden,
                                  const TokenRange& range, const RandomStream& stream,
                                  router::AssignWorkspace& workspace);

 private:
  // Rows [count, d] of global tokens permutation(0 .. count-1), modulo the number of tokens.
  ConstMatrix fetch_tokens(ConstMatrix hidden, const TokenRange& range, const RandomStream& stream,
                           int64_t count);

  comm::Communicator& comm_;
  Buffer<int32_t> codeword_;
  Buffer<int64_t> statistics_;
  Buffer<float> fetched_;
  std::vector<int32_t> dead_;
};

}  // namespace airmoe::scheduler
