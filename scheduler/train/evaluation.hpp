#pragma once
// Validation loss and routing quality, without touching the training state.

#include <cstdint>

#include "scheduler/data/sampler.hpp"
#include "scheduler/moe/quality_probe.hpp"
#include "scheduler/train/engine.hpp"

namespace airmoe::scheduler {

struct EvaluationResult {
  int64_t tokens = 0;      ///< validation tokens; 0 when there is no validation data
  double loss = 0;         ///< mean nats per token
  RoutingQuality quality;  ///< means over the MoE layers
};

/// Evaluates a fixed, evenly spread set of validation windows. No jitter, no codebook update.
class Evaluation {
 public:
  /// @param sequences  windows per evaluation (fewer when the validation split is smaller)
  /// @param per_pass   sequences per forward pass over all ranks; bounds the memory
  Evaluation(comm::Communicator& comm, const Sampler& sampler, int64_t context, int64_t sequences,
             int64_t per_pass);

  /// Collective; the same result on all ranks, whatever their number up to rounding. The routing
  /// probe uses tokens of the first pass; without validation data it runs on the first training
  /// windows.
  EvaluationResult run(Model& model, Engine& engine);

 private:
  double pass(Engine& engine, int64_t begin, int64_t end);

  comm::Communicator& comm_;
  const Sampler& sampler_;
  int64_t context_, sequences_, per_pass_;
  Buffer<int32_t> tokens_, targets_;
};

}  // namespace airmoe::scheduler
