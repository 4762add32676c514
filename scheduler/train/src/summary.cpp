// summary.json and the expert-usage figures in it.

#include <cmath>

#include <nlohmann/json.hpp>
#include <sys/resource.h>

#include "router/metrics.hpp"
#include "scheduler/train/trainer.hpp"

namespace airmoe::scheduler {

namespace {

constexpr int64_t kUsageWindowSteps = 100;

router::Usage usage_over_ranks(comm::Communicator& comm, const router::Usage& mine) {
  double sums[] = {mine.members, mine.dead, mine.total, mine.n_log_n};
  comm.all_reduce(std::span<double>(sums), comm::Reduction::sum);
  const double largest = comm.all_reduce_value(mine.largest, comm::Reduction::max);
  return {sums[0], sums[1], sums[2], sums[3], largest};
}

}  // namespace

// Every kUsageWindowSteps steps, and at the end if no whole window exists: which experts were used.
void Trainer::close_usage_window(int64_t step, bool last) {
  const int64_t steps = step - window_begin_;
  if (steps < kUsageWindowSteps && !(last && usage_.steps == 0)) return;
  usage_ = UsageSummary{};
  engine_->collect_usage();
  usage_.steps = steps;
  window_begin_ = step;
  const auto layers = static_cast<double>(model_->moe_layers().size());
  for (auto& layer : model_->moe_layers()) {
    router::ExpertUsage& experts = layer->usage();
    experts.flush();
    const router::Usage mine = router::usage_of(experts.window());
    const router::Usage all = usage_over_ranks(comm_, mine);
    const auto load = static_cast<int64_t>(mine.total);
    const router::Usage ranks =
        usage_over_ranks(comm_, router::usage_of(std::span<const int64_t>(&load, 1)));
    usage_.dead_fraction += router::dead_fraction(all) / layers;
    usage_.entropy += router::entropy_fraction(all) / layers;
    usage_.max_violation_rank += router::max_violation(ranks) / layers;
    experts.begin_window();
  }
}

void Trainer::write_summary(int64_t step) {
  struct rusage usage = {};
  getrusage(RUSAGE_SELF, &usage);
  const int64_t peak =
      comm_.all_reduce_value(static_cast<int64_t>(usage.ru_maxrss) * 1024, comm::Reduction::sum);
  const int64_t device_peak =
      comm_.all_reduce_value(engine_->device_bytes_peak(), comm::Reduction::sum);
  if (comm_.rank() != 0) return;
  const auto layers =
      static_cast<double>(std::max<std::size_t>(1, config_.model.moe_layers.size()));
  const double tokens = totals_.tokens;
  int64_t revived = 0;
  for (auto& layer : model_->moe_layers()) revived += layer->counters().revived_codewords;
  nlohmann::json j;
  j["steps"] = step;
  j["first_step"] = first_step_;
  j["ranks"] = comm_.size();
  j["parameters"] = model_->parameter_count();
  j["tokens_per_second"] = tokens / train_seconds_;
  j["train_seconds"] = train_seconds_;
  j["loss_first"] = loss_first_;
  j["loss_last"] = loss_last_;
  j["val_loss"] = nullptr;
  j["val_perplexity"] = nullptr;
  if (last_evaluation_.tokens > 0) {
    j["val_loss"] = last_evaluation_.loss;
    j["val_perplexity"] = std::exp(last_evaluation_.loss);
  }
  j["lambda_candidate"] = totals_.candidate_ranks / tokens / layers;
  j["lambda_selected"] = totals_.selected_ranks / tokens / layers;
  j["bytes_dispatch"] = totals_.bytes_dispatch / tokens;
  j["bytes_select"] = totals_.bytes_select / tokens;
  j["bytes_combine"] = totals_.bytes_combine / tokens;
  j["bytes_backward"] = totals_.bytes_backward / tokens;
  j["bytes_copies"] = totals_.bytes_copies / tokens;
  j["bytes_lists"] = totals_.bytes_lists / tokens;
  j["hidden_share"] =
      totals_.exchange_seconds > 0 ? 1.0 - totals_.waited_seconds / totals_.exchange_seconds : 0.0;
  j["layer_seconds"] = totals_.layer_seconds / comm_.size();
  const RoutingQuality& q = last_evaluation_.quality;
  for (const auto& [key, value] : {std::pair<const char*, double>{"overlap", q.overlap},
                                   {"topk_mass_ratio", q.topk_mass_ratio},
                                   {"mass_recall", q.mass_recall},
                                   {"mass_recall_bound", q.mass_recall_bound}}) {
    j[key] = nullptr;
    if (q.tokens > 0) j[key] = value;
  }
  j["probe_tokens"] = q.tokens;
  j["usage_window_steps"] = usage_.steps;
  j["dead_fraction"] = usage_.dead_fraction;
  j["entropy_experts"] = usage_.entropy;
  j["max_violation_rank"] = usage_.max_violation_rank;
  j["codewords_revived"] = revived;
  j["peak_rss_bytes"] = peak;
  j["device"] = engine_->description().empty() ? "cpu" : engine_->description();
  j["peak_device_bytes"] = device_peak;
  const std::string path = config_.output_dir + "/summary.json";
  write_file_atomically(path, j.dump(2) + "\n");
  say("summary in " + path);
}

}  // namespace airmoe::scheduler
