// Strategy `cover`. A *class* is a token of the trace in one part of its
// codeword: all its takings in the batch have the same selected experts on the
// same ranks, so per token of the batch only its home is looked at.

#include <algorithm>

#include "comm/base/error.hpp"
#include "comm/base/partition.hpp"
#include "scheduler/traffic/cover_table.hpp"
#include "scheduler/traffic/predict.hpp"
#include "scheduler/traffic/src/copy_traffic.hpp"

namespace airmoe::scheduler {

namespace {

class CoverPrediction {
 public:
  CoverPrediction(const RoutingTrace& trace, const TokenSpread& spread, const Placement& placement,
                  const TrafficShape& shape)
      : trace_(trace),
        spread_(spread),
        placement_(placement),
        shape_(shape),
        ranks_(placement.ranks),
        cover_(trace, placement),
        positions_(trace.positions()),
        class_sets_(count_classes(), ranks_),
        part_tokens_(static_cast<std::size_t>(cover_.parts()), 0),
        part_segments_(part_tokens_),
        codeword_tokens_(static_cast<std::size_t>(trace.codewords()), 0),
        codeword_seen_(codeword_tokens_),
        class_tokens_(static_cast<std::size_t>(classes_), 0),
        class_batch_(static_cast<std::size_t>(classes_), -1),
        token_peers_(1, ranks_),
        shared_peers_(1, ranks_),
        return_peers_(1, ranks_) {
    result_.traffic = StepTraffic(ranks_);
    result_.load.resize(static_cast<std::size_t>(ranks_));
    count_taken();
  }

  StepPrediction run() {
    const bool copies = has_copies();
    BitRows in_batch(copies ? ranks_ : 0, trace_.experts), in_step(in_batch);
    CopyTraffic copy_traffic(placement_, traffic());
    for (int u = 0; u < spread_.micro_batches(); ++u) {
      present_classes_.clear();
      for (int h = 0; h < ranks_; ++h) add_home(u, h);
      if (!copies) continue;
      in_batch.clear();
      for (const int64_t c : present_classes_) mark_selected(c, in_batch);
      for (int r = 0; r < ranks_; ++r) {
        copy_traffic.counted(r, in_batch.row(r));
        unite(in_step.row(r), in_batch.row(r));
      }
    }
    add_totals();
    const std::vector<int64_t> owned = owned_by_rank(placement_);
    for (int r = 0; r < ranks_; ++r) result_.load[r].owned = owned[r];
    if (copies) {
      for (int r = 0; r < ranks_; ++r) {
        copy_traffic.fetched(r, in_step.row(r), shape_.used_values());
        copy_traffic.returned(r, in_step.row(r), shape_.copy_gradient_bytes());
      }
      in_batch.clear();
      mark_candidates(in_batch);
      for (int r = 0; r < ranks_; ++r) {
        result_.load[r].copies = copy_traffic.fetched(r, in_batch.row(r), shape_.dim);
      }
    }
    add_lists();
    return std::move(result_);
  }

 private:
  StepTraffic& traffic() { return result_.traffic; }
  int32_t first_part(int64_t t) const { return placement_.part_begin[trace_.codeword[t]]; }
  int32_t parts_of(int64_t g) const {
    return placement_.part_begin[g + 1] - placement_.part_begin[g];
  }

  int64_t count_classes() {
    class_begin_.assign(static_cast<std::size_t>(trace_.tokens()), 0);
    for (int64_t t = 0; t < trace_.tokens(); ++t) {
      class_begin_[t] = classes_;
      classes_ += parts_of(trace_.codeword[t]);
    }
    return classes_;
  }

