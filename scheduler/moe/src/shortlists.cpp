#include "scheduler/moe/shortlists.hpp"

#include <algorithm>
#include <numeric>

namespace airmoe::scheduler {

namespace {

// Entries of `which` (ascending) that part `part` of the codewords covers, as [begin, end).
std::pair<int64_t, int64_t> part_of(std::span<const int32_t> which, const BlockPartition& codewords,
                                    int part) {
  const auto first = std::lower_bound(which.begin(), which.end(), codewords.begin(part));
  const auto last = std::lower_bound(first, which.end(), codewords.end(part));
  return {first - which.begin(), last - which.begin()};
}

}  // namespace

Shortlists::Shortlists(comm::Communicator& comm, int64_t codewords, int64_t experts, int64_t length)
    : comm_(comm),
      rank_(comm.rank()),
      ranks_(comm.size()),
      length_(length),
      experts_{experts, comm.size()},
      merged_{codewords, comm.size()} {
  stride_ = std::min(length, experts_.size(rank_));
  counts_ = Buffer<int32_t>(codewords * ranks_, 0);
  cover_size_ = Buffer<int32_t>(codewords, 0);
  resident_.ensure(codewords * stride_);
  lists_ = Buffer<int32_t>(merged_.size(rank_) * length, 0);
  all_codewords_.ensure(codewords);
  std::iota(all_codewords_.begin(), all_codewords_.end(), 0);
  own_experts_.ensure(experts_.size(rank_));
  std::iota(own_experts_.begin(), own_experts_.end(), static_cast<int32_t>(experts_.begin(rank_)));
}

void Shortlists::rebuild_all(ConstMatrix codebook, ConstMatrix unit_centroids,
                             const std::optional<router::Jitter>& jitter) {
  rebuild(codebook, unit_centroids, all_codewords_.span(), jitter);
}

void Shortlists::rebuild(ConstMatrix codebook, ConstMatrix unit_centroids,
                         std::span<const int32_t> which,
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
  router::local_top(codewords, which, unit_centroids, own_experts_.span(), length_, jitter, top_,
                    workspace_);
  send_to_mergers(which);
  merge(which);
  keep_resident(which);
}

void Shortlists::send_to_mergers(std::span<const int32_t> which) {
  send_counts_.assign(ranks_, 0);
  recv_counts_.assign(ranks_, 0);
  recv_begin_.assign(ranks_ + 1, 0);
  const auto [my_begin, my_end] = part_of(which, merged_, rank_);
  for (int r = 0; r < ranks_; ++r) {
    const auto [begin, end] = part_of(which, merged_, r);
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
  const auto [begin, end] = part_of(which, merged_, rank_);
  taken_.ensure((end - begin) * ranks_);
  slices_.resize(ranks_);
  for (int64_t i = begin; i < end; ++i) {
    for (int r = 0; r < ranks_; ++r) {
      const int64_t stride = std::min(length_, experts_.size(r));
      const int64_t at = recv_begin_[r] + (i - begin) * stride;
      slices_[r] = {received_score_.span().subspan(at, stride),
                    received_expert_.span().subspan(at, stride)};
    }
    const int64_t row = which[i] - merged_.begin(rank_);
    router::merge_top(slices_, lists_.span().subspan(row * length_, length_),
                      taken_.span().subspan((i - begin) * ranks_, ranks_));
  }
  gather_counts_.assign(ranks_, 0);
  for (int r = 0; r < ranks_; ++r) {
    const auto [b, e] = part_of(which, merged_, r);
    gather_counts_[r] = (e - b) * ranks_;
  }
  all_taken_.ensure(std::ssize(which) * ranks_);
  comm_.all_gather_v(std::span<const int32_t>(taken_.span()), all_taken_.span(), gather_counts_);
}

void Shortlists::keep_resident(std::span<const int32_t> which) {
  const auto first = static_cast<int32_t>(experts_.begin(rank_));
  for (int64_t i = 0; i < std::ssize(which); ++i) {
    const int64_t g = which[i];
    int32_t cover = 0;
    for (int r = 0; r < ranks_; ++r) {
      counts_[g * ranks_ + r] = all_taken_[i * ranks_ + r];
      cover += all_taken_[i * ranks_ + r] > 0;
    }
    cover_size_[g] = cover;
    int32_t* rows = resident_.data() + g * stride_;
    const int32_t mine = candidates(g, rank_);
    for (int32_t j = 0; j < mine; ++j) rows[j] = top_.expert[i * top_.stride + j] - first;
    std::sort(rows, rows + mine);
  }
}

}  // namespace airmoe::scheduler
