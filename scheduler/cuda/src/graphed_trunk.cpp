#include "scheduler/cuda/graphed_trunk.hpp"

#include <utility>

#include <cuda_bf16.h>

namespace airmoe::scheduler::cuda {

// Stands between the trunk and an MoE layer.
template <class T>
class GraphedTrunk<T>::Recorder : public DeviceMoeSlot<T> {
 public:
  Recorder(GraphedTrunk& trunk, DeviceMoeSlot<T>& slot) : trunk_(trunk), slot_(slot) {}

  void forward(const T* hidden, int64_t tokens, float* out, cudaStream_t stream) override {
    trunk_.between([&slot = slot_, hidden, tokens,
                    out](cudaStream_t s) { slot.forward(hidden, tokens, out, s); },
                   stream);
  }
  void backward(const T* d_out, float* d_hidden, cudaStream_t stream) override {
    trunk_.between(
        [&slot = slot_, d_out, d_hidden](cudaStream_t s) { slot.backward(d_out, d_hidden, s); },
        stream);
  }

 private:
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
void GraphedTrunk<T>::announce_gradients(std::vector<int64_t> layers,
                                         typename DeviceTrunk<T>::GradientsComplete complete) {
  trunk_->announce_gradients(std::move(layers), [this, complete = std::move(complete)](
                                                    std::size_t i, cudaStream_t stream) {
    between([&complete, i](cudaStream_t s) { complete(i, s); }, stream);
  });
}

// While a call is recorded, one graph ends before what happens in between and the next begins
// behind it.
template <class T>
template <class Call>
void GraphedTrunk<T>::between(Call call, cudaStream_t stream) {
  if (!recording_) {
    call(stream);
    return;
  }
  end_segment(call, stream);
  AIRMOE_CUDA(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
}

// Ends the capture, runs what was captured, and then the call behind it.
template <class T>
void GraphedTrunk<T>::end_segment(std::function<void(cudaStream_t)> call, cudaStream_t stream) {
  cudaGraph_t graph = nullptr;
  AIRMOE_CUDA(cudaStreamEndCapture(stream, &graph));
  Segment segment{nullptr, std::move(call)};
  const cudaError_t status = cudaGraphInstantiate(&segment.graph, graph, 0);
  cudaGraphDestroy(graph);
  AIRMOE_CUDA(status);
  segments_.push_back(std::move(segment));
  AIRMOE_CUDA(cudaGraphLaunch(segments_.back().graph, stream));
  if (segments_.back().call) segments_.back().call(stream);
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
    end_segment(nullptr, stream);
    recording_ = false;
    return;
  }
  for (const Segment& segment : segments_) {
    AIRMOE_CUDA(cudaGraphLaunch(segment.graph, stream));
    if (segment.call) segment.call(stream);
  }
}

template class GraphedTrunk<float>;
template class GraphedTrunk<__nv_bfloat16>;

}  // namespace airmoe::scheduler::cuda
