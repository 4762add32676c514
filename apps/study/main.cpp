// airmoe-study: what every exchange strategy sends, counted from recorded routing.

#include <filesystem>

#include <fmt/format.h>

#include "apps/common/run_main.hpp"
#include "apps/study/report.hpp"
#include "apps/study/run_strategies.hpp"
#include "comm/base/blas.hpp"
#include "comm/mpi_communicator.hpp"
#include "scheduler/store/trace_reader.hpp"

namespace airmoe::study {
namespace {

using scheduler::RecordedRouting;

RecordedRouting recorded(const Options& options) {
  if (options.trace.empty()) {
    RecordedRouting made;
    made.routing = scheduler::make_synthetic(options.synthetic);
    return made;
  }
  return scheduler::read_routing(options.trace,
                                 {options.step, options.layer, options.trace_experts});
}

scheduler::TrafficShape shape_of(const Options& o, const RecordedRouting& r) {
  scheduler::TrafficShape shape;
  shape.dim = o.dim ? *o.dim : r.dim.value_or(256);
  shape.expert_dim = o.expert_dim ? *o.expert_dim : r.expert_dim.value_or(1);
  const std::string activation = o.activation ? *o.activation : r.activation.value_or("gelu");
  if (activation != "gelu" && activation != "silu" && activation != "relu" &&
      activation != "swiglu") {
    fail(ExitCode::usage, "--expert-activation {}: give gelu, silu, relu or swiglu", activation);
  }
  shape.gated = activation == "swiglu";
  shape.jitter = (o.jitter ? *o.jitter : r.jitter.value_or(0.01)) > 0;
  shape.balance = (o.balance_weight ? *o.balance_weight : r.balance_weight.value_or(0.01)) > 0;
  shape.sums = r.sums.value_or(scheduler::SumPrecision::f64);
  if (o.sum_precision)
    shape.sums =
        *o.sum_precision == "f32" ? scheduler::SumPrecision::f32 : scheduler::SumPrecision::f64;
  return shape;
}

Subject subject_of(const Options& o, const RecordedRouting& r,
                   const scheduler::TrafficShape& shape) {
  const scheduler::RoutingTrace& t = r.routing;
  const std::string source =
      t.synthetic
          ? fmt::format("synthetic, zipf {:g}, spread {:g}, seed {}", o.synthetic.zipf,
                        o.synthetic.spread, o.synthetic.seed)
          : fmt::format("{} step {} layer {}", std::filesystem::path(o.trace).filename().string(),
                        r.step, r.layer);
  return {source,   t.synthetic, t.experts, t.codewords(), t.length,
          t.active, t.tokens(),  shape,     o.machine};
}

class Progress {
 public:
  explicit Progress(bool show) : show_(show) {}
  void operator()(const std::string& what) const {
    if (show_) fmt::print(stderr, "\r\x1b[K{}", what);
  }
  void clear() const { (*this)(""); }

 private:
  bool show_;
};

void write_plots(const Options& o, const Subject& subject, std::span<const Row> rows) {
  std::error_code failed;
  std::filesystem::create_directories(o.plots, failed);
  if (failed) fail(ExitCode::io, "--plots {}: {}", o.plots, failed.message());
  const std::string csv = (std::filesystem::path(o.plots) / "study.csv").string();
  write_csv(csv, subject, rows);
  fmt::print("\nrows in {0}; to draw them:\n  apps/plot/plot_study.py {0} --output {1}\n", csv,
             o.plots);
}

ExitCode run(int argc, char** argv, const comm::MpiEnvironment& environment) {
  const auto options = parse_study_options(argc, argv, environment.rank() == 0);
  if (!options) return ExitCode::ok;
  const Options& o = *options;
  if (o.run) {
    comm::MpiOptions mpi;
    mpi.deadline_seconds = o.deadline_seconds;
    const auto comm = comm::make_mpi_communicator(mpi);
    return run_strategies(o, *comm);
  }
  if (environment.size() > 1) {
    fail(ExitCode::usage,
         "started on {} ranks: a study is one process; start it without mpirun, or give --run",
         environment.size());
  }
  const Progress progress(o.progress);
  progress("reading");
  const RecordedRouting routing = recorded(o);
  const scheduler::TrafficShape shape = shape_of(o, routing);
  const Subject subject = subject_of(o, routing, shape);
  progress.clear();
  fmt::print("{}", table_head(subject));
  std::vector<Row> rows;
  for (const int64_t tokens : o.tokens_per_rank) {
    for (const int64_t ranks : o.ranks) {
      const std::vector<Row> more = sweep(o, routing.routing, shape, static_cast<int>(ranks),
                                          tokens, [&](const std::string& s) { progress(s); });
      progress.clear();
      fmt::print("{}", table(more));
      std::fflush(stdout);
      rows.insert(rows.end(), more.begin(), more.end());
    }
  }
  if (!o.csv.empty()) write_csv(o.csv, subject, rows);
  if (!o.hdf5.empty()) write_hdf5(o.hdf5, subject, rows);
  if (!o.plots.empty()) write_plots(o, subject, rows);
  return ExitCode::ok;
}

}  // namespace
}  // namespace airmoe::study

int main(int argc, char** argv) {
  airmoe::blas::prepare_process(argv);
  airmoe::comm::MpiEnvironment environment(&argc, &argv);
  return airmoe::apps::run_main("airmoe-study", environment,
                                [&] { return airmoe::study::run(argc, argv, environment); });
}
