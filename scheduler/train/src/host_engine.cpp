#include "scheduler/train/host_engine.hpp"

#include "scheduler/optim/gradient_norm.hpp"

namespace airmoe::scheduler {

HostEngine::HostEngine(comm::Communicator& comm, Model& model, const TrainConfig& config)
    : comm_(comm),
      model_(model),
      adamw_(config.adamw),
      clip_(config.clip),
      gradient_sync_(comm, config.sums) {}

void HostEngine::micro_batch(std::span<const int32_t> tokens, std::span<const int32_t> targets,
                             int64_t sequences, const MicroBatch& batch) {
  model_.begin_micro_batch(batch);
  loss_ += model_.trunk().forward_backward(tokens, targets, sequences, batch.loss_scale);
}

Engine::Sums HostEngine::finish_gradients() {
  for (auto& layer : model_.moe_layers()) layer->finish_gradients();
  gradient_sync_.all_reduce(model_.parameters());
  Sums sums;
  sums.loss = std::exchange(loss_, 0.0);
  sums.squares = local_sum_of_squares(model_.parameters(), comm_.rank() == 0);
  return sums;
}

void HostEngine::update(double learning_rate, int64_t step, double gradient_norm) {
  adamw_step(model_.parameters(), adamw_, static_cast<float>(learning_rate), step,
             static_cast<float>(clip_factor(gradient_norm, clip_)));
  model_.parameters_changed();
}

double HostEngine::forward_loss(std::span<const int32_t> tokens, std::span<const int32_t> targets,
                                int64_t sequences, const MicroBatch& batch) {
  model_.begin_micro_batch(batch);
  return model_.trunk().forward_loss(tokens, targets, sequences);
}

void HostEngine::capture(std::size_t index, RoutingRecord& record) {
  model_.moe_layers()[index]->capture(record);
}

}  // namespace airmoe::scheduler
