#pragma once
// The whole trainable state on one rank: trunk, MoE layers, their parameters.

#include <cstdint>
#include <memory>
#include <vector>

#include "comm/communicator.hpp"
#include "scheduler/moe/moe_layer.hpp"
#include "scheduler/parameter.hpp"
#include "scheduler/residency/block_staging.hpp"
#include "scheduler/store/checkpoint.hpp"
#include "scheduler/trunk/trunk.hpp"

namespace airmoe::scheduler {

/// The arrays of a checkpoint, and the memory of those that exist for it only.
struct StateForSaving {
  std::vector<StateArray> arrays;
  std::vector<Buffer<int32_t>> shortlists;
  BlockStaging staging;  ///< rows of experts by id, where owners have them in another order
};

class Model {
 public:
  /// Collective. Parameters are initialised from `seed`, the same whatever the rank count.
  Model(comm::Communicator& comm, const ModelConfig& config, uint64_t seed, experts::Path path,
        SumPrecision sums, const ExchangeConfig& exchange);

  const ModelConfig& config() const { return config_; }
  ParameterSet& parameters() { return parameters_; }
  Trunk& trunk() { return *trunk_; }
  std::vector<std::unique_ptr<MoeLayer>>& moe_layers() { return moe_layers_; }

  /// Local: tells every MoE layer what the next pass is about.
  void begin_micro_batch(const MicroBatch& batch);
  /// Local: after parameter values changed (optimizer step, restore).
  void parameters_changed();

  /// Collective. Brings the stored shortlists up to date (no jitter) and lists every array of a
  /// checkpoint: values and both moments of each parameter, codebook, counts, sums and shortlist of
  /// each MoE layer. Memory beyond the model, while the result lives: the shortlists, and a copy of
  /// all expert arrays if any expert is not in its block. The pointers stay valid until the next
  /// training step.
  StateForSaving state_for_saving();
  /// Local. The same arrays as destinations, experts by block of id whatever the homes are;
  /// shortlists go to scratch, since lists are rebuilt before use. There are no copies.
  std::vector<StateArray> state_for_restoring();
  /// Local, after a restore: homes are blocks again.
  void restored();

  int64_t parameter_count() const;  ///< over all ranks, replicated ones once

 private:
  // `staging` nullptr: every array as it lies in memory.
  std::vector<StateArray> parameter_arrays(BlockStaging* staging);
  MoeLayer& layer_of(const Parameter& parameter);
  void add_router_arrays(MoeLayer& layer, int32_t* shortlist, std::vector<StateArray>& arrays);

  ModelConfig config_;
  ParameterSet parameters_;
  std::vector<std::unique_ptr<MoeLayer>> moe_layers_;
  std::unique_ptr<Trunk> trunk_;
  std::vector<Buffer<int32_t>> restored_shortlists_;
};

}  // namespace airmoe::scheduler
