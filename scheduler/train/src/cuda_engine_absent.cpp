#include "comm/base/error.hpp"
#include "scheduler/train/cuda_engine.hpp"

namespace airmoe::scheduler {

bool has_cuda() {
  return false;
}

std::unique_ptr<Engine> make_cuda_engine(comm::Communicator&, Model&, const TrainConfig&) {
  fail(ExitCode::config,
       "--device cuda: this build has no CUDA: give --device cpu, or build with "
       "AIRMOE_WITH_CUDA=ON");
}

}  // namespace airmoe::scheduler
