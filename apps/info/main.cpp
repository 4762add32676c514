// airmoe-info: how this airmoe was built and what it runs on.

#include <thread>

#include <boost/version.hpp>
#include <fmt/format.h>
#include <hwy/highway.h>
#include <hwy/targets.h>
#include <nlohmann/json.hpp>
#include <unistd.h>

#include "apps/common/options.hpp"
#include "apps/common/run_main.hpp"
#include "apps/common/transport.hpp"
#include "apps/common/version.hpp"
#include "comm/base/blas.hpp"
#include "comm/library_version.hpp"
#include "comm/ucx_communicator.hpp"
#include "scheduler/store/checkpoint.hpp"
#include "scheduler/store/libraries.hpp"
#include "scheduler/store/trace.hpp"

namespace airmoe::info {

namespace {

using Json = nlohmann::ordered_json;
namespace po = boost::program_options;

std::string compiler() {
#if defined(__clang__)
  return fmt::format("Clang {}", __clang_version__);
#elif defined(__GNUC__)
  return fmt::format("GCC {}", __VERSION__);
#else
  return "unknown";
#endif
}

// Highway numbers its targets so that better ones have lower bits.
std::string best_target() {
  const int64_t supported = hwy::SupportedTargets();
  return hwy::TargetName(supported & -supported);
}

Json package_versions() {
  Json packages;
  packages["fmt"] =
      fmt::format("{}.{}.{}", FMT_VERSION / 10000, FMT_VERSION / 100 % 100, FMT_VERSION % 100);
  packages["Boost"] = fmt::format("{}.{}.{}", BOOST_VERSION / 100000, BOOST_VERSION / 100 % 1000,
                                  BOOST_VERSION % 100);
  packages["Highway"] = fmt::format("{}.{}.{}", HWY_MAJOR, HWY_MINOR, HWY_PATCH);
  for (const auto& [name, version] : scheduler::store_libraries()) packages[name] = version;
  return packages;
}

Json collect() {
  Json report;
  report["version"] = apps::kVersion;
  report["build_type"] = AIRMOE_BUILD_TYPE;
  report["compiler"] = compiler();
  report["blas"] = blas::description();
  report["simd"] = best_target();
  report["mpi"] = comm::mpi_library_version();
  if (comm::has_ucx()) report["ucx"] = comm::ucx_library_version();
  report["packages"] = package_versions();
  report["communication_backends"] = apps::transport_names();
  report["devices"] = {"cpu"};
  report["formats"] = {{scheduler::kCheckpointFormat, scheduler::kCheckpointVersion},
                       {scheduler::kTraceFormat, scheduler::kTraceVersion}};
  report["processors"] = std::thread::hardware_concurrency();
  report["memory_bytes"] = int64_t{::sysconf(_SC_PHYS_PAGES)} * int64_t{::sysconf(_SC_PAGESIZE)};
  return report;
}

void print_text(const Json& report) {
  for (const auto& [name, value] : report.items()) {
    if (!value.is_object() && !value.is_array()) {
      fmt::print("{:<24}{}\n", name, value.is_string() ? value.get<std::string>() : value.dump());
      continue;
    }
    std::string list;
    for (const auto& [key, item] : value.items()) {
      const std::string text = item.is_string() ? item.get<std::string>() : item.dump();
      list +=
          fmt::format("{}{}{}", list.empty() ? "" : ", ", value.is_object() ? key + " " : "", text);
    }
    fmt::print("{:<24}{}\n", name, list);
  }
}

ExitCode run(int argc, char** argv) {
  bool json = false;
  po::options_description options("Information", 100, 60);
  options.add_options()("json", po::bool_switch(&json), "print one JSON object");
  const apps::Usage usage = {"airmoe-info", "airmoe-info [OPTIONS]",
                             "Prints how this airmoe was built and what it runs on."};
  if (!apps::parse_options(argc, argv, usage, options, "", true)) return ExitCode::ok;
  const Json report = collect();
  if (json) {
    fmt::print("{}\n", report.dump(2));
  } else {
    print_text(report);
  }
  return ExitCode::ok;
}

}  // namespace

}  // namespace airmoe::info

int main(int argc, char** argv) {
  return airmoe::apps::run_main("airmoe-info", [&] {
    airmoe::blas::prepare_process(argv);
    return airmoe::info::run(argc, argv);
  });
}