  // Selected experts of each class on each rank of its cover, and what these
  // return.
  void count_taken() {
    const int64_t active = trace_.active;
    taken_begin_.reserve(static_cast<std::size_t>(classes_) + 1);
    taken_begin_.push_back(0);
    for (int64_t t = 0; t < trace_.tokens(); ++t) {
      for (int64_t v = first_part(t); v < first_part(t) + parts_of(trace_.codeword[t]); ++v) {
        const int64_t c = std::ssize(taken_begin_) - 1;
        const int64_t begin = taken_begin_.back();
        taken_.resize(static_cast<std::size_t>(begin + cover_.size(v)), 0);
        const std::span<const int16_t> scorer = cover_.scorer(v);
        for (int64_t k = 0; k < active; ++k) {
          ++taken_[begin + scorer[positions_[t * active + k]]];
        }
        int64_t combine = 0, backward = 0, there = 0;
        for (int64_t i = 0; i < cover_.size(v); ++i) {
          const int64_t taken = taken_[begin + i];
          if (taken == 0) continue;
          ++there;
          combine += shape_.return_bytes(shape_.combine_width(), taken, active);
          backward += shape_.return_bytes(shape_.dim, taken, active);
          class_sets_.set(c, cover_.ranks(v)[i]);
        }
        class_bytes_.push_back({combine, backward, there});
        taken_begin_.push_back(begin + cover_.size(v));
      }
    }
  }

  bool has_copies() const {
    for (int64_t g = 0; g < trace_.codewords(); ++g) {
      for (int64_t v = placement_.part_begin[g]; v < placement_.part_begin[g + 1]; ++v) {
        for (int64_t j = 0; j < trace_.length; ++j) {
          const int32_t e = trace_.lists[g * trace_.length + j];
          if (cover_.ranks(v)[cover_.scorer(v)[j]] != placement_.home[e]) return true;
        }
      }
    }
    return false;
  }

  void mark_candidates(BitRows& experts) const {
    for (int64_t g = 0; g < trace_.codewords(); ++g) {
      for (int64_t v = placement_.part_begin[g]; v < placement_.part_begin[g + 1]; ++v) {
        for (int64_t j = 0; j < trace_.length; ++j) {
          experts.set(cover_.ranks(v)[cover_.scorer(v)[j]], trace_.lists[g * trace_.length + j]);
        }
      }
    }
  }

  void mark_selected(int64_t c, BitRows& experts) const {
    const int64_t t =
        std::upper_bound(class_begin_.begin(), class_begin_.end(), c) - class_begin_.begin() - 1;
    const int64_t v = first_part(t) + (c - class_begin_[t]);
    for (int64_t k = t * trace_.active; k < (t + 1) * trace_.active; ++k) {
      experts.set(cover_.ranks(v)[cover_.scorer(v)[positions_[k]]], trace_.expert[k]);
    }
  }

  // Everything of one home rank's tokens that other ranks' own tokens do not
  // change.
  void add_home(int u, int h) {
    present_codewords_.clear();
    spread_.for_each(u, h, [&](int64_t t) {
      const int32_t g = trace_.codeword[t];
      if (codeword_tokens_[g]++ == 0) present_codewords_.push_back(g);
    });
    token_peers_.clear();
    shared_peers_.clear();
    return_peers_.clear();
    for (const int32_t g : present_codewords_) {
      const BlockPartition slices{codeword_tokens_[g], parts_of(g)};
      for (int64_t i = 0; i < slices.parts; ++i) {
        if (slices.size(i) > 0) add_segment(h, part_of_slice(g, i, h), slices.size(i));
      }
    }
    spread_.for_each(u, h, [&](int64_t t) {
      const int32_t g = trace_.codeword[t];
      int64_t part = first_part(t);
      if (parts_of(g) > 1) {
        const BlockPartition slices{codeword_tokens_[g], parts_of(g)};
        part = part_of_slice(g, slices.owner(codeword_seen_[g]++), h);
      }
      add_token(u, h, class_begin_[t] + part - first_part(t), part);
    });
    for (const int32_t g : present_codewords_) codeword_tokens_[g] = codeword_seen_[g] = 0;
    add_messages(h);
  }

  int64_t part_of_slice(int32_t g, int64_t slice, int h) const {
    return placement_.part_begin[g] + (slice + h) % parts_of(g);
  }

