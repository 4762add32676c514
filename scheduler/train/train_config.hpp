#pragma once
// Everything that a training run can be told, with its defaults; as JSON it is what checkpoints and
// config.resolved.json hold.

#include <cstdint>
#include <string>
#include <vector>

#include "experts/cost_model.hpp"
#include "scheduler/data/corpus.hpp"
#include "scheduler/data/split.hpp"
#include "scheduler/device_kind.hpp"
#include "scheduler/exchange_config.hpp"
#include "scheduler/model_config.hpp"
#include "scheduler/optim/adamw.hpp"
#include "scheduler/optim/learning_rate.hpp"
#include "scheduler/sum_precision.hpp"

namespace airmoe::scheduler {

struct TrainConfig {
  std::string preset = "tiny";
  ModelConfig model;

  // Data.
  std::vector<std::string> data;               ///< empty: kDefaultCorpus
  int64_t data_max_bytes = int64_t{64} << 20;  ///< cap on text from folders
  TokenType token_type = TokenType::u16;
  double validation_fraction = kDefaultValidationFraction;

  // Optimisation.
  int64_t steps = 800;          ///< last optimizer step of the run, counted from 1
  int64_t schedule_steps = 0;   ///< length of the learning-rate schedule; 0: steps
  int64_t batch = 16;           ///< sequences per optimizer step over all ranks and micro-batches
  int64_t accumulate = 1;       ///< micro-batches per optimizer step
  double learning_rate = 2e-3;  ///< peak
  int64_t warmup = -1;          ///< steps; -1: 5 % of the schedule
  ScheduleShape schedule = ScheduleShape::linear;
  double final_lr_fraction = -1;  ///< -1: default_final_fraction(schedule)
  AdamWOptions adamw;
  double clip = 1.0;  ///< largest global gradient norm; 0: no clipping
  uint64_t seed = 1;
  DeviceKind device = DeviceKind::cpu;
  bool cuda_graphs = true;                       ///< launch the trunk's kernels as graphs
  ComputeType compute_type = ComputeType::bf16;  ///< on a CUDA device; the processor has f32 only
  experts::Path expert_path = experts::Path::automatic;
  SumPrecision sums = SumPrecision::f64;
  ExchangeConfig exchange{.copy_budget = 2.0};

  // Evaluation and output.
  int64_t eval_every = 100;     ///< steps; 0: at the end only
  int64_t eval_sequences = 32;  ///< validation sequences per evaluation; 0: none
  int64_t log_every = 1;        ///< steps between lines of metrics.jsonl
  std::string output_dir = "runs/train";
  std::string checkpoint_dir;    ///< empty: <output_dir>/checkpoints
  int64_t checkpoint_every = 0;  ///< steps; 0: at the end and on a signal only
  bool checkpoints = true;
  bool checkpoint_failure_stops = true;  ///< false: a failed save is reported and training goes on
  int64_t keep = 3;
  std::string resume;  ///< empty: start anew; file, directory, or "auto"
  std::string trace;   ///< HDF5 file
  std::vector<int64_t> trace_steps;
  double deadline_seconds = 600;  ///< longest wait for other ranks inside one call

  int64_t schedule_length() const { return schedule_steps > 0 ? schedule_steps : steps; }
  LearningRateSchedule learning_rate_schedule() const;
  std::string checkpoint_directory() const;

  /// Throws Error(ExitCode::config) naming the option, its value and the remedy.
  void validate() const;
};

/// "auto", "dense" or "grouped"; parsing throws Error(ExitCode::usage) for any other name.
const char* name_of(experts::Path path);
experts::Path parse_expert_path(const std::string& name);
/// "f64" or "f32".
const char* name_of(SumPrecision precision);
SumPrecision parse_sum_precision(const std::string& name);

/// The configuration as a JSON object; keys are the option names with underscores.
std::string to_json(const TrainConfig& config);
/// Takes every key that `json` holds; paths, resume and trace are left alone. Throws
/// Error(ExitCode::bad_data) when it is not such an object.
void from_json(const std::string& json, TrainConfig& config);

/// What the shapes and meanings of the parameters follow from, as a JSON string: equal strings,
/// equal parameters. Part of every checkpoint.
std::string model_digest(const ModelConfig& model);
/// Throws Error(ExitCode::config) naming the first option in which this run's model differs from
/// the checkpoint's.
void check_same_model(const std::string& checkpoint, const std::string& checkpoint_digest,
                      const ModelConfig& model);

}  // namespace airmoe::scheduler
