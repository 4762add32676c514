// airmoe-train: trains a granular MoE language model across MPI ranks.

#include <unistd.h>

#include "apps/common/options.hpp"
#include "apps/common/run_main.hpp"
#include "apps/common/transport.hpp"
#include "apps/common/version.hpp"
#include "apps/train/train_options.hpp"
#include "comm/base/blas.hpp"
#include "comm/mpi_environment.hpp"
#include "scheduler/train/trainer.hpp"

namespace {

using namespace airmoe;

bool show_progress(const boost::program_options::variables_map& given) {
  const std::string when =
      given.count("progress") != 0 ? given["progress"].as<std::string>() : std::string("auto");
  if (when == "always") return true;
  if (when == "never") return false;
  if (when != "auto") fail(ExitCode::usage, "--progress {}: give auto, always or never", when);
  return isatty(STDERR_FILENO) != 0;
}

ExitCode train(int argc, char** argv, const comm::MpiEnvironment& environment) {
  const apps::TrainOptions options;
  const apps::Usage usage{
      "airmoe-train", "mpirun -n RANKS airmoe-train [OPTIONS]",
      "Trains a granular mixture-of-experts language model. Without options: preset tiny on\n"
      "the C headers of this machine. Ends with 0, or with 85 after SIGTERM or SIGUSR1 and a\n"
      "checkpoint; docs/cli.md lists all exit codes."};
  apps::Transport transport;
  boost::program_options::options_description transport_group("Transport", 100, 60);
  apps::add_transport_options(transport_group, transport);
  boost::program_options::options_description all;
  all.add(options.description()).add(transport_group);
  const auto given = apps::parse_options(argc, argv, usage, all, "", environment.rank() == 0);
  if (!given) return ExitCode::ok;
  const bool progress = show_progress(*given);
  scheduler::TrainConfig config = options.resolve(*given, "");

  transport.deadline_seconds = config.deadline_seconds;
  const auto comm = apps::make_communicator(transport);
  const auto resume = scheduler::find_resume(*comm, config);
  if (resume) config = options.resolve(*given, resume->meta.config_json);
  scheduler::RunOptions run;
  run.show_progress = progress;
  run.writer = std::string("airmoe-train ") + apps::kVersion;
  scheduler::Trainer trainer(*comm, config, run, resume);
  return trainer.run();
}

}  // namespace

int main(int argc, char** argv) {
  blas::prepare_process(argv);
  comm::MpiEnvironment environment(&argc, &argv);
  return apps::run_main("airmoe-train", environment,
                        [&] { return train(argc, argv, environment); });
}
