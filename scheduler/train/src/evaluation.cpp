#include "scheduler/train/evaluation.hpp"

#include <algorithm>

namespace airmoe::scheduler {

namespace {

// The probe is the exact oracle: tokens x E scores per layer. This many in all keep it below a
// second.
constexpr int64_t kProbeScores = int64_t{1} << 24;
constexpr int64_t kMaxProbeTokens = 512;
constexpr int64_t kMinProbeTokens = 16;

}  // namespace

Evaluation::Evaluation(comm::Communicator& comm, const Sampler& sampler, int64_t context,
                       int64_t sequences, int64_t per_pass)
    : comm_(comm),
      sampler_(sampler),
      context_(context),
      sequences_(std::min(sequences, sampler.validation_windows())),
      per_pass_(per_pass) {}

// Sum of -log p over this rank's share of windows [begin, end).
double Evaluation::pass(Engine& engine, int64_t begin, int64_t end) {
  const BlockPartition over_ranks{end - begin, comm_.size()};
  const int64_t first = over_ranks.begin(comm_.rank());
  const int64_t mine = over_ranks.size(comm_.rank());
  tokens_.ensure(mine * context_);
  targets_.ensure(mine * context_);
  for (int64_t i = 0; i < mine; ++i) {
    const std::span<int32_t> tokens = tokens_.span().subspan(i * context_, context_);
    const std::span<int32_t> targets = targets_.span().subspan(i * context_, context_);
    if (sequences_ > 0) {
      sampler_.fill_validation(begin + first + i, sequences_, tokens, targets);
    } else {
      sampler_.fill(begin + first + i, tokens, targets);
    }
  }
  MicroBatch batch;
  batch.training = false;
  batch.range = {(end - begin) * context_, first * context_};
  return engine.forward_loss(tokens_.span(), targets_.span(), mine, batch);
}

EvaluationResult Evaluation::run(Model& model, Engine& engine) {
  EvaluationResult result;
  const int64_t windows = sequences_ > 0 ? sequences_ : per_pass_;
  double sum = 0;
  for (int64_t begin = 0; begin < windows; begin += per_pass_) {
    sum += pass(engine, begin, std::min(windows, begin + per_pass_));
    if (begin > 0 || model.moe_layers().empty()) continue;
    engine.bring_to_host(Engine::Lists::current);
    RoutingQuality& mean = result.quality;
    const int64_t probes =
        std::clamp(kProbeScores / model.config().experts, kMinProbeTokens, kMaxProbeTokens);
    const auto layers = static_cast<double>(model.moe_layers().size());
    for (std::size_t i = 0; i < model.moe_layers().size(); ++i) {
      RoutingRecord record;
      engine.capture(i, record);
      const RoutingQuality q = probe_routing(comm_, *model.moe_layers()[i], record, probes);
      mean.tokens += q.tokens;
      mean.overlap += q.overlap / layers;
      mean.topk_mass_ratio += q.topk_mass_ratio / layers;
      mean.mass_recall += q.mass_recall / layers;
      mean.mass_recall_bound += q.mass_recall_bound / layers;
    }
  }
  sum = comm_.all_reduce_value(sum, comm::Reduction::sum);
  if (sequences_ > 0) {
    result.tokens = sequences_ * context_;
    result.loss = sum / static_cast<double>(result.tokens);
  }
  return result;
}

}  // namespace airmoe::scheduler