  void add_segment(int h, int64_t v, int64_t tokens) {
    const int32_t size = cover_.size(v);
    const int32_t here = cover_.index_of(v, h);
    const int64_t remote = size - (here >= 0 ? 1 : 0);
    part_tokens_[v] += tokens;
    ++part_segments_[v];
    result_.tokens += tokens;
    result_.candidate_ranks += tokens * size;
    traffic().at(Channel::metadata, h).sent += 8 * remote;
    traffic().at(Channel::dispatch, h).sent += tokens * remote * shape_.dispatch_bytes();
    unite(token_peers_.row(0), cover_.rank_set(v));
    if (here >= 0) {
      traffic().at(Channel::metadata, h).received -= 8;
      traffic().at(Channel::dispatch, h).received -= tokens * shape_.dispatch_bytes();
    }
    if (size == 1) return;
    unite(shared_peers_.row(0), cover_.rank_set(v));
    traffic().at(Channel::cuts, h).sent += tokens * remote * 16;
    traffic().at(Channel::scores, h).received += tokens * score_bytes_of(v);
    if (here >= 0) {
      const int64_t own = score_bytes(cover_.candidates(v)[here]);
      traffic().at(Channel::cuts, h).received -= tokens * 16;
      traffic().at(Channel::scores, h).received -= tokens * own;
      traffic().at(Channel::scores, h).sent -= tokens * own;
    }
  }

  int64_t score_bytes(int64_t candidates) const { return 4 * std::min(trace_.active, candidates); }
  int64_t score_bytes_of(int64_t v) {
    if (part_score_bytes_.empty()) {
      part_score_bytes_.assign(static_cast<std::size_t>(cover_.parts()), 0);
      for (int64_t p = 0; p < cover_.parts(); ++p) {
        for (const int32_t n : cover_.candidates(p)) part_score_bytes_[p] += score_bytes(n);
      }
    }
    return part_score_bytes_[v];
  }

  void add_token(int u, int h, int64_t c, int64_t v) {
    const ClassBytes& all = class_bytes_[c];
    ++class_tokens_[c];
    if (class_batch_[c] != u) {
      class_batch_[c] = u;
      present_classes_.push_back(c);
    }
    result_.selected_ranks += all.ranks;
    unite(return_peers_.row(0), class_sets_.row(c));
    RankTraffic& combine = traffic().at(Channel::combine, h);
    RankTraffic& there = traffic().at(Channel::backward_dispatch, h);
    RankTraffic& back = traffic().at(Channel::backward_combine, h);
    combine.received += all.combine;
    there.sent += all.ranks * shape_.backward_bytes();
    back.received += all.backward;
    const int32_t here = cover_.index_of(v, h);
    const int64_t taken = here < 0 ? 0 : taken_[taken_begin_[c] + here];
    if (taken == 0) return;
    const int64_t own = shape_.return_bytes(shape_.combine_width(), taken, trace_.active);
    const int64_t own_back = shape_.return_bytes(shape_.dim, taken, trace_.active);
    combine.received -= own;
    combine.sent -= own;
    there.sent -= shape_.backward_bytes();
    there.received -= shape_.backward_bytes();
    back.received -= own_back;
    back.sent -= own_back;
  }

  void add_messages(int h) {
    const auto others = [&](const BitRows& peers, auto&& visit) {
      for_each_in(peers.row(0), [&](int64_t r) {
        if (r != h) visit(static_cast<int>(r));
      });
    };
    const auto count = [&](Channel c, int from) { ++traffic().at(c, from).messages; };
    others(token_peers_, [&](int) {
      count(Channel::metadata, h);
      count(Channel::dispatch, h);
    });
    others(shared_peers_, [&](int r) {
      count(Channel::scores, r);
      count(Channel::cuts, h);
    });
    others(return_peers_, [&](int r) {
      count(Channel::combine, r);
      if (shape_.balance) count(Channel::combine, r);
      count(Channel::backward_dispatch, h);
      count(Channel::backward_combine, r);
    });
  }

