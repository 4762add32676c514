#include "scheduler/cuda/moe_layer.hpp"

#include <algorithm>
#include <array>

#include <cuda_bf16.h>

#include "router/cuda/softmax_backward.hpp"
#include "router/cuda/sphere.hpp"

namespace airmoe::scheduler::cuda {

namespace {

using airmoe::cuda::AccumulateTerm;
using airmoe::cuda::CombineTerm;
using airmoe::cuda::JitterKey;

}  // namespace

template <class T>
DeviceMoeLayer<T>::DeviceMoeLayer(MoeLayer& host, uint64_t seed, DeviceParameters<T>& parameters,
                                  const airmoe::cuda::JitterTable& jitter, cudaStream_t stream)
    : host_(host),
      config_(host.config()),
      layer_(host.layer()),
      seed_(seed),
      parameters_(parameters),
      jitter_(jitter),
      codebook_(host.codebook().config()),
      lists_(config_.codewords, config_.experts, config_.shortlist, config_.dim) {
  unit_.ensure(config_.experts * config_.dim);
  inverse_norm_.ensure(config_.experts);
  count_.ensure(config_.experts);
  window_.ensure(config_.experts);
  window_.zero(stream);
  numbers_.ensure(1);
  numbers_.zero(stream);
}

// d(balance loss) / d(gate) per selection of an expert: loss_scale * weight * E / (T K).
template <class T>
double DeviceMoeLayer<T>::balance_slope() const {
  if (!batch_.training || batch_.range.global_tokens == 0) return 0.0;
  const double selections =
      static_cast<double>(batch_.range.global_tokens) * static_cast<double>(config_.active);
  return static_cast<double>(batch_.loss_scale) * config_.balance_weight *
         static_cast<double>(config_.experts) / selections;
}

template <class T>
experts::cuda::DeviceExpertTable<T> DeviceMoeLayer<T>::table() const {
  experts::cuda::DeviceExpertTable<T> t;
  t.up = parameters_.compute(host_.up());
  t.down = parameters_.compute(host_.down());
  if (host_.gate_proj() != nullptr) t.gate_proj = parameters_.compute(*host_.gate_proj());
  t.expert_dim = config_.expert_dim;
  t.activation = config_.expert_activation;
  return t;
}

template <class T>
void DeviceMoeLayer<T>::assign(const T* hidden, cudaStream_t stream) {
  codeword_.ensure(tokens_);
  router::cuda::assign_codewords(hidden, codebook_.compute(), tokens_, config_.dim,
                                 config_.codewords, codeword_.data(), stream);
  order_.build(codeword_.data(), tokens_, config_.codewords, stream);
}

template <class T>
void DeviceMoeLayer<T>::route(const T* hidden, cudaStream_t stream) {
  const auto layer = static_cast<uint32_t>(layer_);
  if (batch_.training) {
    if (!codebook_initialised_) {
      codebook_.initialise(hidden, tokens_,
                           RandomStream(seed_, Purpose::codebook_init, 0, 0, layer), stream);
      codebook_initialised_ = true;
    }
    assign(hidden, stream);
    codebook_.update(
        hidden, order_.view(),
        RandomStream(seed_, Purpose::codeword_replacement, batch_.step, batch_.index, layer),
        stream);
    add_revived(codebook_.dead().count, numbers_.data(), stream);
    std::optional<JitterKey> jitter;
    if (config_.jitter > 0.0f) {
      jitter = jitter_.key(
          RandomStream(seed_, Purpose::jitter_shortlist, batch_.step, batch_.index, layer),
          config_.jitter);
    }
    if (list_state_ != ListState::training) {
      lists_.rebuild(codebook_.compute(), unit_.data(), jitter, stream);
      list_state_ = ListState::training;
    } else {
      lists_.rebuild(codebook_.compute(), unit_.data(), jitter, codebook_.dead(), stream);
    }
  } else {
    AIRMOE_CHECK(codebook_initialised_, "layer {}: the codebook has not seen a training batch yet",
                 layer_);
    rebuild_evaluation_lists(stream);
  }
  assign(hidden, stream);
}

template <class T>
void DeviceMoeLayer<T>::rebuild_evaluation_lists(cudaStream_t stream) {
  if (list_state_ == ListState::evaluation) return;
  lists_.rebuild(codebook_.compute(), unit_.data(), std::nullopt, stream);
  list_state_ = ListState::evaluation;
}

template <class T>
void DeviceMoeLayer<T>::forward(const T* hidden, int64_t tokens, float* out, cudaStream_t stream) {
  tokens_ = tokens;
  hidden_ = hidden;
  route(hidden, stream);
  const int64_t pairs = tokens * config_.active;
  position_.ensure(pairs);
  gate_.ensure(pairs);
  log_sum_exp_.ensure(tokens);
  std::optional<JitterKey> jitter;
  if (batch_.training && config_.jitter > 0.0f) {
    jitter = jitter_.key(RandomStream(seed_, Purpose::jitter_score, batch_.step, batch_.index,
                                      static_cast<uint32_t>(layer_)),
                         config_.jitter, batch_.range.first);
  }
  router::cuda::select_experts(hidden, config_.dim, order_.view(), lists_.view(), unit_.data(),
                               config_.active, jitter ? &*jitter : nullptr,
                               {position_.data(), gate_.data(), log_sum_exp_.data()}, select_,
                               stream);
  tiles_.build(order_.view(), lists_.view(), position_.data(), config_.active, stream);
  const experts::cuda::DeviceExpertTable<T> experts = table();
  saved_.ensure(batch_.training ? pairs * experts.saved_per_pair() : 0);
  experts::cuda::forward(experts, hidden, config_.dim, tiles_.view(), gate_.data(), out,
                         batch_.training ? saved_.data() : nullptr, experts_, stream);
  output_.ensure(tokens * config_.dim);
  AIRMOE_CUDA(
      cudaMemcpyAsync(output_.data(), out, output_.bytes(), cudaMemcpyDeviceToDevice, stream));
  if (!batch_.training) return;
  router::cuda::count_selections(lists_.view(), order_.view(), selected(), config_.experts,
                                 count_.data(), window_.data(), stream);
  const double slope = balance_slope();
  if (slope != 0.0) {
    router::cuda::add_balance_loss(lists_.view(), order_.view(), selected(), count_.data(), slope,
                                   &numbers_.data()->balance, balance_, stream);
  }
}

template <class T>
void DeviceMoeLayer<T>::backward(const T* d_out, float* d_hidden, cudaStream_t stream) {
  const int64_t pairs = tokens_ * config_.active;
  const int64_t m = config_.expert_dim;
  const experts::cuda::DeviceExpertTable<T> experts = table();
  for (DeviceBuffer<float>* one : {&d_gate_, &d_score_}) one->ensure(pairs);
  for (DeviceBuffer<float>* one : {&d_pre_, &scaled_}) one->ensure(pairs * m);
  if (experts.gated()) d_inner_.ensure(pairs * m);
  experts::cuda::backward_pairs(
      experts, tiles_.view(), gate_.data(), saved_.data(), d_out, config_.dim,
      {d_gate_.data(), d_pre_.data(), experts.gated() ? d_inner_.data() : nullptr, scaled_.data()},
      stream);
  const double slope = balance_slope();
  if (slope != 0.0) {
    router::cuda::add_balance_gradient(lists_.view(), order_.view(), selected(), count_.data(),
                                       static_cast<float>(slope), d_gate_.data(), stream);
  }
  router::cuda::softmax_backward(gate_.data(), d_gate_.data(), config_.active, tokens_,
                                 d_score_.data(), stream);

  std::array<CombineTerm<T>, 3> combine = {{{d_pre_.data(), experts.up, m},
                                            {d_score_.data(), unit_.data(), 1},
                                            {d_inner_.data(), experts.gate_proj, m}}};
  const std::size_t tables = experts.gated() ? 3 : 2;
  airmoe::cuda::combine_pairs<T>(tiles_.view(), std::span(combine).first(tables), config_.dim,
                                 d_hidden, stream);
  grouping_.build(order_.view(), lists_.view(), position_.data(), config_.active, config_.experts,
                  stream);
  std::vector<AccumulateTerm<T>> terms = {
      {d_pre_.data(), hidden_, parameters_.gradient(host_.up()), m},
      {d_score_.data(), hidden_, parameters_.gradient(host_.centroid()), 1}};
  if (experts.gated()) {
    terms.push_back({d_inner_.data(), hidden_, parameters_.gradient(*host_.gate_proj()), m});
  }
  terms.push_back({scaled_.data(), d_out, parameters_.gradient(host_.down()), m});
  airmoe::cuda::accumulate_pairs<T>(grouping_.view(), terms, config_.dim, accumulate_, stream);
}

template <class T>
void DeviceMoeLayer<T>::finish_gradients(cudaStream_t stream) {
  router::cuda::project_to_sphere_backward(
      parameters_.gradient(host_.centroid()), parameters_.value(host_.centroid()),
      inverse_norm_.data(), config_.experts, config_.dim, stream);
}

template <class T>
void DeviceMoeLayer<T>::parameters_changed(cudaStream_t stream) {
  router::cuda::project_to_sphere(parameters_.value(host_.centroid()), config_.experts, config_.dim,
                                  unit_.data(), inverse_norm_.data(), stream);
  list_state_ = ListState::none;
}

template <class T>
void DeviceMoeLayer<T>::take_from_host(cudaStream_t stream) {
  codebook_initialised_ = host_.codebook_initialised();
  if (codebook_initialised_) codebook_.upload(host_.codebook(), stream);
  list_state_ = ListState::none;
}

template <class T>
void DeviceMoeLayer<T>::bring_to_host(bool evaluation, cudaStream_t stream) {
  if (!codebook_initialised_) return;
  if (evaluation) rebuild_evaluation_lists(stream);
  codebook_.download(host_.codebook(), stream);
  std::vector<int32_t> lists(static_cast<std::size_t>(config_.codewords * config_.shortlist));
  AIRMOE_CUDA(cudaMemcpyAsync(lists.data(), lists_.view().id, lists.size() * sizeof(int32_t),
                              cudaMemcpyDeviceToHost, stream));
  AIRMOE_CUDA(cudaStreamSynchronize(stream));
  host_.adopt_lists(lists, list_state_ == ListState::evaluation);
}

namespace {

template <class X>
std::vector<X> to_host(const X* from, int64_t count, cudaStream_t stream) {
  std::vector<X> out(static_cast<std::size_t>(count));
  if (count > 0) {
    AIRMOE_CUDA(
        cudaMemcpyAsync(out.data(), from, out.size() * sizeof(X), cudaMemcpyDeviceToHost, stream));
    AIRMOE_CUDA(cudaStreamSynchronize(stream));
  }
  return out;
}

}  // namespace

template <class T>
void DeviceMoeLayer<T>::capture(RoutingRecord& record, cudaStream_t stream) {
  const int64_t n = tokens_, d = config_.dim, k = config_.active, m = config_.shortlist;
  record.tokens = n;
  record.hidden.ensure(n * d);
  record.output.ensure(n * d);
  record.codeword.ensure(n);
  record.expert.ensure(n * k);
  record.gate.ensure(n * k);
  record.log_sum_exp.ensure(n);
  if (n == 0) return;
  const auto hidden = to_host(hidden_, n * d, stream);
  std::transform(hidden.begin(), hidden.end(), record.hidden.begin(),
                 [](T x) { return static_cast<float>(x); });
  const auto output = to_host(output_.data(), n * d, stream);
  std::copy(output.begin(), output.end(), record.output.begin());
  const auto codeword = to_host(codeword_.data(), n, stream);
  std::copy(codeword.begin(), codeword.end(), record.codeword.begin());
  const auto token = to_host(order_.view().token, n, stream);
  const auto lists = to_host(lists_.view().id, config_.codewords * m, stream);
  const auto position = to_host(position_.data(), n * k, stream);
  const auto gate = to_host(gate_.data(), n * k, stream);
  const auto log_sum_exp = to_host(log_sum_exp_.data(), n, stream);
  for (int64_t place = 0; place < n; ++place) {
    const int64_t t = token[static_cast<std::size_t>(place)];
    const int32_t* list = lists.data() + codeword[static_cast<std::size_t>(t)] * m;
    for (int64_t i = 0; i < k; ++i) {
      const auto p = static_cast<std::size_t>(place * k + i);
      record.expert[t * k + i] = list[position[p]];
      record.gate[t * k + i] = gate[p];
    }
    record.log_sum_exp[t] = log_sum_exp[static_cast<std::size_t>(place)];
  }
}

template <class T>
void DeviceMoeLayer<T>::collect_usage(cudaStream_t stream) {
  const auto counts = to_host(window_.data(), config_.experts, stream);
  const std::span<int64_t> window = host_.usage().window();
  AIRMOE_CHECK(window.size() == counts.size(), "usage of {} experts for {}", counts.size(),
               window.size());
  for (std::size_t e = 0; e < counts.size(); ++e) window[e] += counts[e];
  window_.zero(stream);
}

template class DeviceMoeLayer<float>;
template class DeviceMoeLayer<__nv_bfloat16>;

}  // namespace airmoe::scheduler::cuda
