// airmoe-bench kernels: the inner loops of one MoE layer, each against the way one would write it
// with a BLAS call and against the floor of the machine.

#include <algorithm>
#include <numeric>

#include <fmt/format.h>

#include "apps/bench/command.hpp"
#include "apps/bench/expert_runs.hpp"
#include "apps/bench/options.hpp"
#include "apps/bench/report.hpp"
#include "comm/base/blas.hpp"
#include "router/exact.hpp"
#include "router/select.hpp"

namespace airmoe::bench {
namespace {

/// One codeword's tokens at a time; repetition r works on codeword r % G, so that panels come from
/// memory or the last-level cache, as in training.
class Kernels {
 public:
  explicit Kernels(Workload& work) : work_(work), shape_(work.shape()) {
    const int64_t ld = tile_ld(shape_.tokens);
    tile_ = Buffer<float>(shape_.shortlist * ld, 0.0f);
    gathered_.ensure(shape_.shortlist * shape_.dim);
    y_ = Buffer<float>(shape_.tokens * shape_.dim, 0.0f);
    table_ = Buffer<float>(shape_.experts * shape_.dim, 0.0f);
    position_.ensure(shape_.tokens * shape_.active);
    score_.ensure(shape_.tokens * shape_.active);
    column_.ensure(shape_.shortlist);
    order_.ensure(shape_.shortlist);
  }

  void run(Report& report) {
    const auto d = static_cast<double>(shape_.dim), m = static_cast<double>(shape_.shortlist),
               n = static_cast<double>(shape_.tokens), e = static_cast<double>(shape_.experts);
    const double product = 2 * m * n * d, panel = 4 * m * d, block = 4 * n * d;
    report.run({"scores",
                product,
                panel + block,
                {{"panel_scores", [&](int64_t r) { scores(codeword(r)); }},
                 {"gather + sgemm", [&](int64_t r) { scores_blas(codeword(r)); }}}});
    report.run({"combine",
                product,
                panel + 2 * block,
                {{"panel_combine", [&](int64_t r) { combine(codeword(r)); }},
                 {"gather + sgemm", [&](int64_t r) { combine_blas(codeword(r)); }}}});
    report.run({"accumulate",
                product,
                2 * panel + block,
                {{"panel_accumulate", [&](int64_t r) { accumulate(codeword(r)); }},
                 {"sgemm + add rows", [&](int64_t r) { accumulate_blas(codeword(r)); }}}});
    scores(0);
    report.run({"top-k",
                0,
                4 * m * n,
                {{"select_top_k", [&](int64_t) { select(); }},
                 {"nth_element + sort", [&](int64_t) { select_standard(); }}}});
    report.run({"routing", product, panel + block, {{"panel_scores + top-k", [&](int64_t r) {
                                                       scores(codeword(r)), select();
                                                     }}}});
    report.run({"exact routing", 2 * e * n * d, 4 * e * d + block, {{"exact_top", [&](int64_t r) {
                                                                       exact(codeword(r));
                                                                     }}}});
  }

 private:
  int64_t codeword(int64_t repetition) const { return repetition % shape_.codewords; }
  Matrix tile() { return {tile_.data(), shape_.shortlist, shape_.tokens, tile_ld(shape_.tokens)}; }
  Matrix y() { return {y_.data(), shape_.tokens, shape_.dim}; }
  Matrix gathered() { return {gathered_.data(), shape_.shortlist, shape_.dim}; }

  void gather(int64_t g) {
    const ConstPanel panel = work_.panel(g);
    for (int64_t i = 0; i < panel.count; ++i) {
      std::copy_n(panel.table + panel.rows[i] * panel.ld, panel.cols, gathered().row(i));
    }
  }

  void scores(int64_t g) { panel_scores(work_.panel(g), work_.hidden(g), tile_.data(), panel_); }
  void scores_blas(int64_t g) {
    gather(g);
    blas::gemm(blas::Op::none, blas::Op::transpose, 1, gathered(), work_.hidden(g), 0, tile());
  }

  void combine(int64_t g) { panel_combine(work_.panel(g), tile_.data(), y(), panel_); }
  void combine_blas(int64_t g) {
    gather(g);
    blas::gemm(blas::Op::transpose, blas::Op::none, 1, tile(), gathered(), 1, y());
  }

