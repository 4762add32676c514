#include "apps/study/clustered_layer.hpp"

#include <algorithm>
#include <chrono>
#include <cmath>

#include "comm/base/random.hpp"

namespace airmoe::study {

namespace {

constexpr int64_t kFamily = 8;          // neighbouring clusters whose lists overlap
constexpr float kClusterSpread = 0.7f;  // of a cluster's centre around its family's
constexpr float kExpertSpread = 1.5f;   // of centroids around centres
constexpr float kTokenSpread = 0.75f;

enum Draw : uint32_t { families, clusters, experts, choices, states, gradients };

// Of length `length`: the row of `base`, of length 1, plus noise of about length `spread`.
void near(const float* base, const RandomStream& noise, int64_t index, float spread, float length,
          std::span<float> out) {
  const auto d = static_cast<double>(out.size());
  noise.fill_normal(out.data(), std::ssize(out), static_cast<uint64_t>(index) * out.size(),
                    spread / static_cast<float>(std::sqrt(d)));
  double square = 0;
  for (std::size_t k = 0; k < out.size(); ++k) {
    out[k] += base[k];
    square += static_cast<double>(out[k]) * static_cast<double>(out[k]);
  }
  const float scale = length / static_cast<float>(std::sqrt(std::max(square, 1e-30)));
  for (float& x : out) x *= scale;
}

}  // namespace

ClusteredLayer::ClusteredLayer(comm::Communicator& comm, const ClusteredShape& shape,
                               const scheduler::ExchangeConfig& exchange)
    : shape_(shape),
      comm_(comm),
      layer_(comm_, shape.model, 0, shape.seed, parameters_, experts::Path::automatic, shape.sums,
             exchange) {
  const int64_t d = shape_.model.dim, codewords = shape_.model.codewords;
  const RandomStream family(shape_.seed, Purpose::test_data, families);
  const RandomStream cluster(shape_.seed, Purpose::test_data, clusters);
  const std::vector<float> zero(static_cast<std::size_t>(d), 0.0f);
  std::vector<float> base(static_cast<std::size_t>(d));
  centre_.resize(static_cast<std::size_t>(codewords * d));
  for (int64_t g = 0; g < codewords; ++g) {
    near(zero.data(), family, g / kFamily, 1.0f, 1.0f, base);
    near(base.data(), cluster, g, kClusterSpread, 1.0f,
         std::span(centre_).subspan(static_cast<std::size_t>(g * d), static_cast<std::size_t>(d)));
  }
  set_centroids();
  make_tokens();
}

void ClusteredLayer::set_centroids() {
  const int64_t d = shape_.model.dim;
  const RandomStream noise(shape_.seed, Purpose::test_data, experts);
  scheduler::Parameter& centroid = layer_.centroid();
  for (int64_t i = 0; i < centroid.row_count; ++i) {
    const int64_t e = centroid.row_begin + i;
    near(centre_.data() + e % shape_.model.codewords * d, noise, e, kExpertSpread, 1.0f,
         {centroid.value.data() + i * d, static_cast<std::size_t>(d)});
  }
  layer_.parameters_changed();
}

void ClusteredLayer::make_tokens() {
  const int64_t d = shape_.model.dim, n = shape_.tokens_per_rank;
  const RandomStream choice(shape_.seed, Purpose::test_data, choices);
  const RandomStream noise(shape_.seed, Purpose::test_data, states);
  const int64_t codewords = shape_.model.codewords;
  std::vector<float> counts(static_cast<std::size_t>(codewords), 0.0f);
  tokens_.resize(static_cast<std::size_t>(shape_.micro_batches * n * d));
  for (int64_t i = 0; i < shape_.micro_batches * n; ++i) {
    const int64_t token = i * comm_.size() + comm_.rank();
    // Skewed: the square of a uniform number prefers the first clusters.
    const double u = choice.uniform(static_cast<uint64_t>(token));
    const auto g =
        std::min(codewords - 1, static_cast<int64_t>(u * u * static_cast<double>(codewords)));
    counts[g] += 1.0f / static_cast<float>(shape_.micro_batches);
    near(centre_.data() + g * d, noise, token, kTokenSpread, std::sqrt(static_cast<float>(d)),
         {tokens_.data() + i * d, static_cast<std::size_t>(d)});
  }
  out_.resize(static_cast<std::size_t>(n * d));
  d_hidden_ = out_;
  d_out_ = out_;
  RandomStream(shape_.seed, Purpose::test_data, gradients)
      .fill_normal(d_out_.data(), n * d, static_cast<uint64_t>(comm_.rank() * n * d),
                   1.0f / static_cast<float>(n * comm_.size()));
  comm_.all_reduce(std::span<float>(counts), comm::Reduction::sum);
  router::Codebook& codebook = layer_.codebook();
  std::copy(centre_.begin(), centre_.end(), codebook.codewords().data);
  std::copy(centre_.begin(), centre_.end(), codebook.sums().data);
  std::copy(counts.begin(), counts.end(), codebook.counts().begin());
  layer_.set_codebook_initialised();
}

void ClusteredLayer::place(const scheduler::Placement& placement, scheduler::Exchange exchange) {
  layer_.placement().fix(placement, exchange);
}

void ClusteredLayer::micro_batch(int index) {
  const int64_t n = shape_.tokens_per_rank, d = shape_.model.dim;
  scheduler::MicroBatch batch;
  batch.step = 1;  // always: jitter, and with it routing, is that of this step
  batch.index = static_cast<uint32_t>(index);
  batch.range = {n * comm_.size(), n * comm_.rank()};
  batch.loss_scale = 1.0f / static_cast<float>(n * comm_.size() * shape_.micro_batches);
  batch.count = shape_.micro_batches;
  layer_.begin_micro_batch(batch);
  layer_.forward({tokens_.data() + index * n * d, n, d}, {out_.data(), n, d});
  if (recording_ != nullptr) {
    scheduler::RoutingRecord record;
    layer_.capture(record);
    const auto gather = [&](std::vector<int32_t>& to, const int32_t* mine, int64_t count) {
      const auto begin = to.size();
      to.resize(begin + static_cast<std::size_t>(count * comm_.size()));
      comm_.all_gather(std::span<const int32_t>(mine, static_cast<std::size_t>(count)),
                       std::span<int32_t>(to).subspan(begin));
    };
    gather(recording_->codeword, record.codeword.data(), n);
    gather(recording_->expert, record.expert.data(), n * shape_.model.active);
  }
  layer_.backward({d_out_.data(), n, d}, {d_hidden_.data(), n, d});
}

double ClusteredLayer::step() {
  comm_.barrier();
  comm_.reset();
  const auto start = std::chrono::steady_clock::now();
  for (int u = 0; u < shape_.micro_batches; ++u) micro_batch(u);
  layer_.finish_gradients();
  const double mine =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  if (recording_ != nullptr) layer_.shortlists().gather_all(recording_->lists);
  layer_.parameters_changed();
  parameters_.zero_gradients();
  return comm_.all_reduce_value(mine, comm::Reduction::max);
}

scheduler::RoutingTrace ClusteredLayer::routing() {
  scheduler::RoutingTrace trace;
  trace.experts = shape_.model.experts;
  trace.active = shape_.model.active;
  trace.length = shape_.model.shortlist;
  trace.synthetic = true;
  trace.lists.resize(static_cast<std::size_t>(shape_.model.codewords * trace.length));
  recording_ = &trace;
  step();
  recording_ = nullptr;
  return trace;
}

}  // namespace airmoe::study
