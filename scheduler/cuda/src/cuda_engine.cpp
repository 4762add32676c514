// The training step on one device per rank.

#include "scheduler/train/cuda_engine.hpp"

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include <cuda_bf16.h>

#include "comm/base/cuda/device_buffer.hpp"
#include "comm/base/cuda/jitter.hpp"
#include "comm/base/cuda/stream.hpp"
#include "comm/node_map.hpp"
#include "scheduler/cuda/adamw.hpp"
#include "scheduler/cuda/device_links.hpp"
#include "scheduler/cuda/device_parameters.hpp"
#include "scheduler/cuda/gradient_buckets.hpp"
#include "scheduler/cuda/gradient_norm.hpp"
#include "scheduler/cuda/graphed_trunk.hpp"
#include "scheduler/cuda/moe_layer.hpp"
#include "scheduler/optim/gradient_norm.hpp"

namespace airmoe::scheduler {
namespace {

using airmoe::cuda::DeviceBuffer;
using airmoe::cuda::PinnedBuffer;
using cuda::DeviceLinks;
using cuda::DeviceMoeLayer;
using cuda::DeviceParameters;
using cuda::GraphedTrunk;
using cuda::Lane;
using cuda::StepNumbers;

template <class T>
class CudaEngine : public Engine {
 public:
  CudaEngine(comm::Communicator& comm, Model& model, const TrainConfig& config)
      : host_comm_(comm),
        model_(model),
        adamw_(config.adamw),
        clip_(config.clip),
        parameters_(model.parameters()),
        jitter_(stream_) {
    if (comm.size() > 1) {
      links_ = std::make_unique<DeviceLinks>(comm, config.deadline_seconds,
                                             config.exchange.overlap_chunks > 1);
    }
    std::vector<cuda::DeviceMoeSlot<T>*> slots(static_cast<std::size_t>(model.config().layers),
                                               nullptr);
    for (auto& host : model.moe_layers()) {
      layers_.push_back(std::make_unique<DeviceMoeLayer<T>>(
          *host, config.seed, parameters_, jitter_, config.expert_path, links_.get(), stream_));
      slots[static_cast<std::size_t>(host->layer())] = layers_.back().get();
    }
    trunk_ = std::make_unique<GraphedTrunk<T>>(model.config(), model.parameters(), parameters_,
                                               std::move(slots), config.cuda_graphs);
    if (links_) plan_buckets();
    loss_.ensure(1);
    loss_.zero(stream_);
    numbers_.ensure(static_cast<int64_t>(layers_.size()));
    scalars_.ensure(1);
    host_squares_.ensure(1);
    host_clip_.ensure(1);
    take_from_host();
  }

  void micro_batch(std::span<const int32_t> tokens, std::span<const int32_t> targets,
                   int64_t sequences, const MicroBatch& batch) override {
    upload(tokens, targets);
    for (auto& layer : layers_) layer->begin_micro_batch(batch);
    last_of_step_ = batch.index + 1 == batch.count;
    trunk_->forward_backward(tokens_.data(), targets_.data(), sequences, batch.loss_scale,
                             loss_.data(), stream_);
    tokens_done_ += std::ssize(tokens);
  }

  Sums finish_gradients() override {
    for (auto& layer : layers_) layer->finish_gradients(stream_);
    if (links_) {
      while (buckets_summed_ < buckets_.size()) sum_next_bucket();
      buckets_summed_ = 0;
      links_->join(Lane::background, stream_);
    }
    cuda::gradient_norm(parameters_, squares_.data(), norm_, stream_);
    cuda::clip_by_norm(squares_.data(), loss_.data(), clip_, clip_state_.data(), stream_);
    copy_out(scalars_.data(), loss_.data(), 1);
    copy_out(host_squares_.data(), squares_.data(), 1);
    for (std::size_t i = 0; i < layers_.size(); ++i) {
      copy_out(numbers_.data() + i, layers_[i]->numbers(), 1);
    }
    loss_.zero(stream_);
    wait();
    for (std::size_t i = 0; i < layers_.size(); ++i) {
      MoeCounters& counters = model_.moe_layers()[i]->counters();
      const StepNumbers& now = numbers_[static_cast<int64_t>(i)];
      counters.tokens += tokens_done_;
      counters.candidate_ranks += tokens_done_;
      counters.selected_ranks += tokens_done_;
      counters.balance_loss += now.balance;
      counters.revived_codewords += now.revived;
      AIRMOE_CUDA(cudaMemsetAsync(layers_[i]->numbers(), 0, sizeof(StepNumbers), stream_));
    }
    tokens_done_ = 0;
    const double replicated = host_comm_.rank() == 0 ? host_squares_[0].replicated : 0.0;
    return {scalars_[0], replicated + host_squares_[0].by_expert};
  }

