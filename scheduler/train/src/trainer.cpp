#include "scheduler/train/trainer.hpp"

#include <chrono>
#include <cmath>
#include <cstdio>
#include <filesystem>

#include <sys/stat.h>

#include "comm/base/error.hpp"
#include "scheduler/store/agreement.hpp"
#include "scheduler/train/trace_step.hpp"

namespace airmoe::scheduler {

namespace {

namespace fs = std::filesystem;
using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

bool same_directory(const std::string& a, const std::string& b) {
  std::error_code ignored;
  return fs::weakly_canonical(a, ignored) == fs::weakly_canonical(b, ignored);
}

// On a cold disk this takes seconds, before there is anything to say.
Corpus open_corpus(const comm::Communicator& comm, const TrainConfig& config,
                   const RunOptions& options) {
  struct Notice {
    explicit Notice(bool show) : shown(show) {
      if (shown) std::fputs("\r\033[Kreading the data", stderr);
    }
    ~Notice() {
      if (shown) std::fputs("\r\033[K", stderr);
    }
    const bool shown;
  };
  const Notice notice(options.show_progress && comm.rank() == 0);
  return Corpus::open({config.data, config.data_max_bytes, config.token_type});
}

// Fills in what only the data knows, then checks everything before anything is built.
TrainConfig resolved(TrainConfig config, const Corpus& corpus) {
  if (config.model.vocab == 0) config.model.vocab = corpus.natural_vocab();
  config.validate();
  return config;
}

}  // namespace

std::optional<OpenedCheckpoint> find_resume(comm::Communicator& comm, const TrainConfig& config) {
  if (config.resume.empty()) return std::nullopt;
  if (config.resume != "auto") return open_checkpoint(comm, config.resume);
  const std::string dir = config.checkpoint_directory();
  if (!has_checkpoint(comm, dir)) return std::nullopt;
  return open_checkpoint(comm, dir);
}

Trainer::Trainer(comm::Communicator& comm, const TrainConfig& given, const RunOptions& options,
                 const std::optional<OpenedCheckpoint>& resume)
    : comm_(comm),
      options_(options),
      corpus_(open_corpus(comm, given, options)),
      config_(resolved(given, corpus_)),
      schedule_(config_.learning_rate_schedule()),
      trace_steps_(config_.trace_steps.begin(), config_.trace_steps.end()) {
  const TrainConfig& config = config_;
  const int64_t cap = config.exchange.rank_cap;
  const int64_t per_rank = config.model.experts / comm_.size();
  if (cap > 0 && cap < comm_.size() && cap * per_rank < config.model.shortlist) {
    fail(ExitCode::config,
         "--rank-cap {}: {} owners have {} of --experts {} on {} ranks, fewer than --shortlist {}: "
         "give a larger cap or a shorter list",
         cap, cap, cap * per_rank, config.model.experts, comm_.size(), config.model.shortlist);
  }
  if (resume) check_same_model(resume->file.path, resume->meta.model_digest, config.model);
  corpus_.check_vocab(config.model.vocab);
  const auto digest = static_cast<int64_t>(corpus_.digest());
  if (comm_.all_reduce_value(digest, comm::Reduction::max) !=
      comm_.all_reduce_value(digest, comm::Reduction::min)) {
    fail(ExitCode::bad_data,
         "--data: ranks read different text (rank {} has digest {:08x}): give the same files on "
         "every host",
         comm_.rank(), corpus_.digest());
  }
  sampler_ = std::make_unique<Sampler>(corpus_, config.model.context, config.validation_fraction,
                                       config.seed);
  on_root(comm_, [&] {
    std::error_code error;
    fs::create_directories(config.output_dir, error);
    if (error) {
      fail(ExitCode::io, "cannot make --output-dir {}: {}", config.output_dir, error.message());
    }
  });
  if (!resume && config.checkpoints) check_fresh_start();
  model_ = std::make_unique<Model>(comm_, config.model, config.seed, config.expert_path,
                                   config.sums, config.exchange);
  engine_ = make_engine(comm_, *model_, config_);
  evaluation_ =
      std::make_unique<Evaluation>(comm_, *sampler_, config.model.context, config.eval_sequences,
                                   std::max<int64_t>(1, config.batch / config.accumulate));
  if (resume) {
    restore_checkpoint(comm_, *resume, model_->state_for_restoring());
    model_->restored();
    engine_->take_from_host();
    first_step_ = resume->meta.step + 1;
    saved_step_ = resume->meta.step;
    resumed_from_ = resume->file.path;
    parent_uuid_ = resume->meta.uuid;
    if (first_step_ > config.steps) {
      fail(ExitCode::config, "{} is at step {} and --steps is {}: nothing to do, give more --steps",
           resumed_from_, resume->meta.step, config.steps);
    }
  }

  // The locks come first: a second run must not set the metrics of the first aside.
  if (config.checkpoints) {
    lock_ = std::make_unique<DirectoryLock>(comm_, config.checkpoint_directory());
  }
  if (!config.checkpoints || !same_directory(config.checkpoint_directory(), config.output_dir)) {
    output_lock_ = std::make_unique<DirectoryLock>(comm_, config.output_dir);
  }
  on_root(comm_, [&] {
    log_ = std::make_unique<RunLog>(config.output_dir, first_step_ - 1, options.show_progress);
    write_file_atomically(config.output_dir + "/config.resolved.json", to_json(config_) + "\n");
  });
  if (!config.trace.empty()) {
    trace_writer_ = std::make_unique<TraceWriter>(
        comm_, config.trace, resume ? TraceWriter::Mode::extend : TraceWriter::Mode::create,
        to_json(config_), options.writer);
  }
  const std::string where = engine_->description();
  say(fmt::format("{}; {} parameters on {} rank{}{}{}", corpus_.description(),
                  model_->parameter_count(), comm_.size(), comm_.size() == 1 ? "" : "s",
                  where.empty() ? "" : ", ", where));
  if (resume) say(fmt::format("resuming {} at step {}", resumed_from_, first_step_ - 1));
}

Trainer::~Trainer() = default;

// Checkpoints of an older run in the same place would be mixed with and rotated out by ours.
void Trainer::check_fresh_start() {
  if (!has_checkpoint(comm_, config_.checkpoint_directory())) return;
  const DirectoryLock unused(comm_, config_.checkpoint_directory());  // in use: the better reason
  fail(ExitCode::config,
       "{} holds checkpoints of an earlier run: give --resume auto to go on with it, or another "
       "--output-dir or --checkpoint-dir",
       config_.checkpoint_directory());
}

void Trainer::say(const std::string& line) {
  if (log_) log_->say(line);
}

void Trainer::micro_batch(int64_t step, int64_t index) {
  const int64_t context = config_.model.context;
  const BlockPartition over_micro{config_.batch, config_.accumulate};
  const BlockPartition over_ranks{over_micro.size(index), comm_.size()};
  const int64_t first = over_ranks.begin(comm_.rank());
  const int64_t mine = over_ranks.size(comm_.rank());
  tokens_.ensure(mine * context);
  targets_.ensure(mine * context);
  for (int64_t i = 0; i < mine; ++i) {
    const int64_t sample = (step - 1) * config_.batch + over_micro.begin(index) + first + i;
    sampler_->fill(sample, tokens_.span().subspan(i * context, context),
                   targets_.span().subspan(i * context, context));
  }
  MicroBatch batch;
  batch.step = static_cast<uint32_t>(step);
  batch.index = static_cast<uint32_t>(index);
  batch.range = {over_ranks.total * context, first * context};
  batch.count = config_.accumulate;
  batch.loss_scale = 1.0f / static_cast<float>(config_.batch * context);
  batch.captured = index == 0 && trace_steps_.contains(step);
  engine_->micro_batch(tokens_.span(), targets_.span(), mine, batch);
  if (batch.captured) {
    trace(step, batch.range.first, batch.range.global_tokens);
  }
}

void Trainer::trace(int64_t step, int64_t first_token, int64_t tokens) {
  const WriteResult written =
      add_trace_step(comm_, *model_, *engine_, *trace_writer_, step, first_token, tokens);
  say(fmt::format("step {}: traced to {} ({:.1f} MB)", step, written.path,
                  static_cast<double>(written.bytes) / 1e6));
}

// Adds this rank's counters and counted bytes since the last call.
void Trainer::collect(StepSums& sums) {
  for (auto& layer : model_->moe_layers()) {
    MoeCounters& c = layer->counters();
    sums.balance += c.balance_loss;
    sums.candidate_ranks += static_cast<double>(c.candidate_ranks);
    sums.selected_ranks += static_cast<double>(c.selected_ranks);
    const int64_t revived = c.revived_codewords;
    c = MoeCounters{};
    c.revived_codewords = revived;
    sums.exchange_seconds += layer->exchange_clock().under_way();
    sums.waited_seconds += layer->exchange_clock().waited();
    layer->exchange_clock().reset();
    sums.layer_seconds += layer->clock().total();
    layer->clock().reset();
  }
  const auto sent = [&](const char* phase) {
    const int64_t now = comm_.stats(phase).bytes_sent + engine_->bytes_sent(phase);
    int64_t& before = bytes_before_[phase].bytes_sent;
    return static_cast<double>(now - std::exchange(before, now));
  };
  sums.bytes_dispatch += sent("dispatch");
  sums.bytes_select += sent("select");
  sums.bytes_combine += sent("combine");
  sums.bytes_backward += sent("backward_dispatch") + sent("backward_combine");
  sums.bytes_copies += sent("copies") + sent("copy_gradients") + sent("usage");
  sums.bytes_lists += sent("lists") + sent("placement") + sent("move_experts");
}

Trainer::StepSums Trainer::train_step(int64_t step, double& gradient_norm) {
  StepSums sums;
  for (int64_t a = 0; a < config_.accumulate; ++a) micro_batch(step, a);
  const Engine::Sums mine = engine_->finish_gradients();
  sums.loss = mine.loss;
  sums.squares = mine.squares;
  sums.tokens = 0;
  collect(sums);
  sums.stop = stop_.signal() != 0 ? 1 : 0;
  {
    const comm::ScopedPhase phase(comm_, "step_sums");
    static_assert(sizeof(StepSums) % sizeof(double) == 0);
    comm_.all_reduce(
        std::span<double>(reinterpret_cast<double*>(&sums), sizeof(StepSums) / sizeof(double)),
        comm::Reduction::sum);
  }
  sums.tokens = static_cast<double>(config_.batch * config_.model.context);
  sums.loss /= sums.tokens;
  gradient_norm = std::sqrt(sums.squares);
  if (!std::isfinite(sums.loss) || !std::isfinite(gradient_norm)) {
    fail(ExitCode::not_finite,
         "{} is not finite at step {} (loss {}, gradient norm {}): the update was not made and no "
         "checkpoint written, the last one is of step {}; try a smaller --lr than {}",
         std::isfinite(sums.loss) ? "the gradient" : "the loss", step, sums.loss, gradient_norm,
         saved_step_, config_.learning_rate);
  }
  engine_->update(schedule_.at(step - 1), step, gradient_norm);
  return sums;
}

// After a step with a new placement: what was predicted for it beside what it took.
void Trainer::say_placements(int64_t step, const StepSums& sums) {
  double predicted_bytes = 0, predicted_seconds = 0;
  std::string text;
  for (auto& layer : model_->moe_layers()) {
    const PlacementRecord& r = layer->placement().record();
    if (r.step != step) return;
    predicted_bytes += r.predicted_bytes;
    predicted_seconds += r.predicted_seconds;
    text += fmt::format(
        "{}layer {} {} (cover {:.2f}, rows {:.2f} x E/ranks, work imbalance {:.2f}, planned in "
        "{:.3f} s)",
        text.empty() ? "" : "; ", layer->layer(), name_of(r.exchange), r.cover, r.rows,
        r.work_imbalance, r.plan_seconds);
  }
  if (text.empty()) return;
  const double measured = sums.bytes_dispatch + sums.bytes_select + sums.bytes_combine +
                          sums.bytes_backward + sums.bytes_copies;
  say(fmt::format(
      "step {}: exchange: {}; predicted {:.3g} MB and {:.3g} s per step, measured {:.3g} MB and "
      "{:.3g} s",
      step, text, predicted_bytes / 1e6, predicted_seconds, measured / 1e6,
      sums.layer_seconds / comm_.size()));
}

void Trainer::evaluate(StepReport& report) {
  const Clock::time_point start = Clock::now();
  last_evaluation_ = evaluation_->run(*model_, *engine_);
  const RoutingQuality& q = last_evaluation_.quality;
  if (last_evaluation_.tokens > 0) {
    report.evaluation["val_loss"] = last_evaluation_.loss;
    report.evaluation["val_perplexity"] = std::exp(last_evaluation_.loss);
  }
  if (q.tokens > 0) {
    report.evaluation["overlap"] = q.overlap;
    report.evaluation["topk_mass_ratio"] = q.topk_mass_ratio;
    report.evaluation["mass_recall"] = q.mass_recall;
    report.evaluation["mass_recall_bound"] = q.mass_recall_bound;
  }
  say(fmt::format(
      "step {}: loss {:.4f}, validation loss {}, perplexity {}, overlap {}, {:.0f} "
      "tokens/s ({:.1f} s)",
      report.step, report.loss,
      last_evaluation_.tokens > 0 ? fmt::format("{:.4f}", last_evaluation_.loss) : "-",
      last_evaluation_.tokens > 0 ? fmt::format("{:.2f}", std::exp(last_evaluation_.loss)) : "-",
      q.tokens > 0 ? fmt::format("{:.3f}", q.overlap) : "-", report.tokens_per_second,
      seconds_since(start)));
}

void Trainer::save(int64_t step, bool last) {
  if (!config_.checkpoints || saved_step_ == step) return;
  CheckpointMeta meta;
  meta.step = step;
  meta.tokens = step * config_.batch * config_.model.context;
  meta.samples = step * config_.batch;
  meta.config_json = to_json(config_);
  meta.model_digest = model_digest(config_.model);
  meta.writer = options_.writer;
  meta.parent_uuid = parent_uuid_;
  SaveOptions options;
  options.keep = config_.keep;
  options.never_remove = resumed_from_;
  engine_->bring_to_host(Engine::Lists::evaluation);
  try {
    const SavedCheckpoint saved = save_checkpoint(comm_, config_.checkpoint_directory(), meta,
                                                  model_->state_for_saving().arrays, options);
    saved_step_ = step;
    parent_uuid_ = saved.uuid;
    say(fmt::format("step {}: saved {} ({:.1f} MB, {:.1f} s)", step, saved.path,
                    static_cast<double>(saved.bytes) / 1e6, saved.seconds));
  } catch (const Error& error) {
    if (error.code() != ExitCode::io || config_.checkpoint_failure_stops || last) throw;
    std::string why = error.what();
    if (why.ends_with('.')) why.pop_back();
    say(fmt::format("warning: {}; training goes on without it", why));
  }
}

ExitCode Trainer::run() {
  const bool root = comm_.rank() == 0;
  window_begin_ = first_step_ - 1;
  ExitCode result = ExitCode::ok;
  int64_t step = first_step_;
  double seconds_since_log = 0;
  int64_t steps_since_log = 0;
  for (;; ++step) {
    const Clock::time_point start = Clock::now();
    double gradient_norm = 0;
    const StepSums sums = train_step(step, gradient_norm);
    const double seconds = seconds_since(start);
    train_seconds_ += seconds;
    seconds_since_log += seconds;
    ++steps_since_log;
    if (!has_loss_) loss_first_ = sums.loss;
    has_loss_ = true;
    loss_last_ = sums.loss;
    totals_.tokens += sums.tokens;
    totals_.candidate_ranks += sums.candidate_ranks;
    totals_.selected_ranks += sums.selected_ranks;
    totals_.bytes_dispatch += sums.bytes_dispatch;
    totals_.bytes_select += sums.bytes_select;
    totals_.bytes_combine += sums.bytes_combine;
    totals_.bytes_backward += sums.bytes_backward;
    totals_.bytes_copies += sums.bytes_copies;
    totals_.bytes_lists += sums.bytes_lists;
    totals_.exchange_seconds += sums.exchange_seconds;
    totals_.waited_seconds += sums.waited_seconds;
    totals_.layer_seconds += sums.layer_seconds;
    say_placements(step, sums);
    if (lock_) lock_->refresh();
    if (output_lock_) output_lock_->refresh();

    const bool stopping = sums.stop > 0 && step < config_.steps;  // else the run is done anyway
    const bool last = step == config_.steps || stopping;
    close_usage_window(step, last);
    const bool evaluated =
        (last && !stopping) || (config_.eval_every > 0 && step % config_.eval_every == 0);
    StepReport report;
    if (root || evaluated) {
      const auto layers =
          static_cast<double>(std::max<std::size_t>(1, config_.model.moe_layers.size()));
      report.step = step;
      report.steps = config_.steps;
      report.loss = sums.loss;
      report.balance_loss = sums.balance;
      report.gradient_norm = gradient_norm;
      report.learning_rate = schedule_.at(step - 1);
      report.tokens_per_second =
          sums.tokens * static_cast<double>(steps_since_log) / seconds_since_log;
      report.seconds_left = static_cast<double>(config_.steps - step) * train_seconds_ /
                            static_cast<double>(step - first_step_ + 1);
      report.lambda_candidate = sums.candidate_ranks / sums.tokens / layers;
      report.lambda_selected = sums.selected_ranks / sums.tokens / layers;
      report.bytes_dispatch = sums.bytes_dispatch / sums.tokens;
      report.bytes_select = sums.bytes_select / sums.tokens;
      report.bytes_combine = sums.bytes_combine / sums.tokens;
      report.bytes_backward = sums.bytes_backward / sums.tokens;
      report.bytes_copies = sums.bytes_copies / sums.tokens;
      report.bytes_lists = sums.bytes_lists / sums.tokens;
      report.hidden_share =
          report.bytes_dispatch > 0 ? 1.0 - sums.waited_seconds / sums.exchange_seconds : 0.0;
      report.layer_seconds = sums.layer_seconds / comm_.size();
      for (auto& layer : model_->moe_layers()) {
        report.codewords_revived += layer->counters().revived_codewords;
      }
    }
    if (evaluated) evaluate(report);
    if (evaluated || last || step % config_.log_every == 0) {
      if (root) log_->step(report);
      seconds_since_log = 0;
      steps_since_log = 0;
    }
    if (last || (config_.checkpoint_every > 0 && step % config_.checkpoint_every == 0)) {
      save(step, last);
    }
    if (stopping) {
      say(fmt::format("step {}: stopped by a signal", step));
      result = ExitCode::saved_on_signal;
    }
    if (last) break;
  }
  write_summary(step);
  return result;
}

}  // namespace airmoe::scheduler
