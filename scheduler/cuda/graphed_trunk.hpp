#pragma once
// A trunk whose work is launched as a few CUDA graphs: the kernels between two MoE layers are one
// graph, so that a step of small kernels does not wait for the host to launch them one by one. MoE
// layers, whose work depends on the step, are called in between as ever, and so is who waits for
// gradients.

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "scheduler/cuda/trunk.hpp"

namespace airmoe::scheduler::cuda {

template <class T>
class GraphedTrunk {
 public:
  /// As DeviceTrunk. graphs: false launches every kernel by itself.
  GraphedTrunk(const ModelConfig& config, ParameterSet& host, DeviceParameters<T>& parameters,
               std::vector<DeviceMoeSlot<T>*> slots, bool graphs);
  ~GraphedTrunk();

  /// As DeviceTrunk::announce_gradients; before the first pass. A graph ends at every call.
  void announce_gradients(std::vector<int64_t> layers,
                          typename DeviceTrunk<T>::GradientsComplete complete);
  /// As DeviceTrunk::forward_backward, the same bits. The first call with these arguments runs
  /// directly, the second records, later ones replay; other arguments start anew.
  void forward_backward(const int32_t* tokens, const int32_t* targets, int64_t sequences,
                        float loss_scale, double* loss, cudaStream_t stream);
  void forward_loss(const int32_t* tokens, const int32_t* targets, int64_t sequences, double* loss,
                    cudaStream_t stream) {
    trunk_->forward_loss(tokens, targets, sequences, loss, stream);
  }

 private:
  class Recorder;
  struct Arguments {
    const int32_t *tokens = nullptr, *targets = nullptr;
    int64_t sequences = -1;
    float loss_scale = 0;
    double* loss = nullptr;
    cudaStream_t stream = nullptr;
    int64_t bytes = -1;  // of activations: buffers that grow move
    bool operator==(const Arguments&) const = default;
  };
  // A graph and then, but for the last one, a call from in between.
  struct Segment {
    cudaGraphExec_t graph = nullptr;
    std::function<void(cudaStream_t)> call;
  };

  Arguments arguments(const int32_t* tokens, const int32_t* targets, int64_t sequences,
                      float loss_scale, double* loss, cudaStream_t stream) const;
  template <class Call>
  void between(Call call, cudaStream_t stream);
  void end_segment(std::function<void(cudaStream_t)> call, cudaStream_t stream);
  void forget();

  bool graphs_;
  bool recording_ = false;
  std::vector<std::unique_ptr<Recorder>> recorders_;
  std::unique_ptr<DeviceTrunk<T>> trunk_;
  Arguments seen_;
  std::vector<Segment> segments_;
};

}  // namespace airmoe::scheduler::cuda
