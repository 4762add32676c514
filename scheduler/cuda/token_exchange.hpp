#pragma once
// Tokens of a micro-batch to the ranks that have their codewords, and rows back. Every codeword
// belongs to one rank, which scores and computes all its tokens; every rank can read every expert
// (expert_tables.hpp), so a token goes to one rank and meets all its candidates there.

#include <cstdint>
#include <span>
#include <vector>

#include "comm/base/cuda/device_buffer.hpp"
#include "comm/base/cuda/routed.hpp"
#include "comm/base/cuda/stream.hpp"
#include "comm/cuda/device_communicator.hpp"
#include "router/cuda/order.hpp"

namespace airmoe::scheduler::cuda {

/// Which rank takes a codeword's tokens: heaviest first, in classes an eighth apart, to the rank
/// with least so far. Local, host.
class CodewordBalance {
 public:
  /// The same on all ranks for the same counts. Shapes: [G]. Valid until the next call.
  std::span<const int32_t> owners(std::span<const int64_t> tokens, int ranks);

 private:
  std::vector<int32_t> order_, owner_;
  std::vector<int64_t> load_;
};

class TokenExchange {
 public:
  TokenExchange(comm::cuda::DeviceCommunicator& comm, int64_t codewords);

  /// Collective, asynchronous: sorts the home tokens by codeword; all ranks learn how many tokens
  /// of which codeword each has.
  /// @param codeword  of the home tokens; stays as it is until plan(). Shape: [n]
  void begin(const int32_t* codeword, int64_t n, int64_t first_token, cudaStream_t stream);
  /// Collective, after begin(); the host waits until that has been done. Codewords get their ranks,
  /// by the tokens of this very batch; then codewords and indices of the tokens go out on `stream`.
  void plan(cudaStream_t stream);
  int64_t received() const { return plan_.received; }
  /// Codeword and global index of the tokens that came, device memory. Shape: [received()]
  const int32_t* codeword() const { return codeword_in_.data(); }
  const int32_t* token_index() const { return index_in_.data(); }

  /// Collective: rows of home tokens to the ranks that compute them. Shapes: home [n, width], away
  /// [received(), width].
  template <class X>
  void send(const X* home, int64_t width, X* away, cudaStream_t stream) {
    comm_.exchange_rows(plan_, home, width, away, stream);
  }
  /// Collective: a row back for each token. Shapes: away [received(), width], home [n, width].
  template <class X>
  void give_back(const X* away, int64_t width, X* home, cudaStream_t stream);

 private:
  comm::cuda::DeviceCommunicator& comm_;
  int64_t codewords_;
  int64_t tokens_ = 0, first_token_ = 0;
  const int32_t* codeword_ = nullptr;
  router::cuda::DeviceOrder order_;
  airmoe::cuda::DeviceBuffer<int32_t> counts_;       // [G], then [ranks, G]
  airmoe::cuda::PinnedBuffer<int32_t> host_counts_;  // [ranks, G]
  airmoe::cuda::Event counted_;
  CodewordBalance balance_;
  std::vector<int64_t> total_, next_;  // [G], [ranks]
  airmoe::cuda::PinnedBuffer<int32_t> host_start_;
  airmoe::cuda::DeviceBuffer<int32_t> start_;   // [G]: where a codeword's tokens are sent
  airmoe::cuda::DeviceBuffer<int32_t> rows_;    // [n]: tokens by rank, then codeword
  airmoe::cuda::DeviceBuffer<int32_t> tag_;     // [n, 2]: codeword, global index
  airmoe::cuda::DeviceBuffer<int32_t> tag_in_;  // [received, 2]
  airmoe::cuda::DeviceBuffer<int32_t> codeword_in_, index_in_;
  airmoe::cuda::DeviceBuffer<unsigned char> returned_;
  comm::cuda::RowPlan plan_;
};

}  // namespace airmoe::scheduler::cuda
