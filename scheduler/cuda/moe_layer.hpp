#pragma once
// One MoE layer on a device: assign, order, score and select, experts, and their backward; on
// several ranks tokens go to the rank that has their codeword (token_exchange.hpp). The host's
// MoeLayer is its specification and holds its parameters' names and values between runs.

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "comm/base/cuda/jitter.hpp"
#include "comm/base/cuda/pair_accumulate.hpp"
#include "comm/base/cuda/pair_combine.hpp"
#include "comm/base/cuda/pair_grouping.hpp"
#include "comm/base/cuda/stream.hpp"
#include "experts/cuda/cost_model.hpp"
#include "experts/cuda/grouped_path.hpp"
#include "router/cuda/assign.hpp"
#include "router/cuda/codebook.hpp"
#include "router/cuda/order.hpp"
#include "router/cuda/select.hpp"
#include "router/cuda/shortlists.hpp"
#include "router/cuda/usage.hpp"
#include "scheduler/cuda/device_links.hpp"
#include "scheduler/cuda/device_parameters.hpp"
#include "scheduler/cuda/expert_tables.hpp"
#include "scheduler/cuda/moe_slot.hpp"
#include "scheduler/cuda/step_numbers.hpp"
#include "scheduler/cuda/token_exchange.hpp"
#include "scheduler/moe/moe_layer.hpp"

namespace airmoe::scheduler::cuda {

template <class T>
class DeviceMoeLayer : public DeviceMoeSlot<T> {
 public:
  /// Local: allocates. Keeps references. links: nullptr on one rank. Memory beyond the parameters:
  /// per token K (2 + 6 * 4) bytes of pairs, and in fp32 E d unit centroids, which in bf16 take the
  /// place of the centroids' copies.
  DeviceMoeLayer(MoeLayer& host, uint64_t seed, DeviceParameters<T>& parameters,
                 const airmoe::cuda::JitterTable& jitter, experts::Path path, DeviceLinks* links,
                 cudaStream_t stream);

  /// Local: what the next passes are about.
  void begin_micro_batch(const MicroBatch& batch) { batch_ = batch; }
  void forward(const T* hidden, int64_t tokens, float* out, cudaStream_t stream) override;
  void backward(const T* d_out, float* d_hidden, cudaStream_t stream) override;

  /// Collective, once per optimizer step before the norm: owners have collected their gradients,
  /// the gradient of the centroids has passed through the projection to the sphere. Where lanes
  /// overlap, that began at the end of the step's last backward.
  void finish_gradients(cudaStream_t stream);
  /// Collective, after parameters changed: projects centroids, shares values, drops lists. The next
  /// forward waits for it where it needs values.
  void parameters_changed(cudaStream_t stream);
  /// The path that the last forward took.
  experts::Path last_path() const { return path_taken_; }
  /// Device memory, complete once the stream has done what was put on it.
  StepNumbers* numbers() { return numbers_.data(); }

  /// Asynchronous: codebook and its state from the host layer, if it has one.
  void take_from_host(cudaStream_t stream);
  /// Waits: codebook to the host layer, and the lists, without jitter if `evaluation`.
  void bring_to_host(bool evaluation, cudaStream_t stream);
  /// Collective, waits: the routing of the last forward, whose micro-batch was captured or no
  /// training.
  void capture(RoutingRecord& record, cudaStream_t stream);
  /// Collective, waits: moves selections per expert to the host layer's usage window.
  void collect_usage(comm::Communicator& host_comm, cudaStream_t stream);

 private:
  enum class ListState : uint8_t { none, training, evaluation };

  T* unit_centroids();
  bool several() const { return links_ != nullptr; }
  bool keeps_output() const { return !batch_.training || batch_.captured; }
  void assign(const T* hidden, cudaStream_t stream);
  void update_codebook(const T* hidden, cudaStream_t stream);
  void build_lists(cudaStream_t stream);
  void route(const T* hidden, cudaStream_t stream);
  void count_usage(cudaStream_t stream);
  void update_selected(cudaStream_t stream);
  void add_balance(cudaStream_t stream);
  void collect_gradients(cudaStream_t stream);
  void rebuild_evaluation_lists(cudaStream_t stream);
  experts::PathShape path_shape() const;
  bool sums_by_bundles() const;
  void group_pairs(cudaStream_t stream);
  void accumulate_gradients(const T* d_out, cudaStream_t stream);
  experts::cuda::DeviceExpertTable<T> table() const;
  airmoe::cuda::SelectedPairs selected() const {
    return {config_.active, position_.data(), gate_.data()};
  }

  MoeLayer& host_;
  ModelConfig config_;
  int64_t layer_;
  uint64_t seed_;
  DeviceParameters<T>& parameters_;
  const airmoe::cuda::JitterTable& jitter_;
  experts::Path path_, path_taken_ = experts::Path::dense;
  DeviceLinks* links_;          // nullptr: one rank
  ExpertRows* rows_ = nullptr;  // one rank: which experts have gradients
  MicroBatch batch_;
  ListState list_state_ = ListState::none;
  bool codebook_initialised_ = false;

  int64_t owned_;                     // experts
  T* unit_;                           // unit centroids. [owned, d]
  DeviceBuffer<T> own_unit_;          // fp32
  DeviceBuffer<float> inverse_norm_;  // [owned]
  ExpertTables<T> tables_;
  int unit_table_, up_table_, down_table_, gate_table_ = -1;
  router::cuda::DeviceCodebook<T> codebook_;
  router::cuda::DeviceShortlists<T> lists_;
  DeviceBuffer<int32_t> count_;   // [E], of the micro-batch
  DeviceBuffer<int64_t> window_;  // [E]
  DeviceBuffer<StepNumbers> numbers_;

  // One micro-batch; place order unless said.
  const T* home_hidden_ = nullptr;  // the caller's. [home tokens, d]
  const T* hidden_ = nullptr;       // of the tokens computed here, [n, d] in token order
  int64_t home_tokens_ = 0, tokens_ = 0;
  std::unique_ptr<TokenExchange> exchange_;
  airmoe::cuda::Event values_ready_, usage_ready_, gradients_ready_;
  bool gradients_collected_ = false;  // of this step
  DeviceBuffer<T> away_hidden_, away_d_out_;
  DeviceBuffer<float> away_out_, away_d_hidden_;
  DeviceBuffer<int32_t> codeword_;
  router::cuda::DeviceOrder order_;
  DeviceBuffer<uint16_t> position_;                                          // [n, K]
  DeviceBuffer<float> gate_, log_sum_exp_;                                   // [n, K], [n]
  DeviceBuffer<float> saved_, d_gate_, d_pre_, d_inner_, d_score_, scaled_;  // [n, K * ...]
  DeviceBuffer<float> output_;                                               // [n, d], token order

  router::cuda::SelectWorkspace select_;
  router::cuda::BalanceWorkspace balance_;
  experts::cuda::ExpertWorkspace experts_;
  airmoe::cuda::DevicePairTiles pair_tiles_;
  airmoe::cuda::DevicePairGrouping grouping_;  // of the grouped path, and of sums without bundles
  airmoe::cuda::DevicePairBundles bundles_;
  airmoe::cuda::AccumulateWorkspace accumulate_;
};

}  // namespace airmoe::scheduler::cuda
