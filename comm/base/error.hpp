#pragma once
// Errors and exit codes. Every failure that a user can cause leaves as airmoe::Error; main() prints
// it once and ends all ranks with its code.

#include <stdexcept>
#include <string>

#include <fmt/format.h>

namespace airmoe {

/// Process exit codes (docs/cli.md lists them for users).
enum class ExitCode : int {
  ok = 0,
  failure = 1,           ///< a bug or an error with no better class
  usage = 64,            ///< unknown option, malformed value
  bad_data = 65,         ///< unreadable, truncated or foreign file
  io = 74,               ///< write failed, disk full
  try_again = 75,        ///< the run directory is in use
  config = 78,           ///< options that contradict each other, or a checkpoint of another shape
  saved_on_signal = 85,  ///< SIGTERM or SIGUSR1: the step was finished and a checkpoint written
  watchdog = 86,         ///< a peer did not answer within the deadline
  not_finite = 87,       ///< loss or gradient norm is not a number
};

/// The one exception family. The message says what, where, why and what to do, on one line.
class Error : public std::runtime_error {
 public:
  Error(ExitCode code, const std::string& message) : std::runtime_error(message), code_(code) {}
  ExitCode code() const { return code_; }

 private:
  ExitCode code_;
};

/// Throws Error with a fmt-formatted message.
template <class... Args>
[[noreturn]] void fail(ExitCode code, fmt::format_string<Args...> format, Args&&... args) {
  throw Error(code, fmt::format(format, std::forward<Args>(args)...));
}

namespace detail {
[[noreturn]] void check_failed(const char* file, int line, const char* condition,
                               const std::string& message);
}  // namespace detail

}  // namespace airmoe

/// Always on: throws airmoe::Error (ExitCode::failure) with file, line, condition and message.
#define AIRMOE_CHECK(condition, ...)                                                              \
  do {                                                                                            \
    if (!(condition)) {                                                                           \
      ::airmoe::detail::check_failed(__FILE__, __LINE__, #condition, ::fmt::format(__VA_ARGS__)); \
    }                                                                                             \
  } while (false)

/// Debug builds only: for what can only be a bug of ours.
#ifdef NDEBUG
#define AIRMOE_ASSERT(condition) static_cast<void>(0)
#else
#define AIRMOE_ASSERT(condition) AIRMOE_CHECK(condition, "internal error")
#endif
