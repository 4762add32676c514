#include "scheduler/traffic/src/home_sets.hpp"

namespace airmoe::scheduler {

namespace {

void set(std::span<uint64_t> experts, int32_t e) {
  experts[static_cast<std::size_t>(e) / 64] |= uint64_t{1} << (e % 64);
}

}  // namespace

HomeSets::HomeSets(const RoutingTrace& trace, const TokenSpread& spread)
    : trace_(trace),
      spread_(spread),
      selected_(0, trace.experts),
      candidates_(0, trace.experts),
      codeword_run_(static_cast<std::size_t>(trace.codewords()), -1) {
  for (const TokenRun& run : spread.all_runs()) ++kept_[{run.begin, run.count}].uses;
  int64_t rows = 0;
  for (auto& [run, kept] : kept_) {
    if (kept.uses > 1) kept.row = rows++;
  }
  selected_ = BitRows(rows, trace.experts);
  candidates_ = selected_;
  selected_made_.assign(static_cast<std::size_t>(rows), false);
  candidates_made_ = selected_made_;
}

void HomeSets::mark_selected(const TokenRun& run, std::span<uint64_t> experts) const {
  for (int64_t t = run.begin; t < run.begin + run.count; ++t) {
    for (const int32_t e : trace_.selected(t)) set(experts, e);
  }
}

void HomeSets::mark_candidates(const TokenRun& run, std::span<uint64_t> experts) {
  const int64_t id = runs_++;
  for (int64_t t = run.begin; t < run.begin + run.count; ++t) {
    const int32_t g = trace_.codeword[t];
    if (codeword_run_[g] == id) continue;
    codeword_run_[g] = id;
    for (const int32_t e : trace_.list(g)) set(experts, e);
  }
}

template <class Mark>
void HomeSets::add(int micro_batch, int rank, std::span<uint64_t> experts, BitRows& sets,
                   std::vector<bool>& made, Mark&& mark) {
  for (const TokenRun& run : spread_.runs(micro_batch, rank)) {
    const int64_t row = kept_.at({run.begin, run.count}).row;
    if (row < 0) {
      mark(run, experts);
      continue;
    }
    if (!made[static_cast<std::size_t>(row)]) mark(run, sets.row(row));
    made[static_cast<std::size_t>(row)] = true;
    unite(experts, sets.row(row));
  }
}

void HomeSets::add_selected(int micro_batch, int rank, std::span<uint64_t> experts) {
  add(micro_batch, rank, experts, selected_, selected_made_,
      [&](const TokenRun& run, std::span<uint64_t> to) { mark_selected(run, to); });
}

void HomeSets::add_candidates(int micro_batch, int rank, std::span<uint64_t> experts) {
  add(micro_batch, rank, experts, candidates_, candidates_made_,
      [&](const TokenRun& run, std::span<uint64_t> to) { mark_candidates(run, to); });
}

}  // namespace airmoe::scheduler
