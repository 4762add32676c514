#pragma once
// A trunk whose work is launched as a few CUDA graphs: the kernels between two MoE layers are one
// graph, so that a step of small kernels does not wait for the host to launch them one by one. MoE
// layers, whose work depends on the step, are called in between as ever.

#include <cstdint>
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
  // A graph and then, but for the last one, a call of an MoE layer.
  struct Segment {
    cudaGraphExec_t graph = nullptr;
    DeviceMoeSlot<T>* slot = nullptr;
    const T* in = nullptr;
    int64_t tokens = 0;
    float* out = nullptr;
    bool backward = false;
  };

  Arguments arguments(const int32_t* tokens, const int32_t* targets, int64_t sequences,
                      float loss_scale, double* loss, cudaStream_t stream) const;
  void end_segment(const Segment& next, cudaStream_t stream);
  void call(const Segment& segment, cudaStream_t stream);
  void forget();

  bool graphs_;
  bool recording_ = false;
  std::vector<std::unique_ptr<Recorder>> recorders_;
  std::unique_ptr<DeviceTrunk<T>> trunk_;
  Arguments seen_;
  std::vector<Segment> segments_;
};

}  // namespace airmoe::scheduler::cuda