  void accumulate(int64_t g) {
    const Panel target{table_.data(), work_.candidates(g), shape_.shortlist, shape_.dim,
                       shape_.dim};
    panel_accumulate(target, tile_.data(), work_.hidden(g), panel_);
  }
  void accumulate_blas(int64_t g) {
    blas::gemm(blas::Op::none, blas::Op::none, 1, tile(), work_.hidden(g), 0, gathered());
    for (int64_t i = 0; i < shape_.shortlist; ++i) {
      float* row = table_.data() + work_.candidates(g)[i] * shape_.dim;
      for (int64_t k = 0; k < shape_.dim; ++k) row[k] += gathered()(i, k);
    }
  }

  void select() {
    router::select_top_k(tile_.data(), shape_.shortlist, shape_.tokens, shape_.active,
                         position_.data(), score_.data());
  }
  void select_standard() {
    for (int64_t t = 0; t < shape_.tokens; ++t) {
      for (int64_t i = 0; i < shape_.shortlist; ++i) column_[i] = tile()(i, t);
      std::iota(order_.begin(), order_.end(), 0);
      const auto better = [&](int32_t a, int32_t b) {
        return column_[a] > column_[b] || (column_[a] == column_[b] && a < b);
      };
      int32_t* end = order_.data() + shape_.active;
      if (end != order_.end()) std::nth_element(order_.begin(), end, order_.end(), better);
      std::sort(order_.data(), end);
      for (int64_t i = 0; i < shape_.active; ++i) {
        position_[t * shape_.active + i] = order_[i];
        score_[t * shape_.active + i] = column_[order_[i]];
      }
    }
  }

  void exact(int64_t g) {
    router::exact_top(work_.hidden(g), work_.centroid(), 0, shape_.active, exact_top_, exact_,
                      false);
  }

  Workload& work_;
  const WorkloadShape& shape_;
  PanelWorkspace panel_;
  Buffer<float> tile_, gathered_, y_, table_, score_, column_;
  Buffer<int32_t> position_, order_;
  router::ExactTop exact_top_;
  router::ExactWorkspace exact_;
};

/// All tokens of the workload. FLOPs are those of the selected pairs, which is what both paths have
/// to deliver: the dense path does M / K times as many.
void run_experts(Workload& work, Report& report) {
  const WorkloadShape& shape = work.shape();
  const double product = 2.0 * static_cast<double>(shape.pairs() * shape.expert_dim * shape.dim);
  const double rows =
      4.0 * static_cast<double>(shape.codewords * shape.shortlist * shape.expert_dim * shape.dim);
  ExpertRuns runs(work);
  report.run({"experts forward",
              2 * product,
              2 * rows,
              {{"shortlist-dense", [&](int64_t) { runs.forward_dense(); }},
               {"grouped by expert", [&](int64_t) { runs.forward_grouped(); }}}});
  report.run({"experts backward",
              4 * product,
              6 * rows,
              {{"shortlist-dense", [&](int64_t) { runs.backward_dense(); }},
               {"grouped by expert", [&](int64_t) { runs.backward_grouped(); }}}});
}

}  // namespace

ExitCode run_kernels(int argc, char** argv) {
  WorkloadShape shape;
  Repeats repeats;
  std::string json;
  boost::program_options::options_description options("Kernels", 100, 60);
  add_count(options, "experts", shape.experts, 1, "experts in the table");
  add_count(options, "dim", shape.dim, 1, "model width");
  add_count(options, "expert-dim", shape.expert_dim, 1, "hidden units per expert");
  add_count(options, "shortlist", shape.shortlist, 1, "candidates per codeword");
  add_count(options, "active", shape.active, 1, "selected experts per token");
  add_count(options, "tokens", shape.tokens, 1, "tokens per codeword");
  add_count(options, "codewords", shape.codewords, 1, "codewords, visited in turn");
  add_run_options(options, repeats, shape.seed, json);
  if (!parse(argc, argv, "The inner loops of one MoE layer on random data, one thread.", options)) {
    return ExitCode::ok;
  }
  shape.validate();

  const Machine machine = measure_machine();
  fmt::print("One core: {:.1f} GFLOP/s, {:.1f} GB/s read; {}\n\n", 1e-9 * machine.flops_per_second,
             1e-9 * machine.bytes_per_second, blas::description());
  Workload work(shape);
  Report report(machine, repeats);
  Kernels(work).run(report);
  run_experts(work, report);

  nlohmann::json result = report.json();
  result["shape"] = {{"experts", shape.experts},       {"dim", shape.dim},
                     {"expert_dim", shape.expert_dim}, {"shortlist", shape.shortlist},
                     {"active", shape.active},         {"tokens_per_codeword", shape.tokens},
                     {"codewords", shape.codewords},   {"seed", shape.seed}};
  write_json(json, result);
  return ExitCode::ok;
}

}  // namespace airmoe::bench
