#pragma once
// All strategies at one rank count and batch size.

#include <functional>
#include <span>
#include <string>
#include <vector>

#include "apps/study/study_options.hpp"
#include "scheduler/traffic/predict.hpp"

namespace airmoe::study {

/// One line of the table.
struct Row {
  int ranks = 1;
  int64_t tokens_per_rank = 0;  ///< mean, per micro-batch
  std::string strategy;         ///< cover, gather, selected, auto, or a baseline's name
  std::string placement;        ///< planned, block, random, none; for auto: what it chose
  double budget = 0;            ///< copy budget of `cover`; 0 where it has none
  bool best = false;            ///< of the budgets of `cover`
  double candidate_ranks = 0, selected_ranks = 0;     ///< per token
  std::array<double, scheduler::kChannels> bytes{};   ///< per token of the step, sent
  double copy_bytes = 0;                              ///< per step, all ranks: there, back, usage
  double messages_mean = 0, messages_max = 0;         ///< per rank and step
  double rows_max = 0;                                ///< most rows on a rank / (E / ranks)
  double memory_max = 0;                              ///< bytes on the fullest rank
  double tokens_imbalance = 1, work_imbalance = 1;    ///< max / mean; work in FLOPs
  double seconds = 0;                                 ///< predicted by the cost model
  double estimated_bytes = 0, estimated_seconds = 0;  ///< without knowing selections; or 0
  double plan_seconds = 0;                            ///< spent on planning

  double forward_bytes() const;
  double backward_bytes() const;
  double copy_bytes_per_token() const;
  double list_bytes() const { return bytes[static_cast<int>(scheduler::Channel::lists)]; }
  double total_bytes() const;
};

/// Rows for `ranks` and `tokens_per_rank`. `progress` hears what is being counted.
std::vector<Row> sweep(const Options& options, const scheduler::RoutingTrace& trace,
                       const scheduler::TrafficShape& shape, int ranks, int64_t tokens_per_rank,
                       const std::function<void(const std::string&)>& progress);

/// What a step's prediction says, as a row.
Row row_of(const scheduler::StepPrediction& step, const scheduler::RoutingTrace& trace,
           const scheduler::TrafficShape& shape, const scheduler::MachineConstants& machine);

}  // namespace airmoe::study
