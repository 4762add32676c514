#pragma once
// A real MoE layer with made-up clustered tokens, codewords and experts, whose routing stays the
// same from step to step.

#include <memory>
#include <string>
#include <vector>

#include "comm/stats_communicator.hpp"
#include "scheduler/moe/moe_layer.hpp"
#include "scheduler/traffic/routing_trace.hpp"

namespace airmoe::study {

struct ClusteredShape {
  scheduler::ModelConfig model;  ///< its codebook is fixed: decay 1, nothing dies
  int64_t tokens_per_rank = 0;   ///< of a micro-batch
  int micro_batches = 1;
  scheduler::SumPrecision sums = scheduler::SumPrecision::f64;
  uint64_t seed = 1;
};

class ClusteredLayer {
 public:
  /// Collective. Counts of the codebook are those of the tokens.
  ClusteredLayer(comm::Communicator& comm, const ClusteredShape& shape,
                 const scheduler::ExchangeConfig& exchange);

  /// Collective. One optimizer step: forward and backward of every micro-batch, gradients of copies
  /// back, copies and lists dropped; parameters do not change. Statistics are those of this step.
  /// @return seconds of the slowest rank
  double step();
  /// Collective. The routing of such a step, of all ranks: tokens by micro-batch, then by rank.
  scheduler::RoutingTrace routing();
  /// Uses this placement from the next step on; the same on all ranks.
  void place(const scheduler::Placement& placement, scheduler::Exchange exchange);

  const comm::StatsCommunicator& stats() const { return comm_; }

 private:
  void set_centroids();
  void make_tokens();
  void micro_batch(int index);

  ClusteredShape shape_;
  comm::StatsCommunicator comm_;
  scheduler::ParameterSet parameters_;
  scheduler::MoeLayer layer_;
  std::vector<float> centre_;  // [G, d]
  std::vector<float> tokens_;  // [micro_batches, tokens_per_rank, d]
  std::vector<float> d_out_, out_, d_hidden_;
  scheduler::RoutingTrace* recording_ = nullptr;
};

}  // namespace airmoe::study