  // On one rank the device has made the factor already; on several it knows its own part only.
  void update(double learning_rate, int64_t step, double gradient_norm) override {
    if (links_) {
      host_clip_[0] = {gradient_norm, static_cast<float>(clip_factor(gradient_norm, clip_)), 0};
      AIRMOE_CUDA(cudaMemcpyAsync(clip_state_.data(), host_clip_.data(), sizeof(cuda::ClipState),
                                  cudaMemcpyHostToDevice, stream_));
    }
    const cuda::ClipState* clip = clip_state_.data();
    cuda::adamw_step(parameters_, adamw_, static_cast<float>(learning_rate), step, &clip->factor,
                     &clip->skip, stream_);
    parameters_changed();
  }

  double forward_loss(std::span<const int32_t> tokens, std::span<const int32_t> targets,
                      int64_t sequences, const MicroBatch& batch) override {
    upload(tokens, targets);
    for (auto& layer : layers_) layer->begin_micro_batch(batch);
    loss_.zero(stream_);
    trunk_->forward_loss(tokens_.data(), targets_.data(), sequences, loss_.data(), stream_);
    copy_out(scalars_.data(), loss_.data(), 1);
    loss_.zero(stream_);
    wait();
    return scalars_[0];
  }

  void capture(std::size_t index, RoutingRecord& record) override {
    layers_[index]->capture(record, stream_);
  }

  void bring_to_host(Lists lists) override {
    if (lists == Lists::evaluation) {
      parameters_.download(stream_);
    } else {
      parameters_.download_values(stream_);
    }
    model_.parameters_changed();
    for (auto& layer : layers_) layer->bring_to_host(lists == Lists::evaluation, stream_);
  }

  void take_from_host() override {
    wait();
    parameters_.upload(stream_);
    for (auto& layer : layers_) layer->take_from_host(stream_);
    parameters_changed();
    wait();
  }

  void collect_usage() override {
    for (auto& layer : layers_) layer->collect_usage(host_comm_, stream_);
  }

  std::string description() const override {
    return fmt::format("{}, {}{}{}", airmoe::cuda::device_properties().name,
                       std::is_same_v<T, float> ? "f32" : "bf16", links_ ? ", messages by " : "",
                       links_ ? links_->backend() : "");
  }
  int64_t bytes_sent(std::string_view phase) const override {
    return links_ ? links_->bytes_sent(phase) : 0;
  }
  int64_t device_bytes_peak() const override { return airmoe::cuda::device_bytes_peak(); }