  // The other side of what add_home() took away: all tokens of a part or class,
  // wherever they live.
  void add_totals() {
    for (int64_t v = 0; v < cover_.parts(); ++v) {
      const int64_t tokens = part_tokens_[v];
      for (int64_t i = 0; i < cover_.size(v); ++i) {
        const int r = cover_.ranks(v)[i];
        const int64_t candidates = cover_.candidates(v)[i];
        traffic().at(Channel::metadata, r).received += 8 * part_segments_[v];
        traffic().at(Channel::dispatch, r).received += tokens * shape_.dispatch_bytes();
        result_.load[r].tokens += tokens;
        result_.load[r].scored += tokens * candidates;
        if (cover_.size(v) == 1) continue;
        traffic().at(Channel::scores, r).sent += tokens * score_bytes(candidates);
        traffic().at(Channel::cuts, r).received += tokens * 16;
      }
    }
    for (int64_t t = 0; t < trace_.tokens(); ++t) {
      for (int64_t p = 0; p < parts_of(trace_.codeword[t]); ++p) {
        const int64_t c = class_begin_[t] + p, v = first_part(t) + p;
        const int64_t tokens = class_tokens_[c];
        if (tokens == 0) continue;
        for (int64_t i = 0; i < cover_.size(v); ++i) {
          const int64_t taken = taken_[taken_begin_[c] + i];
          if (taken == 0) continue;
          const int r = cover_.ranks(v)[i];
          result_.load[r].selected += tokens * taken;
          traffic().at(Channel::combine, r).sent +=
              tokens * shape_.return_bytes(shape_.combine_width(), taken, trace_.active);
          traffic().at(Channel::backward_dispatch, r).received += tokens * shape_.backward_bytes();
          traffic().at(Channel::backward_combine, r).sent +=
              tokens * shape_.return_bytes(shape_.dim, taken, trace_.active);
        }
      }
    }
  }

  // Mergers tell each rank of a cover which candidates it scores.
  void add_lists() {
    add_lists_to_mergers(trace_, placement_, traffic());
    const BlockPartition merged{trace_.codewords(), ranks_};
    std::vector<int64_t> entries(static_cast<std::size_t>(ranks_));
    for (int merger = 0; merger < ranks_; ++merger) {
      std::fill(entries.begin(), entries.end(), 0);
      for (int64_t g = merged.begin(merger); g < merged.end(merger); ++g) {
        for (int64_t v = placement_.part_begin[g]; v < placement_.part_begin[g + 1]; ++v) {
          for (int64_t i = 0; i < cover_.size(v); ++i) {
            entries[cover_.ranks(v)[i]] += cover_.candidates(v)[i];
          }
        }
      }
      for (int r = 0; r < ranks_; ++r) {
        if (r != merger && entries[r] > 0) {
          traffic().message(Channel::lists, merger, r, 4 * entries[r]);
        }
      }
    }
  }

  struct ClassBytes {
    int64_t combine, backward, ranks;
  };

  const RoutingTrace& trace_;
  const TokenSpread& spread_;
  const Placement& placement_;
  const TrafficShape& shape_;
  int ranks_;
  CoverTable cover_;
  std::vector<int32_t> positions_;  // [T, K]
  int64_t classes_ = 0;
  std::vector<int64_t> class_begin_;  // [T]
  std::vector<int64_t> taken_begin_;  // [classes + 1]
  std::vector<uint16_t> taken_;       // [classes][cover]
  std::vector<ClassBytes> class_bytes_;
  BitRows class_sets_;  // [classes] of ranks
  std::vector<int64_t> part_tokens_, part_segments_,
      part_score_bytes_;  // [parts]
  std::vector<int64_t> codeword_tokens_,
      codeword_seen_;  // [G], zero between homes
  std::vector<int32_t> present_codewords_;
  std::vector<int64_t> class_tokens_;
  std::vector<int32_t> class_batch_;  // micro-batch that saw a class last
  std::vector<int64_t> present_classes_;
  BitRows token_peers_, shared_peers_, return_peers_;
  StepPrediction result_;
};

}  // namespace

StepPrediction predict_cover(const RoutingTrace& trace, const TokenSpread& spread,
                             const Placement& placement, const TrafficShape& shape) {
  AIRMOE_CHECK(spread.ranks() == placement.ranks && trace.active <= 65535,
               "a spread over {} ranks, a placement on {}, K = {}", spread.ranks(), placement.ranks,
               trace.active);
  return CoverPrediction(trace, spread, placement, shape).run();
}

}  // namespace airmoe::scheduler
