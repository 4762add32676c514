#include "scheduler/moe/quality_probe.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "comm/base/blas.hpp"
#include "router/exact.hpp"
#include "router/metrics.hpp"

namespace airmoe::scheduler {

namespace {

constexpr double kMinusInfinity = -std::numeric_limits<double>::infinity();
// Experts whose unit centroids are looked at together.
constexpr int64_t kExperts = 16384;

// Tokens of all ranks that are probed, on every rank.
struct ProbeSet {
  std::vector<int64_t> counts, begin;  // per home rank; begin has one more
  std::vector<int64_t> local;          // this rank's token indices
  std::vector<float> hidden;           // [tokens, d]
  std::vector<int32_t> codeword;       // [tokens]
  int64_t tokens() const { return begin.back(); }
};

ProbeSet choose(comm::Communicator& comm, const RoutingRecord& record, int64_t dim,
                int64_t max_tokens) {
  const int ranks = comm.size();
  std::vector<int64_t> tokens(ranks);
  const int64_t mine = record.tokens;
  comm.all_gather(std::span<const int64_t>(&mine, 1), std::span<int64_t>(tokens));
  const int64_t total = std::accumulate(tokens.begin(), tokens.end(), int64_t{0});
  const int64_t stride =
      std::max<int64_t>(1, (total + max_tokens - 1) / std::max<int64_t>(1, max_tokens));
  ProbeSet set;
  set.begin.push_back(0);
  int64_t first = 0;
  for (int r = 0; r < ranks; ++r) {
    const auto multiples_below = [&](int64_t n) { return (n + stride - 1) / stride; };
    set.counts.push_back(multiples_below(first + tokens[r]) - multiples_below(first));
    set.begin.push_back(set.begin.back() + set.counts.back());
    if (r == comm.rank()) {
      for (int64_t t = multiples_below(first) * stride; t < first + tokens[r]; t += stride) {
        set.local.push_back(t - first);
      }
    }
    first += tokens[r];
  }
  std::vector<float> hidden;
  std::vector<int32_t> codeword;
  for (const int64_t t : set.local) {
    hidden.insert(hidden.end(), record.hidden.data() + t * dim,
                  record.hidden.data() + (t + 1) * dim);
    codeword.push_back(record.codeword[t]);
  }
  set.hidden.resize(set.tokens() * dim);
  set.codeword.resize(set.tokens());
  std::vector<int64_t> floats(set.counts);
  for (int64_t& n : floats) n *= dim;
  comm.all_gather_v(std::span<const float>(hidden), std::span<float>(set.hidden), floats);
  comm.all_gather_v(std::span<const int32_t>(codeword), std::span<int32_t>(set.codeword),
                    set.counts);
  return set;
}

// The best experts of this rank per token, as rows here, and the log-sum-exp over all of them.
void exact_routing(const MoeLayer& layer, const ProbeSet& set, int64_t active,
                   router::ExactTop& best) {
  const int64_t tokens = set.tokens(), rows = layer.residency().owned();
  const ConstMatrix hidden(set.hidden.data(), tokens, layer.config().dim);
  best.stride = std::min(active, rows);
  best.score.ensure(tokens * best.stride);
  best.expert.ensure(tokens * best.stride);
  best.log_sum_exp.ensure(tokens);
  best.log_sum_exp.fill(kMinusInfinity);
  router::ExactTop part;
  router::ExactWorkspace workspace;
  Buffer<float> scratch;
  std::vector<std::pair<float, int32_t>> merged;
  int64_t found = 0;  // of each token so far
  for (int64_t first = 0; first < rows; first += kExperts) {
    const int64_t n = std::min(kExperts, rows - first);
    router::exact_top(hidden, layer.unit_centroids(first, n, scratch), static_cast<int32_t>(first),
                      active, part, workspace);
    const int64_t kept = std::min(best.stride, found + part.stride);
    for (int64_t t = 0; t < tokens; ++t) {
      float* score = best.score.data() + t * best.stride;
      int32_t* expert = best.expert.data() + t * best.stride;
      merged.clear();
      for (int64_t k = 0; k < found; ++k) merged.emplace_back(-score[k], expert[k]);
      for (int64_t k = t * part.stride; k < (t + 1) * part.stride; ++k) {
        merged.emplace_back(-part.score[k], part.expert[k]);
      }
      std::inplace_merge(merged.begin(), merged.begin() + found, merged.end());
      for (int64_t k = 0; k < kept; ++k) {
        score[k] = -merged[k].first;
        expert[k] = merged[k].second;
      }
      best.log_sum_exp[t] = router::log_add_exp(best.log_sum_exp[t], part.log_sum_exp[t]);
    }
    found = kept;
  }
}

// This rank's part of log-sum-exps per token: over its candidates of the token's shortlist (scores
// of h), and over its experts outside the list (scores of alpha c).
void list_sums(const MoeLayer& layer, const ProbeSet& set, std::span<const int32_t> lists,
               ConstMatrix codebook, std::vector<double>& log_list,
               std::vector<double>& log_outside) {
  constexpr int64_t kExpertBlock = 1024;
  const int64_t rows = layer.residency().owned();
  const int64_t tokens = set.tokens();
  const int64_t dim = layer.config().dim;
  const ConstMatrix hidden(set.hidden.data(), tokens, dim);
  Buffer<float> projected(tokens * dim);
  for (int64_t t = 0; t < tokens; ++t) {
    const float* c = codebook.row(set.codeword[t]);
    const auto width = static_cast<std::size_t>(dim);
    const double alpha = router::codeword_distance({hidden.row(t), width}, {c, width}).alpha;
    for (int64_t k = 0; k < dim; ++k) {
      projected[t * dim + k] = static_cast<float>(alpha * c[k]);
    }
  }
  log_list.assign(tokens, kMinusInfinity);
  log_outside.assign(tokens, kMinusInfinity);
  // Owned candidates of each token's list as rows, ascending.
  const int64_t length = layer.shortlists().length();
  std::vector<std::vector<int32_t>> owned(layer.shortlists().codewords());
  for (const int32_t g : set.codeword) {
    if (!owned[g].empty()) continue;
    for (const int32_t e : lists.subspan(g * length, length)) {
      if (layer.residency().home(e) == layer.rank()) {
        owned[g].push_back(layer.residency().row(e));
      }
    }
    std::sort(owned[g].begin(), owned[g].end());
  }
  std::vector<std::size_t> cursor(tokens, 0);
  Buffer<float> of_token(tokens * kExpertBlock), of_codeword(tokens * kExpertBlock);
  Buffer<float> scratch;
  std::vector<float> in, out;
  for (int64_t first = 0; first < rows; first += kExpertBlock) {
    const int64_t n = std::min(kExpertBlock, rows - first);
    const ConstMatrix unit = layer.unit_centroids(first, n, scratch);
    const Matrix a(of_token.data(), tokens, n);
    const Matrix b(of_codeword.data(), tokens, n);
    blas::gemm(blas::Op::none, blas::Op::transpose, 1.0f, hidden, unit, 0.0f, a);
    blas::gemm(blas::Op::none, blas::Op::transpose, 1.0f,
               ConstMatrix(projected.data(), tokens, dim), unit, 0.0f, b);
    for (int64_t t = 0; t < tokens; ++t) {
      const std::vector<int32_t>& list = owned[set.codeword[t]];
      in.clear();
      out.clear();
      for (int64_t e = 0; e < n; ++e) {
        if (cursor[t] < list.size() && list[cursor[t]] == first + e) {
          in.push_back(a(t, e));
          ++cursor[t];
        } else {
          out.push_back(b(t, e));
        }
      }
      log_list[t] = router::log_add_exp(log_list[t], router::log_sum_exp(in));
      log_outside[t] = router::log_add_exp(log_outside[t], router::log_sum_exp(out));
    }
  }
}

// values[t] over all ranks, added as logarithms, on every rank.
void log_add_over_ranks(comm::Communicator& comm, std::vector<double>& values) {
  const std::size_t n = values.size();
  std::vector<double> all(n * comm.size());
  comm.all_gather(std::span<const double>(values), std::span<double>(all));
  for (std::size_t t = 0; t < n; ++t) {
    values[t] = kMinusInfinity;
    for (int r = 0; r < comm.size(); ++r)
      values[t] = router::log_add_exp(values[t], all[r * n + t]);
  }
}

}  // namespace

RoutingQuality probe_routing(comm::Communicator& comm, const MoeLayer& layer,
                             const RoutingRecord& record, int64_t max_tokens) {
  const comm::ScopedPhase phase(comm, "probe");
  const int ranks = comm.size();
  const int64_t dim = layer.config().dim;
  const int64_t active = layer.config().active;
  const ProbeSet set = choose(comm, record, dim, max_tokens);
  const int64_t tokens = set.tokens();
  RoutingQuality quality;
  quality.tokens = tokens;
  if (tokens == 0) return quality;

  const BlockPartition& experts = layer.shortlists().experts();
  router::ExactTop top;
  exact_routing(layer, set, active, top);
  for (int64_t i = 0; i < tokens * top.stride; ++i) {
    top.expert[i] = layer.residency().expert(top.expert[i]);
  }
  std::vector<int32_t> lists(layer.shortlists().codewords() * layer.shortlists().length());
  layer.shortlists().gather_all(lists);
  std::vector<double> log_all(top.log_sum_exp.begin(), top.log_sum_exp.begin() + tokens);
  std::vector<double> log_list, log_outside;
  list_sums(layer, set, lists, layer.codebook().codewords(), log_list, log_outside);
  log_add_over_ranks(comm, log_all);
  log_add_over_ranks(comm, log_list);
  log_add_over_ranks(comm, log_outside);

  // Exact top K: each rank's best go to the token's home rank.
  std::vector<int64_t> send_counts(ranks), recv_counts(ranks), recv_begin(ranks + 1, 0);
  const int64_t mine = set.counts[comm.rank()];
  for (int r = 0; r < ranks; ++r) {
    send_counts[r] = set.counts[r] * top.stride;
    recv_counts[r] = mine * std::min(active, experts.size(r));
    recv_begin[r + 1] = recv_begin[r] + recv_counts[r];
  }
  std::vector<float> scores(recv_begin[ranks]);
  std::vector<int32_t> ids(recv_begin[ranks]);
  comm.all_to_all_v(std::span<const float>(top.score.data(), tokens * top.stride), send_counts,
                    std::span<float>(scores), recv_counts);
  comm.all_to_all_v(std::span<const int32_t>(top.expert.data(), tokens * top.stride), send_counts,
                    std::span<int32_t>(ids), recv_counts);

  std::vector<std::pair<float, int32_t>> merged;
  std::vector<int32_t> exact(active);
  double sums[4] = {0, 0, 0, 0};
  for (int64_t i = 0; i < mine; ++i) {
    merged.clear();
    for (int r = 0; r < ranks; ++r) {
      const int64_t stride = std::min(active, experts.size(r));
      for (int64_t k = 0; k < stride; ++k) {
        const int64_t at = recv_begin[r] + i * stride + k;
        merged.emplace_back(-scores[at], ids[at]);
      }
    }
    std::partial_sort(merged.begin(), merged.begin() + active, merged.end());
    double log_exact = kMinusInfinity;
    for (int64_t k = 0; k < active; ++k) {
      exact[k] = merged[k].second;
      log_exact = router::log_add_exp(log_exact, -static_cast<double>(merged[k].first));
    }
    const int64_t token = set.local[i];
    const int32_t* selected = record.expert.data() + token * active;
    const int64_t t = set.begin[comm.rank()] + i;
    const float* h = set.hidden.data() + t * dim;
    const float* c = layer.codebook().codewords().row(set.codeword[t]);
    const auto width = static_cast<std::size_t>(dim);
    const double distance = router::codeword_distance({h, width}, {c, width}).eps;
    sums[0] += router::overlap({selected, static_cast<std::size_t>(active)}, exact);
    sums[1] += std::min(1.0, std::exp(record.log_sum_exp[token] - log_exact));
    sums[2] += std::min(1.0, router::mass_recall(log_list[t], log_all[t]));
    sums[3] += router::mass_recall_bound(log_list[t], log_outside[t], distance);
  }
  comm.all_reduce(std::span<double>(sums), comm::Reduction::sum);
  const auto n = static_cast<double>(tokens);
  quality.overlap = sums[0] / n;
  quality.topk_mass_ratio = sums[1] / n;
  quality.mass_recall = sums[2] / n;
  quality.mass_recall_bound = sums[3] / n;
  return quality;
}

}  // namespace airmoe::scheduler
