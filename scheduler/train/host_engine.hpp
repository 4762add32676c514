#pragma once
// The training step on the processor: the specification.

#include "scheduler/train/engine.hpp"
#include "scheduler/train/gradient_sync.hpp"

namespace airmoe::scheduler {

class HostEngine : public Engine {
 public:
  HostEngine(comm::Communicator& comm, Model& model, const TrainConfig& config);

  void micro_batch(std::span<const int32_t> tokens, std::span<const int32_t> targets,
                   int64_t sequences, const MicroBatch& batch) override;
  Sums finish_gradients() override;
  void update(double learning_rate, int64_t step, double gradient_norm) override;
  double forward_loss(std::span<const int32_t> tokens, std::span<const int32_t> targets,
                      int64_t sequences, const MicroBatch& batch) override;
  void capture(std::size_t index, RoutingRecord& record) override;
  void bring_to_host(Lists) override {}
  void take_from_host() override {}
  void collect_usage() override {}

 private:
  comm::Communicator& comm_;
  Model& model_;
  AdamWOptions adamw_;
  double clip_;
  GradientSync gradient_sync_;
  double loss_ = 0;
};

}  // namespace airmoe::scheduler
