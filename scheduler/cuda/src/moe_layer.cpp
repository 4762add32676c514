#include "scheduler/cuda/moe_layer.hpp"

#include <algorithm>
#include <array>
#include <type_traits>
#include <utility>

#include <cuda_bf16.h>

#include "comm/base/cuda/wgmma.hpp"
#include "router/cuda/softmax_backward.hpp"
#include "router/cuda/sphere.hpp"

namespace airmoe::scheduler::cuda {

namespace {

using airmoe::cuda::AccumulateTerm;
using airmoe::cuda::CombineTerm;
using airmoe::cuda::JitterKey;
using comm::cuda::DeviceCommunicator;

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
DeviceMoeLayer<T>::DeviceMoeLayer(MoeLayer& host, uint64_t seed, DeviceParameters<T>& parameters,
                                  const airmoe::cuda::JitterTable& jitter, experts::Path path,
                                  DeviceLinks* links, cudaStream_t stream)
    : host_(host),
      config_(host.config()),
      layer_(host.layer()),
      seed_(seed),
      parameters_(parameters),
      jitter_(jitter),
      path_(path),
      links_(links),
      owned_(host.centroid().row_count),
      tables_(links == nullptr ? nullptr : &links->comm(Lane::background), parameters,
              config_.experts),
      codebook_(host.codebook().config()),
      lists_(config_.codewords, config_.experts, config_.shortlist, config_.dim) {
  unit_ = unit_centroids();
  inverse_norm_.ensure(owned_);
  unit_table_ = tables_.add(host.centroid(), unit_);
  up_table_ = tables_.add(host.up());
  down_table_ = tables_.add(host.down());
  if (host.gate_proj() != nullptr) gate_table_ = tables_.add(*host.gate_proj());
  if (several()) {
    exchange_ = std::make_unique<TokenExchange>(links_->comm(Lane::tokens), config_.codewords);
  } else {
    std::vector<const Parameter*> computed = {&host.up(), &host.down()};
    if (host.gate_proj() != nullptr) computed.push_back(host.gate_proj());
    rows_ = &parameters.track_rows(owned_, {&host.centroid()}, std::move(computed));
  }
  count_.ensure(config_.experts);
  window_.ensure(config_.experts);
  window_.zero(stream);
  numbers_.ensure(1);
  numbers_.zero(stream);
}

// In bf16 they take the place of the centroids' copies, which nobody reads.
template <class T>
T* DeviceMoeLayer<T>::unit_centroids() {
  if constexpr (std::is_same_v<T, float>) {
    own_unit_.ensure(owned_ * config_.dim);
    return own_unit_.data();
  } else {
    return parameters_.compute_copies() + parameters_.segment(host_.centroid()).begin;
  }
}

// Of the whole micro-batch spread evenly over ranks and codewords: what is known without asking the
// device.
template <class T>
experts::PathShape DeviceMoeLayer<T>::path_shape() const {
  const auto tokens = static_cast<double>(batch_.range.global_tokens);
  experts::PathShape shape;
  shape.tokens = tokens / (several() ? links_->size() : 1);
  shape.tokens_per_codeword = std::max(1.0, tokens / static_cast<double>(config_.codewords));
  shape.candidates = static_cast<double>(config_.shortlist);
  shape.experts = static_cast<double>(config_.experts);
  shape.active = static_cast<double>(config_.active);
  shape.expert_dim = config_.expert_dim;
  shape.dim = config_.dim;
  shape.gated = gate_table_ >= 0;
  return shape;
}

// Experts of one hidden unit in bf16; the grouped path has its pairs sorted by expert anyway.
template <class T>
bool DeviceMoeLayer<T>::sums_by_bundles() const {
  return !std::is_same_v<T, float> && config_.expert_dim == 1 &&
         path_taken_ == experts::Path::dense && airmoe::cuda::has_wgmma();
}

template <class T>
void DeviceMoeLayer<T>::group_pairs(cudaStream_t stream) {
  const int64_t slice = path_taken_ == experts::Path::dense
                            ? airmoe::cuda::accumulate_slice<T>(tokens_, config_.dim)
                            : 0;
  if (sums_by_bundles()) {
    bundles_.build(order_.view(), lists_.view(), position_.data(), config_.active, config_.experts,
                   stream, slice);
  } else {
    grouping_.build(order_.view(), lists_.view(), position_.data(), config_.active, config_.experts,
                    stream, slice);
  }
}

template <class T>
experts::cuda::DeviceExpertTable<T> DeviceMoeLayer<T>::table() const {
  experts::cuda::DeviceExpertTable<T> t;
  t.up = tables_.values(up_table_);
  t.down = tables_.values(down_table_);
  if (gate_table_ >= 0) t.gate_proj = tables_.values(gate_table_);
  t.expert_dim = config_.expert_dim;
  t.activation = config_.expert_activation;
  return t;
}

// Codewords of the home tokens.
template <class T>
void DeviceMoeLayer<T>::assign(const T* hidden, cudaStream_t stream) {
  codeword_.ensure(home_tokens_);
  router::cuda::assign_codewords(hidden, codebook_.compute(), home_tokens_, config_.dim,
                                 config_.codewords, codeword_.data(), stream);
}

template <class T>
void DeviceMoeLayer<T>::update_codebook(const T* hidden, cudaStream_t stream) {
  const auto layer = static_cast<uint32_t>(layer_);
  const TokenRange& range = batch_.range;
  const RandomStream initial(seed_, Purpose::codebook_init, 0, 0, layer);
  const RandomStream draws(seed_, Purpose::codeword_replacement, batch_.step, batch_.index, layer);
  if (!codebook_initialised_) {
    if (several()) {
      codebook_.fetch_initial(hidden, home_tokens_, range.first, range.global_tokens, initial,
                              stream);
      DeviceCommunicator& link = links_->comm(Lane::tokens);
      const comm::ScopedPhase phase(link.host(), "codebook");
      link.all_reduce_sum(codebook_.fetched(), codebook_.fetched_size(), stream);
      codebook_.initialise_from_fetched(range.global_tokens, stream);
    } else {
      codebook_.initialise(hidden, home_tokens_, initial, stream);
    }
    codebook_initialised_ = true;
  }
  assign(hidden, stream);
  order_.build(codeword_.data(), home_tokens_, config_.codewords, stream);
  if (several()) {
    DeviceCommunicator& link = links_->comm(Lane::tokens);
    const comm::ScopedPhase phase(link.host(), "codebook");
    codebook_.collect(hidden, order_.view(), stream);
    link.all_reduce_sum(codebook_.statistics(), codebook_.statistics_size(), stream);
    codebook_.advance(range.global_tokens, stream);
    codebook_.fetch(hidden, home_tokens_, range.first, range.global_tokens, draws, stream);
    link.all_reduce_sum(codebook_.fetched(), codebook_.fetched_size(), stream);
    codebook_.replace(stream);
  } else {
    codebook_.update(hidden, order_.view(), draws, stream);
  }
  add_revived(codebook_.dead().count, numbers_.data(), stream);
}

template <class T>
void DeviceMoeLayer<T>::build_lists(cudaStream_t stream) {
  if (!batch_.training) return rebuild_evaluation_lists(stream);
  values_ready_.block(stream);
  std::optional<JitterKey> jitter;
  if (config_.jitter > 0.0f) {
    jitter = jitter_.key(RandomStream(seed_, Purpose::jitter_shortlist, batch_.step, batch_.index,
                                      static_cast<uint32_t>(layer_)),
                         config_.jitter);
  }
  const T* unit = tables_.values(unit_table_);
  if (list_state_ != ListState::training) {
    lists_.forget(codebook_.dead(), stream);
    lists_.rebuild(codebook_.compute(), unit, jitter, stream);
    list_state_ = ListState::training;
  } else {
    lists_.rebuild(codebook_.compute(), unit, jitter, codebook_.dead(), stream);
  }
}

// On several ranks tokens are on their way while lists are built, and so is the host's wait for
// their numbers.
template <class T>
void DeviceMoeLayer<T>::route(const T* hidden, cudaStream_t stream) {
  if (batch_.training) {
    update_codebook(hidden, stream);
  } else {
    AIRMOE_CHECK(codebook_initialised_, "layer {}: the codebook has not seen a training batch yet",
                 layer_);
  }
  assign(hidden, stream);
  const int32_t* codeword = codeword_.data();
  if (several()) {
    const comm::ScopedPhase phase(links_->comm(Lane::tokens).host(),
                                  batch_.training ? "dispatch" : "eval_dispatch");
    const cudaStream_t lane = links_->fork(Lane::tokens, stream);
    exchange_->begin(codeword, home_tokens_, batch_.range.first, lane);
    build_lists(stream);
    exchange_->plan(lane);
    tokens_ = exchange_->received();
    away_hidden_.ensure(tokens_ * config_.dim);
    exchange_->send(hidden, config_.dim, away_hidden_.data(), lane);
    links_->join(Lane::tokens, stream);
    hidden_ = away_hidden_.data();
    codeword = exchange_->codeword();
  } else {
    build_lists(stream);
  }
  order_.build(codeword, tokens_, config_.codewords, stream);
}

template <class T>
void DeviceMoeLayer<T>::rebuild_evaluation_lists(cudaStream_t stream) {
  if (list_state_ == ListState::evaluation) return;
  values_ready_.block(stream);
  lists_.rebuild(codebook_.compute(), tables_.values(unit_table_), std::nullopt, stream);
  list_state_ = ListState::evaluation;
}

template <class T>
void DeviceMoeLayer<T>::forward(const T* hidden, int64_t tokens, float* out, cudaStream_t stream) {
  home_hidden_ = hidden_ = hidden;
  home_tokens_ = tokens_ = tokens;
  route(hidden, stream);
  const int64_t pairs = tokens_ * config_.active;
  position_.ensure(pairs);
  gate_.ensure(pairs);
  log_sum_exp_.ensure(tokens_);
  std::optional<JitterKey> jitter;
  if (batch_.training && config_.jitter > 0.0f) {
    jitter = jitter_.key(RandomStream(seed_, Purpose::jitter_score, batch_.step, batch_.index,
                                      static_cast<uint32_t>(layer_)),
                         config_.jitter, batch_.range.first);
    if (several()) jitter->token_index = exchange_->token_index();
  }
  router::cuda::select_experts(
      hidden_, config_.dim, order_.view(), lists_.view(), tables_.values(unit_table_),
      config_.active, jitter ? &*jitter : nullptr,
      {position_.data(), gate_.data(), log_sum_exp_.data()}, select_, stream);
  update_selected(stream);
  pair_tiles_.build(order_.view(), lists_.view(), position_.data(), config_.active, stream);
  const experts::cuda::DeviceExpertTable<T> experts = table();
  saved_.ensure(batch_.training ? pairs * experts.saved_per_pair() : 0);
  float* y = out;
  if (several()) {
    away_out_.ensure(tokens_ * config_.dim);
    y = away_out_.data();
  }
  float* saved = batch_.training ? saved_.data() : nullptr;
  path_taken_ = experts::cuda::choose_device_path(path_, path_shape());
  if (path_taken_ == experts::Path::grouped) {
    group_pairs(stream);
    experts::cuda::forward_grouped(experts, hidden_, config_.dim, pair_tiles_.view(),
                                   grouping_.view(), gate_.data(), y, saved, experts_, stream);
  } else {
    experts::cuda::forward(experts, hidden_, config_.dim, pair_tiles_.view(), gate_.data(), y,
                           saved, experts_, stream);
  }
  if (several()) {
    const comm::ScopedPhase phase(links_->comm(Lane::tokens).host(),
                                  batch_.training ? "combine" : "eval_combine");
    exchange_->give_back(y, config_.dim, out, links_->fork(Lane::tokens, stream));
  }
  if (batch_.training && several()) count_usage(stream);
  if (several()) links_->join(Lane::tokens, stream);
  if (keeps_output()) {
    output_.ensure(home_tokens_ * config_.dim);
    AIRMOE_CUDA(
        cudaMemcpyAsync(output_.data(), out, output_.bytes(), cudaMemcpyDeviceToDevice, stream));
  }
}

// The counts of all ranks are needed in the backward only.
template <class T>
void DeviceMoeLayer<T>::count_usage(cudaStream_t stream) {
  usage_ready_.block(stream);
  router::cuda::count_selections(lists_.view(), order_.view(), selected(), config_.experts,
                                 count_.data(), window_.data(), stream);
  if (!several() || balance_slope(config_, batch_) == 0.0f) return;
  DeviceCommunicator& link = links_->comm(Lane::background);
  const comm::ScopedPhase phase(link.host(), "usage");
  const cudaStream_t lane = links_->fork(Lane::background, stream);
  link.all_reduce_sum(count_.data(), config_.experts, lane);
  usage_ready_.record(lane);
}

// Rows of experts that no token had selected for a while are behind.
template <class T>
void DeviceMoeLayer<T>::update_selected(cudaStream_t stream) {
  if (rows_ == nullptr) return;
  if (batch_.training) {
    count_usage(stream);
  } else {
    router::cuda::count_selections(lists_.view(), order_.view(), selected(), config_.experts,
                                   count_.data(), nullptr, stream);
  }
  select_rows(parameters_, *rows_, count_.data(), stream);
}

template <class T>
void DeviceMoeLayer<T>::add_balance(cudaStream_t stream) {
  const float slope = balance_slope(config_, batch_);
  if (slope == 0.0f) return;
  usage_ready_.block(stream);
  router::cuda::add_balance_loss(lists_.view(), order_.view(), selected(), count_.data(), slope,
                                 &numbers_.data()->balance, balance_, stream);
  router::cuda::add_balance_gradient(lists_.view(), order_.view(), selected(), count_.data(), slope,
                                     d_gate_.data(), stream);
}

template <class T>
void DeviceMoeLayer<T>::backward(const T* d_out, float* d_hidden, cudaStream_t stream) {
  const int64_t pairs = tokens_ * config_.active;
  const int64_t m = config_.expert_dim, d = config_.dim;
  float* d_hidden_here = d_hidden;
  AIRMOE_CHECK(!gradients_collected_, "layer {}: a micro-batch after the last one of step {}",
               layer_, batch_.step);
  if (several()) {
    away_d_out_.ensure(tokens_ * d);
    away_d_hidden_.ensure(tokens_ * d);
    const comm::ScopedPhase phase(links_->comm(Lane::tokens).host(), "backward_dispatch");
    exchange_->send(d_out, d, away_d_out_.data(), links_->fork(Lane::tokens, stream));
    d_out = away_d_out_.data();
    d_hidden_here = away_d_hidden_.data();
  }
  if (path_taken_ != experts::Path::grouped) group_pairs(stream);
  if (several()) links_->join(Lane::tokens, stream);
  const experts::cuda::DeviceExpertTable<T> experts = table();
  for (DeviceBuffer<float>* one : {&d_gate_, &d_score_}) one->ensure(pairs);
  for (DeviceBuffer<float>* one : {&d_pre_, &scaled_}) one->ensure(pairs * m);
  if (experts.gated()) d_inner_.ensure(pairs * m);
  const experts::cuda::PairGradients of_pairs{
      d_gate_.data(), d_pre_.data(), experts.gated() ? d_inner_.data() : nullptr, scaled_.data()};
  if (path_taken_ == experts::Path::grouped) {
    experts::cuda::backward_pairs_grouped(experts, pair_tiles_.view(), grouping_.view(),
                                          gate_.data(), saved_.data(), d_out, d, of_pairs, stream);
  } else {
    experts::cuda::backward_pairs(experts, pair_tiles_.view(), gate_.data(), saved_.data(), d_out,
                                  d, of_pairs, stream);
  }
  add_balance(stream);
  router::cuda::softmax_backward(gate_.data(), d_gate_.data(), config_.active, tokens_,
                                 d_score_.data(), stream);

  const std::array<CombineTerm<T>, 3> combine = {{{d_pre_.data(), experts.up, m},
                                                  {d_score_.data(), tables_.values(unit_table_), 1},
                                                  {d_inner_.data(), experts.gate_proj, m}}};
  airmoe::cuda::combine_pairs<T>(pair_tiles_.view(),
                                 std::span(combine).first(experts.gated() ? 3 : 2), d,
                                 d_hidden_here, stream);
  if (several()) {
    const comm::ScopedPhase phase(links_->comm(Lane::tokens).host(), "backward_combine");
    exchange_->give_back(d_hidden_here, d, d_hidden, links_->fork(Lane::tokens, stream));
  }
  accumulate_gradients(d_out, stream);
  if (!several()) return;
  links_->join(Lane::tokens, stream);
  if (links_->overlaps() && batch_.index + 1 == batch_.count) collect_gradients(stream);
}

// Gradients of experts and unit centroids.
template <class T>
void DeviceMoeLayer<T>::accumulate_gradients(const T* d_out, cudaStream_t stream) {
  const int64_t m = config_.expert_dim, d = config_.dim;
  std::array<AccumulateTerm<T>, 4> array = {
      {{d_pre_.data(), hidden_, tables_.gradients(up_table_), m},
       {d_score_.data(), hidden_, tables_.gradients(unit_table_), 1},
       {scaled_.data(), d_out, tables_.gradients(down_table_), m},
       {}}};
  if (gate_table_ >= 0) {
    array[3] = array[2];
    array[2] = {d_inner_.data(), hidden_, tables_.gradients(gate_table_), m};
  }
  const auto terms = std::span(std::as_const(array)).first(gate_table_ >= 0 ? 4 : 3);
  airmoe::cuda::WrittenRows written;
  if (rows_ != nullptr) written = {rows_->written.data(), parameters_.history().next()};
  if constexpr (!std::is_same_v<T, float>) {
    if (sums_by_bundles()) {
      for (const airmoe::cuda::PairBundles& slice : bundles_.slices()) {
        airmoe::cuda::accumulate_bundles(slice, terms, d, accumulate_, stream, written);
      }
      return;
    }
  }
  for (const airmoe::cuda::PairGroups& slice : grouping_.slices()) {
    airmoe::cuda::accumulate_pairs<T>(slice, terms, d, accumulate_, stream, written);
  }
}

template <class T>
void DeviceMoeLayer<T>::collect_gradients(cudaStream_t stream) {
  const cudaStream_t lane = several() ? links_->fork(Lane::background, stream) : stream;
  tables_.collect_gradients(lane);
  router::cuda::project_to_sphere_backward(
      parameters_.gradient(host_.centroid()), parameters_.value(host_.centroid()),
      inverse_norm_.data(), owned_, config_.dim, rows_ != nullptr ? rows_->written.data() : nullptr,
      parameters_.history().next(), lane);
  gradients_ready_.record(lane);
  gradients_collected_ = true;
}

// The update that follows writes what the lane may still read of the values.
template <class T>
void DeviceMoeLayer<T>::finish_gradients(cudaStream_t stream) {
  if (!gradients_collected_) collect_gradients(stream);
  gradients_collected_ = false;
  gradients_ready_.block(stream);
  values_ready_.block(stream);
}

template <class T>
void DeviceMoeLayer<T>::parameters_changed(cudaStream_t stream) {
  const cudaStream_t lane = several() ? links_->fork(Lane::background, stream) : stream;
  router::cuda::project_to_sphere(parameters_.value(host_.centroid()), owned_, config_.dim, unit_,
                                  inverse_norm_.data(), lane);
  tables_.share_values(lane);
  values_ready_.record(lane);
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
  const BlockPartition& merged = host_.shortlists().merged_codewords();
  const auto lists = to_host(lists_.view().id + merged.begin(host_.rank()) * config_.shortlist,
                             merged.size(host_.rank()) * config_.shortlist, stream);
  host_.adopt_lists(lists, list_state_ == ListState::evaluation);
}

template <class T>
void DeviceMoeLayer<T>::capture(RoutingRecord& record, cudaStream_t stream) {
  const int64_t n = home_tokens_, d = config_.dim, k = config_.active, m = config_.shortlist;
  AIRMOE_CHECK(keeps_output(), "layer {}: the micro-batch was not to be captured", layer_);
  record.tokens = n;
  record.hidden.ensure(n * d);
  record.output.ensure(n * d);
  record.codeword.ensure(n);
  record.expert.ensure(n * k);
  record.gate.ensure(n * k);
  record.log_sum_exp.ensure(n);
  const auto hidden = to_host(home_hidden_, n * d, stream);
  std::transform(hidden.begin(), hidden.end(), record.hidden.begin(),
                 [](T x) { return static_cast<float>(x); });
  const auto output = to_host(output_.data(), n * d, stream);
  std::copy(output.begin(), output.end(), record.output.begin());
  const auto codeword = to_host(codeword_.data(), n, stream);
  std::copy(codeword.begin(), codeword.end(), record.codeword.begin());
  const auto lists = to_host(lists_.view().id, config_.codewords * m, stream);

  // Pairs in place order here become rows of the tokens computed here, then of the home tokens.
  const auto by_token = [&]<class X>(const X* pairs, int64_t width) {
    const auto token = to_host(order_.view().token, tokens_, stream);
    const auto placed = to_host(pairs, tokens_ * width, stream);
    std::vector<X> rows(placed.size());
    for (std::size_t place = 0; place < token.size(); ++place) {
      std::copy_n(placed.begin() + static_cast<int64_t>(place) * width, width,
                  rows.begin() + token[place] * width);
    }
    if (!several()) return rows;
    DeviceBuffer<X> away, home(n * width);
    away.upload(rows, stream);
    exchange_->give_back(away.data(), width, home.data(), stream);
    return to_host(home.data(), n * width, stream);
  };
  const auto position = by_token(position_.data(), k);
  const auto gate = by_token(gate_.data(), k);
  const auto log_sum_exp = by_token(log_sum_exp_.data(), 1);
  std::copy(gate.begin(), gate.end(), record.gate.begin());
  std::copy(log_sum_exp.begin(), log_sum_exp.end(), record.log_sum_exp.begin());
  for (int64_t t = 0; t < n; ++t) {
    const int32_t* list = lists.data() + codeword[static_cast<std::size_t>(t)] * m;
    for (int64_t i = t * k; i < (t + 1) * k; ++i) {
      record.expert[i] = list[position[static_cast<std::size_t>(i)]];
    }
  }
}

template <class T>
void DeviceMoeLayer<T>::collect_usage(comm::Communicator& host_comm, cudaStream_t stream) {
  auto counts = to_host(window_.data(), config_.experts, stream);
  if (several()) {
    const comm::ScopedPhase phase(host_comm, "usage");
    host_comm.all_reduce(std::span<int64_t>(counts), comm::Reduction::sum);
  }
  const std::span<int64_t> window = host_.usage().window();
  const int64_t first = host_.centroid().row_begin;
  AIRMOE_CHECK(std::ssize(window) == owned_, "usage of {} experts for {}", owned_, window.size());
  for (int64_t e = 0; e < owned_; ++e) window[e] += counts[first + e];
  window_.zero(stream);
}

template class DeviceMoeLayer<float>;
template class DeviceMoeLayer<__nv_bfloat16>;

}  // namespace airmoe::scheduler::cuda
