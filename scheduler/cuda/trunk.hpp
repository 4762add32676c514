#pragma once
// The language model around the MoE layers on one device. The maths is that of
// scheduler/trunk/trunk.hpp; here all sequences of a call go through a layer together.
//
// The residual stream and its gradient are fp32. What matrix products read is T, float or
// __nv_bfloat16; they add up in fp32, gradients of parameters too.

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "scheduler/cuda/device_parameters.hpp"
#include "scheduler/cuda/moe_slot.hpp"
#include "scheduler/model_config.hpp"

namespace airmoe::scheduler::cuda {

template <class T>
class TrunkBlock;
template <class T>
struct TrunkShared;

template <class T>
class DeviceTrunk {
 public:
  /// Local; waits for small uploads. `host` holds the parameters that the host Trunk has created;
  /// `parameters` are the same on the device. References to all of them are kept. Throws
  /// Error(ExitCode::config) naming the option when --dim, --ffn-dim or the width of the heads does
  /// not suit a device (multiples of 8).
  /// @param slots  one per layer; nullptr for a layer with a dense FFN
  DeviceTrunk(const ModelConfig& config, ParameterSet& host, DeviceParameters<T>& parameters,
              std::vector<DeviceMoeSlot<T>*> slots);
  ~DeviceTrunk();

  /// `complete(i, stream)` is called in every later backward where the gradients of layers
  /// layers[i] and above, and of the final norm, are complete on the stream. Layers descending.
  using GradientsComplete = std::function<void(std::size_t, cudaStream_t)>;
  void announce_gradients(std::vector<int64_t> layers, GradientsComplete complete);

  /// *loss += sum over the tokens of -log p(target), in nats. Adds the gradient of loss_scale *
  /// that sum to the gradients of the parameters. Asynchronous and deterministic; capturable once a
  /// call with as many sequences has been made. Collective through the slots: forward in layer
  /// order, backward in reverse, also when sequences == 0.
  /// @param tokens, targets  device; one outside [0, vocab) makes the loss NaN.
  ///                         Shape: [sequences * context]
  /// @param loss             device
  void forward_backward(const int32_t* tokens, const int32_t* targets, int64_t sequences,
                        float loss_scale, double* loss, cudaStream_t stream);
  /// The same sum without gradients; calls only forward of the slots.
  void forward_loss(const int32_t* tokens, const int32_t* targets, int64_t sequences, double* loss,
                    cudaStream_t stream);

  /// What the slot of an MoE layer saw in the last call. Device memory. Shape: [n, d]
  const T* moe_hidden(int64_t layer) const;

  /// Device memory held for activations and scratch, without the slots'.
  int64_t activation_bytes() const;

 private:
  void forward(const int32_t* tokens, int64_t sequences, cudaStream_t stream);

  std::unique_ptr<TrunkShared<T>> shared_;
  std::vector<std::unique_ptr<TrunkBlock<T>>> blocks_;
  std::vector<int64_t> announced_;  // layers
  GradientsComplete complete_;
};

}  // namespace airmoe::scheduler::cuda
