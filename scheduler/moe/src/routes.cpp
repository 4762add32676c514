#include "scheduler/moe/routes.hpp"

#include <algorithm>
#include <numeric>

#include "comm/base/error.hpp"
#include "scheduler/moe/src/message_tags.hpp"

namespace airmoe::scheduler {

Routes::Routes(comm::Communicator& comm, ExpertResidency& residency, int64_t codewords,
               int64_t length)
    : comm_(comm),
      residency_(residency),
      rank_(comm.rank()),
      ranks_(comm.size()),
      length_(length),
      part_begin_(codewords + 1),
      codeword_of_part_(codewords),
      primary_(codewords, 0),
      counts_(codewords * comm.size(), 0),
      cover_size_(codewords, 0),
      slot_(codewords, 0),
      outgoing_(comm.size()),
      in_cover_(comm.size(), 0) {
  std::iota(part_begin_.begin(), part_begin_.end(), 0);
  std::iota(codeword_of_part_.begin(), codeword_of_part_.end(), 0);
}

void Routes::set_placement(const Placement& placement, const Shortlists& lists) {
  const comm::ScopedPhase phase(comm_, "lists");
  const BlockPartition& merged = lists.merged_codewords();
  int64_t header[2] = {placement.copies ? 1 : 0, placement.parts()};
  comm_.broadcast(std::span<int64_t>(header), 0);
  copies_ = header[0] != 0;
  const int64_t parts = header[1];
  if (rank_ == 0) part_begin_ = placement.part_begin;
  comm_.broadcast(std::span<int32_t>(part_begin_), 0);
  primary_.resize(parts);
  if (rank_ == 0) primary_ = placement.primary;
  comm_.broadcast(std::span<int32_t>(primary_), 0);
  codeword_of_part_.resize(parts);
  for (int64_t g = 0; g < lists.codewords(); ++g) {
    for (int32_t p = part_begin_[g]; p < part_begin_[g + 1]; ++p) {
      codeword_of_part_[p] = static_cast<int32_t>(g);
    }
  }
  counts_.assign(parts * ranks_, 0);
  cover_size_.assign(parts, 0);
  slot_.assign(parts, 0);
  first_part_ = part_begin_[merged.begin(rank_)];
  const int64_t mine = part_begin_[merged.end(rank_)] - first_part_;
  assigned_id_.resize(copies_ ? mine * length_ : 0);
  assigned_rank_.resize(copies_ ? mine * length_ : 0);
  if (!copies_) return;

  // Ranks of candidates in list order, to the ranks that merge them.
  std::vector<int32_t> wide;
  std::vector<comm::Send<int32_t>> sends;
  if (rank_ == 0) {
    wide.assign(placement.candidate_rank.begin(), placement.candidate_rank.end());
    for (int r = 0; r < ranks_; ++r) {
      const int64_t begin = part_begin_[merged.begin(r)] * length_;
      const int64_t end = part_begin_[merged.end(r)] * length_;
      sends.push_back({r, std::span<const int32_t>(wide).subspan(begin, end - begin)});
    }
  }
  const std::vector<comm::Recv<int32_t>> recvs = {{0, std::span<int32_t>(assigned_rank_)}};
  comm_.exchange<int32_t>(sends, recvs, kTagPlacement).wait();
  for (int64_t i = 0; i < mine; ++i) {
    const std::span<const int32_t> list = lists.merged_list(codeword_of_part_[first_part_ + i]);
    entries_.clear();
    for (int64_t j = 0; j < length_; ++j) {
      entries_.emplace_back(list[j], assigned_rank_[i * length_ + j]);
    }
    std::sort(entries_.begin(), entries_.end());
    for (int64_t j = 0; j < length_; ++j) {
      assigned_id_[i * length_ + j] = entries_[j].first;
      assigned_rank_[i * length_ + j] = entries_[j].second;
    }
  }
}

void Routes::assign(int64_t part, std::span<const int32_t> list) {
  entries_.clear();
  if (!copies_) {
    for (const int32_t e : list) entries_.emplace_back(e, residency_.home(e));
    std::sort(entries_.begin(), entries_.end());
    return;
  }
  for (const int32_t e : list) entries_.emplace_back(e, -1);
  std::sort(entries_.begin(), entries_.end());
  int32_t* ids = assigned_id_.data() + (part - first_part_) * length_;
  int32_t* ranks = assigned_rank_.data() + (part - first_part_) * length_;
  std::fill(in_cover_.begin(), in_cover_.end(), uint8_t{0});
  int64_t old = 0;
  for (auto& [id, rank] : entries_) {
    while (old < length_ && ids[old] < id) ++old;
    if (old < length_ && ids[old] == id) {
      rank = ranks[old];
      in_cover_[rank] = 1;
    }
  }
  const int32_t primary = primary_[part];
  for (std::size_t j = 0; j < entries_.size(); ++j) {
    auto& [id, rank] = entries_[j];
    if (rank < 0) rank = in_cover_[residency_.home(id)] != 0 ? residency_.home(id) : primary;
    ids[j] = id;
    ranks[j] = rank;
  }
}

void Routes::update(const Shortlists& lists, std::span<const int32_t> which) {
  if (which.empty()) {
    needed_begin_ = std::ssize(id_);
    return;
  }
  const comm::ScopedPhase phase(comm_, "lists");
  const bool all = std::ssize(which) == lists.codewords();
  if (exchange_ != Exchange::cover) gather_lists(lists, which);
  if (exchange_ == Exchange::gather) {
    if (all) id_.clear();
    needed_begin_ = std::ssize(id_);
    for (const int32_t g : which) slot_[g] = -1;
    return;
  }
  const auto [begin, end] = lists.part_of(which, rank_);
  for (auto& ids : outgoing_) ids.clear();
  my_counts_.clear();
  std::vector<std::size_t> header(static_cast<std::size_t>(ranks_));
  for (int64_t i = begin; i < end; ++i) {
    const int32_t g = which[i];
    for (int32_t p = part_begin_[g]; p < part_begin_[g + 1]; ++p) {
      assign(p, lists.merged_list(g));
      const std::size_t row = my_counts_.size();
      my_counts_.resize(row + static_cast<std::size_t>(ranks_), 0);
      for (const auto& [id, rank] : entries_) {
        std::vector<int32_t>& out = outgoing_[rank];
        int32_t& count = my_counts_[row + static_cast<std::size_t>(rank)];
        if (count++ == 0) {
          header[static_cast<std::size_t>(rank)] = out.size();
          out.push_back(p);
          out.push_back(0);
        }
        out.push_back(id);
        ++out[header[static_cast<std::size_t>(rank)] + 1];
      }
    }
  }
  sends_.clear();
  for (int r = 0; r < ranks_; ++r) {
    if (!outgoing_[r].empty()) sends_.push_back({r, outgoing_[r]});
  }
  comm_.sparse_exchange<int32_t>(sends_, inbox_);

  gather_counts_.assign(ranks_, 0);
  int64_t total = 0;
  for (int r = 0; r < ranks_; ++r) {
    const auto [b, e] = lists.part_of(which, r);
    for (int64_t i = b; i < e; ++i) {
      gather_counts_[r] += (part_begin_[which[i] + 1] - part_begin_[which[i]]) * ranks_;
    }
    total += gather_counts_[r];
  }
  all_counts_.resize(total);
  comm_.all_gather_v(std::span<const int32_t>(my_counts_), std::span<int32_t>(all_counts_),
                     gather_counts_);
  const int32_t* row = all_counts_.data();
  for (const int32_t g : which) {
    for (int32_t p = part_begin_[g]; p < part_begin_[g + 1]; ++p) {
      std::copy_n(row, ranks_, counts_.data() + static_cast<int64_t>(p) * ranks_);
      cover_size_[p] = static_cast<int32_t>(ranks_ - std::count(row, row + ranks_, 0));
      row += ranks_;
    }
  }

  if (all) id_.clear();
  needed_begin_ = std::ssize(id_);
  for (const comm::Arrival& arrival : inbox_.arrivals()) {
    const std::span<const int32_t> words = inbox_.data(arrival);
    for (std::size_t i = 0; i < words.size();) {
      const int32_t part = words[i];
      const auto count = static_cast<std::size_t>(words[i + 1]);
      slot_[part] = std::ssize(id_);
      id_.insert(id_.end(), words.begin() + i + 2, words.begin() + i + 2 + count);
      i += 2 + count;
    }
  }
}

void Routes::gather_lists(const Shortlists& lists, std::span<const int32_t> which) {
  const auto [begin, end] = lists.part_of(which, rank_);
  my_lists_.clear();
  for (int64_t i = begin; i < end; ++i) {
    const std::span<const int32_t> list = lists.merged_list(which[i]);
    my_lists_.insert(my_lists_.end(), list.begin(), list.end());
    std::sort(my_lists_.end() - length_, my_lists_.end());
  }
  gather_counts_.assign(ranks_, 0);
  for (int r = 0; r < ranks_; ++r) {
    const auto [b, e] = lists.part_of(which, r);
    gather_counts_[r] = (e - b) * length_;
  }
  gathered_.resize(std::ssize(which) * length_);
  comm_.all_gather_v(std::span<const int32_t>(my_lists_), std::span<int32_t>(gathered_),
                     gather_counts_);
  all_lists_.resize(lists.codewords() * length_);
  for (int64_t i = 0; i < std::ssize(which); ++i) {
    std::copy_n(gathered_.data() + i * length_, length_, all_lists_.data() + which[i] * length_);
  }
}

void Routes::require(std::span<const int32_t> codewords) {
  needed_begin_ = std::ssize(id_);
  for (const int32_t g : codewords) {
    if (slot_[g] >= 0) continue;
    slot_[g] = std::ssize(id_);
    const std::span<const int32_t> ids = list(g);
    id_.insert(id_.end(), ids.begin(), ids.end());
  }
}

void Routes::bind() {
  row_.resize(id_.size());
  for (std::size_t i = static_cast<std::size_t>(needed_begin_); i < id_.size(); ++i) {
    row_[i] = residency_.row(id_[i]);
    AIRMOE_ASSERT(row_[i] >= 0);
  }
}

}  // namespace airmoe::scheduler
