#include "scheduler/moe/shortlists.hpp"

#include <algorithm>
#include <numeric>

#include "comm/base/error.hpp"

namespace airmoe::scheduler {

Shortlists::Shortlists(comm::Communicator& comm, int64_t codewords, int64_t experts, int64_t length,
                       int64_t rank_cap)
    : comm_(comm),
      rank_(comm.rank()),
      ranks_(comm.size()),
      length_(length),
      rank_cap_(rank_cap),
      experts_{experts, comm.size()},
      merged_{codewords, comm.size()} {
  lists_ = Buffer<int32_t>(merged_.size(rank_) * length, 0);
  all_codewords_.ensure(codewords);
  std::iota(all_codewords_.begin(), all_codewords_.end(), 0);
}

std::pair<int64_t, int64_t> Shortlists::part_of(std::span<const int32_t> which, int r) const {
  const auto first = std::lower_bound(which.begin(), which.end(), merged_.begin(r));
  const auto last = std::lower_bound(first, which.end(), merged_.end(r));
  return {first - which.begin(), last - which.begin()};
}

void Shortlists::rebuild(ConstMatrix codebook, ConstMatrix unit_centroids,
                         std::span<const int32_t> owned_experts, std::span<const int32_t> which,
                         const std::optional<router::Jitter>& jitter) {
  if (which.empty()) return;
  const comm::ScopedPhase phase(comm_, "lists");
  const int64_t n = std::ssize(which);
  ConstMatrix codewords = codebook;
  if (n != codebook.rows) {
    picked_codewords_.ensure(n * codebook.cols);
    for (int64_t i = 0; i < n; ++i) {
      std::copy_n(codebook.row(which[i]), codebook.cols,
                  picked_codewords_.data() + i * codebook.cols);
    }
    codewords = ConstMatrix(picked_codewords_.data(), n, codebook.cols);
  }
  router::local_top(codewords, which, unit_centroids, owned_experts, length_, jitter, top_,
                    workspace_);
  send_to_mergers(which);
  merge(which);
}

void Shortlists::send_to_mergers(std::span<const int32_t> which) {
  send_counts_.assign(ranks_, 0);
  recv_counts_.assign(ranks_, 0);
  recv_begin_.assign(ranks_ + 1, 0);
  const auto [my_begin, my_end] = part_of(which, rank_);
  for (int r = 0; r < ranks_; ++r) {
    const auto [begin, end] = part_of(which, r);
    send_counts_[r] = (end - begin) * top_.stride;
    recv_counts_[r] = (my_end - my_begin) * std::min(length_, experts_.size(r));
    recv_begin_[r + 1] = recv_begin_[r] + recv_counts_[r];
  }
  const int64_t sent = std::ssize(which) * top_.stride;
  received_score_.ensure(recv_begin_[ranks_]);
  received_expert_.ensure(recv_begin_[ranks_]);
  comm_.all_to_all_v(std::span<const float>(top_.score.data(), sent), send_counts_,
                     received_score_.span(), recv_counts_);
  comm_.all_to_all_v(std::span<const int32_t>(top_.expert.data(), sent), send_counts_,
                     received_expert_.span(), recv_counts_);
}

void Shortlists::merge(std::span<const int32_t> which) {
  const auto [begin, end] = part_of(which, rank_);
  taken_.ensure(ranks_);
  slices_.resize(ranks_);
  for (int64_t i = begin; i < end; ++i) {
    for (int r = 0; r < ranks_; ++r) {
      const int64_t stride = std::min(length_, experts_.size(r));
      const int64_t at = recv_begin_[r] + (i - begin) * stride;
      slices_[r] = {received_score_.span().subspan(at, stride),
                    received_expert_.span().subspan(at, stride)};
    }
    const int64_t row = which[i] - merged_.begin(rank_);
    const std::span<int32_t> list = lists_.span().subspan(row * length_, length_);
    router::merge_top(slices_, list, taken_.span());
    if (rank_cap_ > 0 && rank_cap_ < ranks_) keep_best_owners(list);
  }
}

// Merges again, from the owners alone that have most entries (ties: the lower rank).
void Shortlists::keep_best_owners(std::span<int32_t> list) {
  owners_.resize(ranks_);
  std::iota(owners_.begin(), owners_.end(), 0);
  std::stable_sort(owners_.begin(), owners_.end(),
                   [&](int32_t a, int32_t b) { return taken_[a] > taken_[b]; });
  for (int64_t i = rank_cap_; i < ranks_; ++i) slices_[owners_[i]] = {};
  router::merge_top(slices_, list, taken_.span());
}

void Shortlists::set_merged(std::span<const int32_t> lists) {
  AIRMOE_CHECK(std::ssize(lists) == lists_.size(), "{} entries of lists for {}", lists.size(),
               lists_.size());
  std::copy(lists.begin(), lists.end(), lists_.begin());
}

void Shortlists::gather_all(std::span<int32_t> lists) const {
  std::vector<int64_t> counts(ranks_);
  for (int r = 0; r < ranks_; ++r) counts[r] = merged_.size(r) * length_;
  comm_.all_gather_v(merged_lists(), lists, counts);
}

void Shortlists::gather_to(int root, std::span<int32_t> lists) const {
  std::vector<int64_t> counts(ranks_);
  for (int r = 0; r < ranks_; ++r) counts[r] = merged_.size(r) * length_;
  comm_.gather_v(merged_lists(), lists, counts, root);
}

}  // namespace airmoe::scheduler
