#include "scheduler/train/engine.hpp"

#include "scheduler/train/cuda_engine.hpp"
#include "scheduler/train/host_engine.hpp"

namespace airmoe::scheduler {

std::unique_ptr<Engine> make_engine(comm::Communicator& comm, Model& model,
                                    const TrainConfig& config) {
  if (config.device == DeviceKind::cuda) return make_cuda_engine(comm, model, config);
  return std::make_unique<HostEngine>(comm, model, config);
}

}  // namespace airmoe::scheduler