 private:
  // Layers lie one behind the other in the gradients, the embedding before, the final norm behind.
  void plan_buckets() {
    std::vector<int64_t> layer_begin(static_cast<std::size_t>(model_.config().layers));
    for (std::size_t layer = 0; layer < layer_begin.size(); ++layer) {
      const std::string path = fmt::format("/layers/{:02}/", layer);
      layer_begin[layer] = parameters_.replicated_size();
      for (const auto& p : model_.parameters().all()) {
        if (p->sharding != Sharding::replicated || !p->name.starts_with(path)) continue;
        layer_begin[layer] = std::min(layer_begin[layer], parameters_.segment(*p).begin);
      }
    }
    AIRMOE_CHECK(std::is_sorted(layer_begin.begin(), layer_begin.end()),
                 "gradients of layers are not in order");
    buckets_ = cuda::gradient_buckets(layer_begin, parameters_.replicated_size());
    if (!links_->overlaps()) return;
    std::vector<int64_t> layers;
    for (const cuda::GradientBucket& b : buckets_) {
      if (b.layer >= 0) layers.push_back(b.layer);
    }
    trunk_->announce_gradients(std::move(layers), [this](std::size_t, cudaStream_t) {
      if (last_of_step_) sum_next_bucket();
    });
  }
  void sum_next_bucket() {
    const comm::ScopedPhase phase(host_comm_, "gradients");
    const cuda::GradientBucket& b = buckets_[buckets_summed_++];
    links_->comm(Lane::background)
        .all_reduce_sum(parameters_.gradients() + b.begin, b.end - b.begin,
                        links_->fork(Lane::background, stream_));
  }
  void parameters_changed() {
    for (auto& layer : layers_) layer->parameters_changed(stream_);
  }
  // The host waits for the device, under a deadline where other ranks are involved.
  void wait() {
    if (links_) {
      links_->wait(stream_);
    } else {
      stream_.synchronize();
    }
  }
  // Through pinned memory; the copies of the call before may still be reading it.
  void upload(std::span<const int32_t> tokens, std::span<const int32_t> targets) {
    const int64_t n = std::ssize(tokens);
    uploaded_.synchronize();
    pinned_.ensure(2 * n);
    std::copy(tokens.begin(), tokens.end(), pinned_.data());
    std::copy(targets.begin(), targets.end(), pinned_.data() + n);
    const auto size = static_cast<std::size_t>(n);
    tokens_.upload({pinned_.data(), size}, stream_);
    targets_.upload({pinned_.data() + n, size}, stream_);
    uploaded_.record(stream_);
  }

  template <class X>
  void copy_out(X* to, const X* from, std::size_t count) {
    AIRMOE_CUDA(cudaMemcpyAsync(to, from, count * sizeof(X), cudaMemcpyDeviceToHost, stream_));
  }

  comm::Communicator& host_comm_;
  Model& model_;
  AdamWOptions adamw_;
  double clip_;
  airmoe::cuda::Stream stream_;
  DeviceParameters<T> parameters_;
  airmoe::cuda::JitterTable jitter_;
  std::vector<std::unique_ptr<DeviceMoeLayer<T>>> layers_;
  std::unique_ptr<GraphedTrunk<T>> trunk_;
  cuda::GradientNormWorkspace norm_;
  DeviceBuffer<cuda::GradientSquares> squares_{1};
  DeviceBuffer<cuda::ClipState> clip_state_{1};
  PinnedBuffer<cuda::GradientSquares> host_squares_;
  PinnedBuffer<cuda::ClipState> host_clip_;
  DeviceBuffer<int32_t> tokens_, targets_;
  DeviceBuffer<double> loss_;
  PinnedBuffer<int32_t> pinned_;
  PinnedBuffer<double> scalars_;
  PinnedBuffer<StepNumbers> numbers_;
  airmoe::cuda::Event uploaded_;
  int64_t tokens_done_ = 0;
  std::vector<cuda::GradientBucket> buckets_;
  std::size_t buckets_summed_ = 0;  // of this step
  bool last_of_step_ = false;       // the micro-batch under way
  // Several ranks. Goes first: after an error, it ends what device memory may wait for.
  std::unique_ptr<DeviceLinks> links_;
};

}  // namespace

bool has_cuda() {
  return true;
}

std::unique_ptr<Engine> make_cuda_engine(comm::Communicator& comm, Model& model,
                                         const TrainConfig& config) {
  std::string reason;
  if (airmoe::cuda::device_count(&reason) == 0) {
    fail(ExitCode::config, "--device cuda: {}: give --device cpu", reason);
  }
  if (config.exchange.rank_cap > 0) {
    fail(ExitCode::config,
         "--rank-cap {}: lists on devices are not capped; leave it out, or give --device cpu",
         config.exchange.rank_cap);
  }
  const int place = comm.size() > 1 ? comm::find_nodes().place_of[comm.rank()] : 0;
  airmoe::cuda::use_device(place % airmoe::cuda::device_count());
  if (config.compute_type == ComputeType::f32) {
    return std::make_unique<CudaEngine<float>>(comm, model, config);
  }
  return std::make_unique<CudaEngine<__nv_bfloat16>>(comm, model, config);
}

}  // namespace airmoe::scheduler
