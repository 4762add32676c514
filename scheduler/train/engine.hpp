#pragma once
// What does the arithmetic of a training step: the processor (host_engine.hpp) or a CUDA device.
// The host Model holds the parameters before the first step and whenever bring_to_host() was
// called.

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "scheduler/train/model.hpp"
#include "scheduler/train/train_config.hpp"

namespace airmoe::scheduler {

class Engine {
 public:
  virtual ~Engine() = default;

  /// Collective. Forward and backward of this rank's sequences; gradients and loss add up until
  /// finish_gradients(). Shapes of tokens and targets: [sequences * context].
  virtual void micro_batch(std::span<const int32_t> tokens, std::span<const int32_t> targets,
                           int64_t sequences, const MicroBatch& batch) = 0;

  struct Sums {
    double loss = 0;     ///< of this rank's tokens since the last call, in nats
    double squares = 0;  ///< of gradients; the sum over ranks is the squared global norm
  };
  /// Collective, once per optimizer step: gradients over all ranks are complete; counters of the
  /// host model's MoE layers are up to date.
  virtual Sums finish_gradients() = 0;
  /// Local: AdamW with the gradient scaled to norm config.clip at most. `gradient_norm` is finite.
  virtual void update(double learning_rate, int64_t step, double gradient_norm) = 0;

  /// Collective. Loss of this rank's sequences without gradients; `batch` is no training batch.
  virtual double forward_loss(std::span<const int32_t> tokens, std::span<const int32_t> targets,
                              int64_t sequences, const MicroBatch& batch) = 0;
  /// Collective, after a forward: routing of MoE layer `index` (of Model::moe_layers()).
  virtual void capture(std::size_t index, RoutingRecord& record) = 0;

  /// What the host model is to have: `current`, to look at, the present values, codebooks and
  /// lists; `evaluation`, to keep, also the moments, and lists without jitter.
  enum class Lists { current, evaluation };
  /// Collective: brings it. After `evaluation`, the next training batch starts with new lists.
  /// Takes host memory for what it brings: of values, and of moments from the first time on.
  virtual void bring_to_host(Lists lists) = 0;
  /// Local: the host model's state is the one to go on from (start, restore).
  virtual void take_from_host() = 0;
  /// Local: moves the selections counted since the last call to the host layers' usage windows.
  virtual void collect_usage() = 0;
  /// Local: for people, for example "NVIDIA H100, bf16"; empty for the processor.
  virtual std::string description() const { return {}; }
  /// Local: bytes sent to other ranks in a phase beside those of the ranks' communicator.
  virtual int64_t bytes_sent(std::string_view /*phase*/) const { return 0; }
  /// Most device memory held so far, in bytes; 0 for the processor.
  virtual int64_t device_bytes_peak() const { return 0; }
};

/// Local. The engine that config.device names, for `model`; state is taken from the host model.
/// Throws Error naming --device when this build or machine lacks it.
std::unique_ptr<Engine> make_engine(comm::Communicator& comm, Model& model,
                                    const TrainConfig& config);

}  // namespace airmoe::scheduler
