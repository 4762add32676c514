#include "scheduler/cuda/graphed_trunk.hpp"

#include <utility>

#include <cuda_bf16.h>

namespace airmoe::scheduler::cuda {

// Stands between the trunk and an MoE layer: while a call is recorded it ends one graph before the
// layer and begins the next behind it.
template <class T>
class GraphedTrunk<T>::Recorder : public DeviceMoeSlot<T> {
 public:
  Recorder(GraphedTrunk& trunk, DeviceMoeSlot<T>& slot) : trunk_(trunk), slot_(slot) {}

  void forward(const T* hidden, int64_t tokens, float* out, cudaStream_t stream) override {
    between({nullptr, &slot_, hidden, tokens, out, false}, stream);
  }
  void backward(const T* d_out, float* d_hidden, cudaStream_t stream) override {
    between({nullptr, &slot_, d_out, 0, d_hidden, true}, stream);
  }

 private:
  void between(const Segment& segment, cudaStream_t stream) {
    if (!trunk_.recording_) {
      trunk_.call(segment, stream);
      return;
    }
    trunk_.end_segment(segment, stream);
    AIRMOE_CUDA(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
  }

  GraphedTrunk& trunk_;
  DeviceMoeSlot<T>& slot_;
};

template <class T>
GraphedTrunk<T>::GraphedTrunk(const ModelConfig& config, ParameterSet& host,
                              DeviceParameters<T>& parameters, std::vector<DeviceMoeSlot<T>*> slots,
                              bool graphs)
    : graphs_(graphs) {
  for (DeviceMoeSlot<T>*& slot : slots) {
    if (slot == nullptr) continue;
    recorders_.push_back(std::make_unique<Recorder>(*this, *slot));
    slot = recorders_.back().get();
  }
  trunk_ = std::make_unique<DeviceTrunk<T>>(config, host, parameters, std::move(slots));
}

template <class T>
GraphedTrunk<T>::~GraphedTrunk() {
  forget();
}

template <class T>
void GraphedTrunk<T>::forget() {
  for (const Segment& segment : segments_) cudaGraphExecDestroy(segment.graph);
  segments_.clear();
}

template <class T>
typename GraphedTrunk<T>::Arguments GraphedTrunk<T>::arguments(const int32_t* tokens,
                                                               const int32_t* targets,
                                                               int64_t sequences, float loss_scale,
                                                               double* loss,
                                                               cudaStream_t stream) const {
  return {tokens, targets, sequences, loss_scale, loss, stream, trunk_->activation_bytes()};
}

template <class T>
void GraphedTrunk<T>::call(const Segment& segment, cudaStream_t stream) {
  if (segment.backward) {
    segment.slot->backward(segment.in, segment.out, stream);
  } else {
    segment.slot->forward(segment.in, segment.tokens, segment.out, stream);
  }
}

// Ends the capture, runs what was captured, and calls the layer behind it.
template <class T>
void GraphedTrunk<T>::end_segment(const Segment& next, cudaStream_t stream) {
  cudaGraph_t graph = nullptr;
  AIRMOE_CUDA(cudaStreamEndCapture(stream, &graph));
  Segment segment = next;
  const cudaError_t status = cudaGraphInstantiate(&segment.graph, graph, 0);
  cudaGraphDestroy(graph);
  AIRMOE_CUDA(status);
  segments_.push_back(segment);
  AIRMOE_CUDA(cudaGraphLaunch(segment.graph, stream));
  if (segment.slot != nullptr) call(segment, stream);
}

template <class T>
void GraphedTrunk<T>::forward_backward(const int32_t* tokens, const int32_t* targets,
                                       int64_t sequences, float loss_scale, double* loss,
                                       cudaStream_t stream) {
  const auto now = [&] { return arguments(tokens, targets, sequences, loss_scale, loss, stream); };
  if (!graphs_ || seen_ != now()) {
    forget();
    trunk_->forward_backward(tokens, targets, sequences, loss_scale, loss, stream);
    seen_ = now();
    return;
  }
  if (segments_.empty()) {
    recording_ = true;
    AIRMOE_CUDA(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
    trunk_->forward_backward(tokens, targets, sequences, loss_scale, loss, stream);
    end_segment({}, stream);
    recording_ = false;
    return;
  }
  for (const Segment& segment : segments_) {
    AIRMOE_CUDA(cudaGraphLaunch(segment.graph, stream));
    if (segment.slot != nullptr) call(segment, stream);
  }
}

template class GraphedTrunk<float>;
template class GraphedTrunk<__nv_bfloat16>;

}  // namespace airmoe::scheduler::cuda
