// Experts change owners, and rows by owner become rows by block of expert id and back.

#include <algorithm>
#include <cstring>

#include "comm/base/error.hpp"
#include "scheduler/residency/expert_residency.hpp"
#include "scheduler/residency/src/message_tags.hpp"

namespace airmoe::scheduler {

namespace {

void copy_rows(const float* from, int64_t rows, int64_t row_size, float* to) {
  if (rows > 0) std::memmove(to, from, static_cast<std::size_t>(rows * row_size) * sizeof(float));
}

// Rows of every other rank, ranks ascending without gaps, as messages of an exchange.
std::vector<comm::Send<float>> sends_by_rank(const float* rows, const std::vector<int64_t>& count,
                                             int64_t row_size) {
  std::vector<comm::Send<float>> sends;
  for (int r = 0; r < static_cast<int>(count.size()); ++r) {
    sends.push_back({r, {rows, static_cast<std::size_t>(count[r] * row_size)}});
    rows += count[r] * row_size;
  }
  return sends;
}
std::vector<comm::Recv<float>> recvs_by_rank(float* rows, const std::vector<int64_t>& count,
                                             int64_t row_size) {
  std::vector<comm::Recv<float>> recvs;
  for (int r = 0; r < static_cast<int>(count.size()); ++r) {
    recvs.push_back({r, {rows, static_cast<std::size_t>(count[r] * row_size)}});
    rows += count[r] * row_size;
  }
  return recvs;
}

int64_t sum(const std::vector<int64_t>& counts) {
  int64_t total = 0;
  for (const int64_t n : counts) total += n;
  return total;
}

// First element of each rank's rows, to be advanced.
std::vector<int64_t> starts(const std::vector<int64_t>& count) {
  std::vector<int64_t> begin(count.size());
  for (std::size_t r = 1; r < count.size(); ++r) begin[r] = begin[r - 1] + count[r - 1];
  return begin;
}

}  // namespace

// home_ and expert_of_row_ are the new ones.
void ExpertResidency::move_rows(const RowArray<float>& array, std::span<const int32_t> old_home,
                                std::span<const int32_t> old_experts, MoveScratch& scratch) {
  const int rank = comm_.rank();
  const int64_t size = array.row_size;
  std::vector<int64_t> out_count(static_cast<std::size_t>(comm_.size()));
  std::vector<int64_t> in_count(out_count);
  for (const int32_t e : old_experts) out_count[home_[e]] += home_[e] != rank;
  for (const int32_t e : expert_of_row_) in_count[old_home[e]] += old_home[e] != rank;

  Buffer<float>& out = scratch.out;
  Buffer<float>& in = scratch.in;
  out.ensure(sum(out_count) * size);
  in.ensure(sum(in_count) * size);
  std::vector<int64_t> next = starts(out_count);
  for (int64_t row = 0; row < std::ssize(old_experts); ++row) {
    const int to = home_[old_experts[row]];
    if (to != rank) copy_rows(array.row(row), 1, size, out.data() + next[to]++ * size);
  }
  const auto sends = sends_by_rank(out.data(), out_count, size);
  const auto recvs = recvs_by_rank(in.data(), in_count, size);
  comm::Ticket ticket = comm_.exchange<float>(sends, recvs, kTagMoveExperts);

  // What stays keeps its order. So rows that go down never meet rows that go up, and taken in this
  // order none is overwritten before it has moved.
  for (int64_t row = 0; row < std::ssize(old_experts); ++row) {
    const int32_t to = row_of_expert_[old_experts[row]];
    if (to >= 0 && to < row) copy_rows(array.row(row), 1, size, array.row(to));
  }
  for (int64_t row = std::ssize(old_experts) - 1; row >= 0; --row) {
    const int32_t to = row_of_expert_[old_experts[row]];
    if (to > row) copy_rows(array.row(row), 1, size, array.row(to));
  }
  ticket.wait();
  next = starts(in_count);
  for (int64_t row = 0; row < owned_; ++row) {
    const int from = old_home[expert_of_row_[row]];
    if (from != rank) copy_rows(in.data() + next[from]++ * size, 1, size, array.row(row));
  }
}

int64_t ExpertResidency::set_homes(std::vector<int32_t> home) {
  AIRMOE_CHECK(copies() == 0, "there are {} copies, drop them before homes change", copies());
  AIRMOE_CHECK(std::ssize(home) == experts(), "{} homes for {} experts", home.size(), experts());
  std::vector<int64_t> count(static_cast<std::size_t>(comm_.size()));
  bool in_blocks = true;
  for (int64_t e = 0; e < experts(); ++e) {
    AIRMOE_CHECK(home[e] >= 0 && home[e] < comm_.size(), "expert {} has home {} of {} ranks", e,
                 home[e], comm_.size());
    ++count[home[e]];
    in_blocks = in_blocks && home[e] == blocks_.owner(e);
  }
  for (int r = 0; r < comm_.size(); ++r) {
    AIRMOE_CHECK(count[r] == blocks_.size(r), "rank {} is the home of {} experts, not {}", r,
                 count[r], blocks_.size(r));
  }

  const comm::ScopedPhase phase(comm_, "move_experts");
  const std::vector<int32_t> old_experts = expert_of_row_;
  home_.swap(home);  // `home` is the old one from here
  in_blocks_ = in_blocks;
  index_owned();
  MoveScratch scratch;
  for (const auto& a : values_) move_rows(a, home, old_experts, scratch);
  for (const auto& a : owned_arrays_) move_rows(a, home, old_experts, scratch);
  return std::count_if(old_experts.begin(), old_experts.end(),
                       [&](int32_t e) { return home_[e] != comm_.rank(); });
}

// A rank's owned experts ascend and so do the blocks: what goes to one block is contiguous.
void ExpertResidency::to_blocks(const float* rows, int64_t row_size, float* out) {
  if (in_blocks_) return copy_rows(rows, owned_, row_size, out);
  const comm::ScopedPhase phase(comm_, "to_blocks");
  std::vector<int64_t> out_count(static_cast<std::size_t>(comm_.size()));
  std::vector<int64_t> in_count(out_count);
  for (const int32_t e : owned_experts()) ++out_count[blocks_.owner(e)];
  const int64_t first = blocks_.begin(comm_.rank());
  const int64_t last = blocks_.end(comm_.rank());
  for (int64_t e = first; e < last; ++e) ++in_count[home_[e]];
  Buffer<float> in(owned_ * row_size);
  const auto sends = sends_by_rank(rows, out_count, row_size);
  const auto recvs = recvs_by_rank(in.data(), in_count, row_size);
  comm_.exchange<float>(sends, recvs, kTagToBlocks).wait();
  std::vector<int64_t> next = starts(in_count);
  for (int64_t e = first; e < last; ++e) {
    const float* from = in.data() + next[home_[e]]++ * row_size;
    copy_rows(from, 1, row_size, out + (e - first) * row_size);
  }
}

void ExpertResidency::from_blocks(const float* blocks, int64_t row_size, float* rows) {
  if (in_blocks_) return copy_rows(blocks, owned_, row_size, rows);
  const comm::ScopedPhase phase(comm_, "from_blocks");
  std::vector<int64_t> out_count(static_cast<std::size_t>(comm_.size()));
  std::vector<int64_t> in_count(out_count);
  for (const int32_t e : owned_experts()) ++in_count[blocks_.owner(e)];
  const int64_t first = blocks_.begin(comm_.rank());
  const int64_t last = blocks_.end(comm_.rank());
  for (int64_t e = first; e < last; ++e) ++out_count[home_[e]];
  Buffer<float> out(owned_ * row_size);
  std::vector<int64_t> next = starts(out_count);
  for (int64_t e = first; e < last; ++e) {
    float* to = out.data() + next[home_[e]]++ * row_size;
    copy_rows(blocks + (e - first) * row_size, 1, row_size, to);
  }
  const auto sends = sends_by_rank(out.data(), out_count, row_size);
  const auto recvs = recvs_by_rank(rows, in_count, row_size);
  comm_.exchange<float>(sends, recvs, kTagFromBlocks).wait();
}

}  // namespace airmoe::scheduler
