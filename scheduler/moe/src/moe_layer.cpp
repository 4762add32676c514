#include "scheduler/moe/moe_layer.hpp"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <utility>

#include "comm/base/error.hpp"
#include "comm/base/exact_sum.hpp"

namespace airmoe::scheduler {

namespace {

// Standard deviations of the initial experts: unit-variance pre-activations for RMS-normalised
// tokens.
float init_stddev(int64_t dim) {
  return 1.0f / std::sqrt(static_cast<float>(dim));
}

}  // namespace

MoeLayer::MoeLayer(comm::Communicator& comm, const ModelConfig& config, int64_t layer,
                   uint64_t seed, ParameterSet& parameters, experts::Path path, SumPrecision sums,
                   const ExchangeConfig& exchange)
    : comm_(comm),
      config_(config),
      layer_(layer),
      seed_(seed),
      path_(path),
      sums_(sums),
      exchange_(exchange),
      rank_(comm.rank()),
      ranks_(comm.size()),
      dim_(config.dim),
      expert_quantum_(expert_gradient_quantum(config.experts)),
      codebook_({config.codewords, config.dim, config.codebook_decay, config.dead_threshold}),
      codebook_step_(comm),
      shortlists_(comm, config.codewords, config.experts, config.shortlist, exchange.rank_cap),
      residency_(comm, config.experts, sums),
      routes_(comm, residency_, config.codewords, config.shortlist),
      placement_(comm, config, exchange, sums),
      usage_(residency_.owned()),
      plan_(comm) {
  const BlockPartition& part = shortlists_.experts();
  const std::string base = fmt::format("/layers/{:02d}/moe/", layer);
  const int64_t e = config.experts;
  const int64_t m = config.expert_dim;
  centroid_ = &parameters.add_by_expert(base + "centroid", {e, dim_}, part, rank_, true);
  up_ = &parameters.add_by_expert(base + "up", {e, m, dim_}, part, rank_, true);
  down_ = &parameters.add_by_expert(base + "down", {e, m, dim_}, part, rank_, true);
  if (config.expert_activation == ExpertActivation::swiglu) {
    gate_proj_ = &parameters.add_by_expert(base + "gate_proj", {e, m, dim_}, part, rank_, true);
    initialise_normal(*gate_proj_, seed, init_stddev(dim_));
  }
  initialise_normal(*centroid_, seed, init_stddev(dim_));
  initialise_normal(*up_, seed, init_stddev(dim_));
  initialise_normal(*down_, seed, init_stddev(dim_));
  unit_.ensure(residency_.owned() * dim_);
  inverse_norm_.ensure(residency_.owned());

  residency_.add_values(unit_, dim_);
  residency_.add_owned(centroid_->value, dim_);
  residency_.add_gradients(centroid_->gradient_sum, dim_);
  for (Parameter* p : {centroid_, up_, down_, gate_proj_}) {
    if (p == nullptr) continue;
    residency_.add_owned(p->moment1, p->row_size());
    residency_.add_owned(p->moment2, p->row_size());
    if (p == centroid_) continue;
    residency_.add_values(p->value, p->row_size(), ExpertResidency::Fetch::when_used);
    residency_.add_gradients(p->gradient_sum, p->row_size());
  }
  window_ = Buffer<float>(residency_.owned(), 0.0f);
  residency_.add_owned(window_, 1);
  routes_.set_exchange(placement_.exchange());
  parameters_changed();
}

void MoeLayer::parameters_changed() {
  residency_.drop_copies();
  if (centroids_) centroids_->drop_copies();
  unit_current_ = false;
  lists_ = ListState::none;
}

ConstMatrix MoeLayer::unit_centroids() {
  const Matrix unit(unit_.data(), residency_.owned(), dim_);
  if (!unit_current_) {
    router::project_to_sphere(centroid_->values(), unit, inverse_norm_.span());
    unit_current_ = true;
  }
  return unit;
}

ConstMatrix MoeLayer::unit_centroids(int64_t first, int64_t count, Buffer<float>& scratch) const {
  if (unit_current_) return {unit_.data() + first * dim_, count, dim_};
  scratch.ensure(count * (dim_ + 1));
  const Matrix unit(scratch.data(), count, dim_);
  const std::span<float> norms = scratch.span().subspan(static_cast<std::size_t>(count * dim_));
  router::project_to_sphere(std::as_const(*centroid_).values().slice_rows(first, count), unit,
                            norms);
  return unit;
}

void MoeLayer::finish_gradients() {
  if (residency_.copies() > 0) {
    held_copies_ = static_cast<double>(residency_.copies());
    used_copies_ = static_cast<double>(residency_.touched_copies());
  }
  residency_.return_gradients();
  if (centroids_ && routes_.exchange() == Exchange::selected) {
    centroids_->return_gradients();
    const int64_t owned = residency_.owned() * dim_;
    for (int64_t i = 0; i < owned; ++i) {
      centroid_->gradient_sum[i] += d_all_unit_[i];
      d_all_unit_[i] = 0.0;
    }
  }
  for (Parameter* p : {centroid_, up_, down_, gate_proj_}) {
    if (p != nullptr) p->unfold_gradient();
  }
  router::project_to_sphere_backward(unit_centroids(), inverse_norm_.span(),
                                     centroid_->gradients());
}

experts::ExpertTable MoeLayer::table() const {
  const int64_t rows = residency_.rows() * config_.expert_dim;
  experts::ExpertTable t;
  t.up = {up_->value.data(), rows, dim_};
  t.down = {down_->value.data(), rows, dim_};
  if (gate_proj_ != nullptr) t.gate_proj = {gate_proj_->value.data(), rows, dim_};
  t.expert_dim = config_.expert_dim;
  t.activation = config_.expert_activation;
  return t;
}

experts::ExpertGradients MoeLayer::gradients() {
  const int64_t rows = residency_.rows() * config_.expert_dim;
  experts::ExpertGradients g;
  g.up = {up_->gradient_sum.data(), rows, dim_};
  g.down = {down_->gradient_sum.data(), rows, dim_};
  if (gate_proj_ != nullptr) g.gate_proj = {gate_proj_->gradient_sum.data(), rows, dim_};
  g.quantum = expert_quantum_;
  return g;
}

MatrixView<double> MoeLayer::unit_gradients() {
  return {centroid_->gradient_sum.data(), residency_.rows(), dim_};
}

float balance_slope(const ModelConfig& config, const MicroBatch& batch) {
  if (!batch.training || batch.range.global_tokens == 0) return 0.0f;
  const double selections =
      static_cast<double>(batch.range.global_tokens) * static_cast<double>(config.active);
  return static_cast<float>(static_cast<double>(batch.loss_scale) * config.balance_weight *
                            static_cast<double>(config.experts) / selections);
}

void MoeLayer::route(ConstMatrix hidden) {
  const auto layer = static_cast<uint32_t>(layer_);
  if (batch_.training) {
    std::span<const int32_t> revived;
    {
      const PhaseClock::Scope time(clock_, Phase::codebook);
      const comm::ScopedPhase phase(comm_, "codebook");
      if (!codebook_initialised_) {
        codebook_step_.initialise(codebook_, hidden, batch_.range,
                                  RandomStream(seed_, Purpose::codebook_init, 0, 0, layer));
        codebook_initialised_ = true;
      }
      revived = codebook_step_.update(
          codebook_, hidden, batch_.range,
          RandomStream(seed_, Purpose::codeword_replacement, batch_.step, batch_.index, layer),
          assign_);
      counters_.revived_codewords += std::ssize(revived);
    }
    const PhaseClock::Scope time(clock_, Phase::lists);
    std::optional<router::Jitter> jitter;
    if (config_.jitter > 0.0f) {
      jitter = router::Jitter{
          RandomStream(seed_, Purpose::jitter_shortlist, batch_.step, batch_.index, layer),
          config_.jitter};
    }
    if (lists_ != ListState::training) {
      residency_.drop_copies();  // of an evaluation
      if (centroids_) centroids_->drop_copies();
      lists_ = ListState::none;
      rebuild_lists(shortlists_.all_codewords(), jitter);
      lists_ = ListState::training;
    } else {
      rebuild_lists(revived, jitter);
    }
  } else {
    AIRMOE_CHECK(codebook_initialised_, "layer {}: the codebook has not seen a training batch yet",
                 layer_);
    rebuild_evaluation_lists();
  }
  const PhaseClock::Scope time(clock_, Phase::assign);
  codeword_.ensure(hidden.rows);
  router::assign_codewords(hidden, codebook_.codewords(), codeword_.span(), assign_);
  order_.build(codeword_.span(), config_.codewords);
  plan_.order(order_, routes_, chunk_begin_);
  if (routes_.exchange() == Exchange::gather) {
    routes_.require(order_.present.span());
    make_resident(routes_.needed());
    routes_.bind();
  }
}

// Lets messages move. Called between pieces of work that may take microseconds; a look at all
// tickets takes as long, so there is a pause between looks.
void MoeLayer::poll() {
  constexpr auto kPause = std::chrono::microseconds(300);
  const auto now = std::chrono::steady_clock::now();
  if (now - last_poll_ < kPause) return;
  last_poll_ = now;
  for (Chunk& chunk : chunks_) {
    chunk.rows.test();
    chunk.scores.test();
    chunk.cuts.test();
    chunk.result.test();
  }
}

}  // namespace airmoe::scheduler
