// Lists of the MoE layer: rebuilt, placed, and their experts made resident where they are scored.

#include <algorithm>
#include <cmath>

#include "scheduler/moe/moe_layer.hpp"

namespace airmoe::scheduler {

void MoeLayer::rebuild_evaluation_lists() {
  if (lists_ == ListState::evaluation) return;
  const PhaseClock::Scope time(clock_, Phase::lists);
  rebuild_lists(shortlists_.all_codewords(), std::nullopt);
  lists_ = ListState::evaluation;
}

void MoeLayer::rebuild_stored_lists() {
  if (lists_ == ListState::evaluation) return;
  const PhaseClock::Scope time(clock_, Phase::lists);
  shortlists_.rebuild(codebook_.codewords(), unit_centroids(), residency_.owned_experts(),
                      shortlists_.all_codewords(), std::nullopt);
  lists_ = ListState::none;
}

void MoeLayer::adopt_lists(std::span<const int32_t> merged, bool evaluation) {
  shortlists_.set_merged(merged);
  codebook_initialised_ = true;
  lists_ = evaluation ? ListState::evaluation : ListState::none;
}

void MoeLayer::rebuild_lists(std::span<const int32_t> which,
                             const std::optional<router::Jitter>& jitter) {
  shortlists_.rebuild(codebook_.codewords(), unit_centroids(), residency_.owned_experts(), which,
                      jitter);
  const bool all = std::ssize(which) == shortlists_.codewords();
  // Plans are made for training lists, and only while no copy holds gradients.
  const bool may_plan = all && batch_.training && lists_ == ListState::none;
  if (may_plan && placement_.due(batch_.step)) replan();
  routes_.update(shortlists_, which);
  if (may_plan && routes_.copies() && routes_.exchange() == Exchange::cover) {
    const comm::ScopedPhase phase(comm_, "lists");
    const int64_t rows = residency_.owned() + missing_rows(routes_.needed());
    const int64_t over = rows > placement_.row_limit() ? 1 : 0;
    if (comm_.all_reduce_value(over, comm::Reduction::max) > 0) {
      replan();
      routes_.update(shortlists_, which);
    }
  }
  make_resident(routes_.needed());
  routes_.bind();
  if (routes_.exchange() == Exchange::selected) acquire_centroids();
  if (all) cut_chunks();
}

// Different experts of `ids` without a row here.
int64_t MoeLayer::missing_rows(std::span<const int32_t> ids) {
  unique_ids_.clear();
  for (const int32_t e : ids) {
    if (residency_.row(e) < 0) unique_ids_.push_back(e);
  }
  std::sort(unique_ids_.begin(), unique_ids_.end());
  return std::unique(unique_ids_.begin(), unique_ids_.end()) - unique_ids_.begin();
}

void MoeLayer::make_resident(std::span<const int32_t> ids) {
  if (routes_.exchange() == Exchange::selected) return;  // owners have what they score
  if (routes_.exchange() == Exchange::cover && !routes_.copies()) return;
  const PhaseClock::Scope time(clock_, Phase::copies);
  residency_.acquire(ids);
  usage_.resize(residency_.rows());
  counters_.copies = std::max(counters_.copies, residency_.copies());
}

// Copies came with what scoring needs; of those that were selected the rest is needed now.
void MoeLayer::fetch_experts(int64_t c) {
  if (!residency_shared()) return;
  const PhaseClock::Scope time(clock_, Phase::copies);
  unique_ids_.clear();
  for (int64_t p = chunks_[c].pair_begin; p < chunks_[c].pair_end; ++p) {
    if (residency_.lacks_values(pair_expert_[p])) unique_ids_.push_back(pair_expert_[p]);
  }
  residency_.fetch_used(unique_ids_);
}

void MoeLayer::replan() {
  const PhaseClock::Scope time(clock_, Phase::placement);
  double copies[2] = {held_copies_, used_copies_};
  comm_.all_reduce(std::span<double>(copies), comm::Reduction::sum);
  std::optional<std::vector<int32_t>> homes =
      placement_.plan(shortlists_, codebook_.counts(), batch_.step, batch_.count,
                      copies[0] > 0 ? copies[1] / copies[0] : 1.0, residency_.homes());
  if (homes) {
    // The usage window moves with the experts, as floats: exact up to 2^24 selections.
    usage_.flush();
    const std::span<int64_t> window = usage_.window();
    window_.ensure(std::ssize(window));
    std::copy(window.begin(), window.end(), window_.begin());
    placement_.count_moved(residency_.set_homes(std::move(*homes)));
    std::copy(window_.begin(), window_.end(), window.begin());
    centroids_.reset();
    unit_current_ = false;  // made below, before anybody asks for copies of them
    unit_centroids();
  }
  routes_.set_exchange(placement_.exchange());
  routes_.set_placement(placement_.placement(), shortlists_);
}

// Chunks of about equal traffic. The counts are the same bits on all ranks, so the chunks are too.
void MoeLayer::cut_chunks() {
  const std::span<const float> counts = codebook_.counts();
  double total = 0;
  for (const float n : counts) total += n;
  const int64_t chunks = std::clamp<int64_t>(exchange_.overlap_chunks, 1, shortlists_.codewords());
  chunk_begin_.assign(1, 0);
  double sum = 0;
  int64_t g = 0;
  for (int64_t c = 1; c < chunks; ++c) {
    const double share = total * static_cast<double>(c) / static_cast<double>(chunks);
    while (g < shortlists_.codewords() && sum < share) sum += counts[g++];
    chunk_begin_.push_back(routes_.part_begin(g));
  }
  chunk_begin_.push_back(static_cast<int32_t>(routes_.parts()));
}

// Strategy selected: unit centroids of every listed expert on every rank.
void MoeLayer::acquire_centroids() {
  const PhaseClock::Scope time(clock_, Phase::copies);
  if (!centroids_) {
    centroids_ = std::make_unique<ExpertResidency>(comm_, config_.experts, sums_);
    all_unit_.ensure(residency_.owned() * dim_);
    d_all_unit_ = Buffer<double>(residency_.owned() * dim_, 0.0);
    centroids_->add_values(all_unit_, dim_);
    centroids_->add_gradients(d_all_unit_, dim_);
    const std::span<const int32_t> homes = residency_.homes();
    if (!residency_.in_blocks()) centroids_->set_homes({homes.begin(), homes.end()});
  }
  std::copy_n(unit_.data(), residency_.owned() * dim_, all_unit_.data());
  unique_ids_.clear();
  for (int64_t g = 0; g < shortlists_.codewords(); ++g) {
    for (const int32_t e : routes_.list(g)) {
      if (centroids_->row(e) < 0) unique_ids_.push_back(e);
    }
  }
  centroids_->acquire(unique_ids_);
}

}  // namespace airmoe::scheduler
