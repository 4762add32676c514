#pragma once
// What a run tells: metrics.jsonl, summary.json, a progress line. Rank 0 only; the others pass
// nothing in and write nothing.

#include <chrono>
#include <cstdint>
#include <cstdio>
#include <map>
#include <string>

namespace airmoe::scheduler {

/// One logged step, summed or averaged over ranks already.
struct StepReport {
  int64_t step = 0;
  int64_t steps = 0;
  double loss = 0;           ///< language-model loss, nats per token
  double balance_loss = 0;   ///< weighted
  double gradient_norm = 0;  ///< before clipping
  double learning_rate = 0;
  double tokens_per_second = 0;
  double seconds_left = 0;
  double lambda_candidate = 0;  ///< ranks per token
  double lambda_selected = 0;
  double bytes_dispatch = 0, bytes_select = 0, bytes_combine = 0;  ///< per token, forward
  double bytes_backward = 0;                                       ///< per token
  double bytes_copies = 0, bytes_lists = 0;                        ///< per token
  double hidden_share = 0;        ///< of the time with token messages under way, not spent waiting
  double layer_seconds = 0;       ///< of the step, in MoE layers, mean over ranks
  int64_t codewords_revived = 0;  ///< since the run began
  std::map<std::string, double> evaluation;  ///< val_loss and so on, when the step was evaluated
};

/// Writes metrics.jsonl line by line, flushed, so that a killed run leaves whole lines.
class RunLog {
 public:
  /// An older metrics.jsonl is continued when `resumed_at` > 0 (lines of later steps are dropped)
  /// and set aside as metrics.N.jsonl otherwise. Throws Error(ExitCode::io) naming the path.
  RunLog(const std::string& output_dir, int64_t resumed_at, bool show_progress);
  ~RunLog();
  RunLog(const RunLog&) = delete;
  RunLog& operator=(const RunLog&) = delete;

  /// One line of metrics.jsonl, and the progress line on a terminal.
  void step(const StepReport& report);
  /// A line for people, above the progress line.
  void say(const std::string& line);

 private:
  void write(const std::string& line);
  void draw(const StepReport& report);
  void clear_progress();

  std::string path_;
  std::FILE* file_ = nullptr;
  bool show_progress_;
  bool drawn_ = false;
  std::chrono::steady_clock::time_point last_draw_{};
};

/// Writes text to `path` through a temporary file and a rename. Throws Error(ExitCode::io).
void write_file_atomically(const std::string& path, const std::string& text);

}  // namespace airmoe::scheduler
