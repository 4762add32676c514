#include "scheduler/moe/moe_layer.hpp"

#include <algorithm>
#include <cmath>

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
                   uint64_t seed, ParameterSet& parameters, experts::Path path, SumPrecision sums)
    : comm_(comm),
      config_(config),
      layer_(layer),
      seed_(seed),
      path_(path),
      sums_(sums),
      rank_(comm.rank()),
      ranks_(comm.size()),
      dim_(config.dim),
      codebook_({config.codewords, config.dim, config.codebook_decay, config.dead_threshold}),
      codebook_step_(comm),
      shortlists_(comm, config.codewords, config.experts, config.shortlist),
      usage_(shortlists_.experts().size(comm.rank())),
      plan_(comm, config.codewords) {
  const BlockPartition& part = shortlists_.experts();
  local_experts_ = part.size(rank_);
  first_expert_ = static_cast<int32_t>(part.begin(rank_));
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
  unit_.ensure(local_experts_ * dim_);
  inverse_norm_.ensure(local_experts_);
  parameters_changed();
}

void MoeLayer::parameters_changed() {
  router::project_to_sphere(centroid_->values(), {unit_.data(), local_experts_, dim_},
                            inverse_norm_.span());
  lists_ = ListState::none;
}

void MoeLayer::finish_gradients() {
  for (Parameter* p : {centroid_, up_, down_, gate_proj_}) {
    if (p != nullptr) p->unfold_gradient();
  }
  router::project_to_sphere_backward(unit_centroids(), inverse_norm_.span(),
                                     centroid_->gradients());
}

experts::ExpertTable MoeLayer::table() const {
  const int64_t rows = local_experts_ * config_.expert_dim;
  experts::ExpertTable t;
  t.up = {up_->value.data(), rows, dim_};
  t.down = {down_->value.data(), rows, dim_};
  if (gate_proj_ != nullptr) t.gate_proj = {gate_proj_->value.data(), rows, dim_};
  t.expert_dim = config_.expert_dim;
  t.activation = config_.expert_activation;
  return t;
}

experts::ExpertGradients MoeLayer::gradients() {
  const auto rows = [&](Parameter& p) {
    return MatrixView<double>(p.gradient_sum.data(), p.gradient_sum.size() / dim_, dim_);
  };
  experts::ExpertGradients g;
  g.up = rows(*up_);
  g.down = rows(*down_);
  if (gate_proj_ != nullptr) g.gate_proj = rows(*gate_proj_);
  g.quantum = expert_gradient_quantum(config_.experts);
  return g;
}

// d(balance loss) / d(gate) per selection of an expert: loss_scale * weight * E / (T K).
float MoeLayer::balance_slope() const {
  if (!batch_.training || batch_.range.global_tokens == 0) return 0.0f;
  const double selections =
      static_cast<double>(batch_.range.global_tokens) * static_cast<double>(config_.active);
  return static_cast<float>(static_cast<double>(batch_.loss_scale) * config_.balance_weight *
                            static_cast<double>(config_.experts) / selections);
}

void MoeLayer::rebuild_evaluation_lists() {
  if (lists_ == ListState::evaluation) return;
  const PhaseClock::Scope time(clock_, Phase::lists);
  shortlists_.rebuild_all(codebook_.codewords(), unit_centroids(), std::nullopt);
  lists_ = ListState::evaluation;
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
      shortlists_.rebuild_all(codebook_.codewords(), unit_centroids(), jitter);
      lists_ = ListState::training;
    } else {
      shortlists_.rebuild(codebook_.codewords(), unit_centroids(), revived, jitter);
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
}

void MoeLayer::exchange_rows(const float* out, const std::vector<int64_t>& out_rows, float* in,
                             const std::vector<int64_t>& in_rows, int64_t width, int tag) {
  float_sends_.clear();
  float_recvs_.clear();
  for (int r = 0; r < ranks_; ++r) {
    const int64_t sent = out_rows[r] * width;
    const int64_t received = in_rows[r] * width;
    if (sent > 0) float_sends_.push_back({r, {out, static_cast<std::size_t>(sent)}});
    if (received > 0) float_recvs_.push_back({r, {in, static_cast<std::size_t>(received)}});
    out += sent;
    in += received;
  }
  comm_.exchange<float>(float_sends_, float_recvs_, tag).wait();
}

}  // namespace airmoe::scheduler
