#pragma once
// A training run from options to summary.json.

#include <memory>
#include <optional>
#include <set>
#include <string>

#include "comm/base/error.hpp"
#include "comm/stats_communicator.hpp"
#include "scheduler/data/corpus.hpp"
#include "scheduler/data/sampler.hpp"
#include "scheduler/store/checkpoint.hpp"
#include "scheduler/store/directory_lock.hpp"
#include "scheduler/store/trace.hpp"
#include "scheduler/train/engine.hpp"
#include "scheduler/train/evaluation.hpp"
#include "scheduler/train/model.hpp"
#include "scheduler/train/run_log.hpp"
#include "scheduler/train/stop_request.hpp"
#include "scheduler/train/train_config.hpp"

namespace airmoe::scheduler {

struct RunOptions {
  bool show_progress = false;  ///< draw the progress line
  std::string writer;          ///< program and version, kept in files
};

/// Finds the checkpoint that --resume asks for: a file, a directory, or "auto" (the checkpoint
/// directory if it holds one, else none). Collective. Throws as open_checkpoint; "auto" with only
/// bad checkpoints is an error too.
std::optional<OpenedCheckpoint> find_resume(comm::Communicator& comm, const TrainConfig& config);

class Trainer {
 public:
  /// Collective. Opens the data, builds the model, restores it from `resume` if given. Nothing on
  /// disk changes before everything has been checked.
  Trainer(comm::Communicator& comm, const TrainConfig& config, const RunOptions& options,
          const std::optional<OpenedCheckpoint>& resume);
  ~Trainer();

  /// Collective. Trains to the last step, writes metrics.jsonl, checkpoints, traces and
  /// summary.json.
  /// @return ok, or saved_on_signal after SIGTERM or SIGUSR1
  ExitCode run();

 private:
  // Sums over ranks of one step; one all-reduce.
  struct StepSums {
    double loss = 0, balance = 0, squares = 0, tokens = 0;
    double candidate_ranks = 0, selected_ranks = 0;
    double bytes_dispatch = 0, bytes_select = 0, bytes_combine = 0, bytes_backward = 0;
    double bytes_copies = 0, bytes_lists = 0;
    double exchange_seconds = 0, waited_seconds = 0;  // of ExchangeClock
    double layer_seconds = 0;                         // in MoE layers
    double stop = 0;
  };

  void check_fresh_start();
  void say(const std::string& line);
  StepSums train_step(int64_t step, double& gradient_norm);
  void micro_batch(int64_t step, int64_t index);
  void trace(int64_t step, int64_t first_token, int64_t tokens);
  void collect(StepSums& sums);
  void say_placements(int64_t step, const StepSums& sums);
  void evaluate(StepReport& report);
  void save(int64_t step, bool last);
  void write_summary(int64_t step);
  void close_usage_window(int64_t step, bool last);

  comm::StatsCommunicator comm_;
  RunOptions options_;
  Corpus corpus_;
  TrainConfig config_;
  std::unique_ptr<Sampler> sampler_;
  std::unique_ptr<DirectoryLock> lock_, output_lock_;  // checkpoint and output directory
  std::unique_ptr<Model> model_;
  std::unique_ptr<Engine> engine_;
  std::unique_ptr<Evaluation> evaluation_;
  LearningRateSchedule schedule_;
  StopRequest stop_;
  std::unique_ptr<RunLog> log_;  // rank 0
  std::unique_ptr<TraceWriter> trace_writer_;
  std::set<int64_t> trace_steps_;
  int64_t first_step_ = 1;
  int64_t saved_step_ = 0;
  std::string resumed_from_, parent_uuid_;

  Buffer<int32_t> tokens_, targets_;
  comm::StatsCommunicator::Stats bytes_before_;
  StepSums totals_;  // since the run began
  double train_seconds_ = 0;
  double loss_first_ = 0, loss_last_ = 0;
  bool has_loss_ = false;
  EvaluationResult last_evaluation_;

  // Expert usage over the last whole window of steps (or what there is), means over MoE layers.
  struct UsageSummary {
    int64_t steps = 0;
    double dead_fraction = 0, entropy = 0, max_violation_rank = 0;
  };
  UsageSummary usage_;
  int64_t window_begin_ = 0;
};

}  // namespace airmoe::scheduler
