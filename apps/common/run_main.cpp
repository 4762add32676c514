#include "apps/common/run_main.hpp"

#include <cstdio>
#include <exception>
#include <new>

namespace airmoe::apps {

namespace {

constexpr double kSecondsForOthersToFail = 3.0;

struct Failure {
  ExitCode code = ExitCode::ok;
  std::string message;
};

Failure run(const std::function<ExitCode()>& body) {
  try {
    return {body(), ""};
  } catch (const Error& error) {
    return {error.code(), error.what()};
  } catch (const std::bad_alloc&) {
    return {ExitCode::failure, "out of memory: choose a smaller model or batch, or more ranks"};
  } catch (const std::exception& error) {
    return {ExitCode::failure, error.what()};
  }
}

}  // namespace

int run_main(const std::string& program, const std::function<ExitCode()>& body) {
  const Failure failure = run(body);
  if (!failure.message.empty()) {
    std::fprintf(stderr, "%s: error: %s\n", program.c_str(), failure.message.c_str());
  }
  return static_cast<int>(failure.code);
}

int run_main(const std::string& program, comm::MpiEnvironment& environment,
             const std::function<ExitCode()>& body) {
  const Failure failure = run(body);
  const int code = static_cast<int>(failure.code);
  if (failure.message.empty()) return code;
  // After a missed deadline messages may still be under way into memory that is gone: any further
  // progress of MPI could write there.
  const bool may_communicate = failure.code != ExitCode::watchdog;
  if (may_communicate && environment.all_ranks_arrive(kSecondsForOthersToFail)) {
    if (environment.rank() == 0) {
      std::fprintf(stderr, "%s: error: %s\n", program.c_str(), failure.message.c_str());
    }
    return code;
  }
  const bool names_rank = failure.message.starts_with("rank ");
  const std::string rank = names_rank ? "" : "[rank " + std::to_string(environment.rank()) + "] ";
  std::fprintf(stderr, "%s: error: %s%s\n", program.c_str(), rank.c_str(), failure.message.c_str());
  std::fflush(stderr);
  comm::MpiEnvironment::abort_all(code);
}

}  // namespace airmoe::apps
