#include "scheduler/store/src/helper_process.hpp"

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstring>

#include <poll.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include "comm/base/error.hpp"

namespace airmoe::scheduler {

namespace {

using Clock = std::chrono::steady_clock;

// A reply is one byte, kResult or kError, one byte of exit code, and the text.
constexpr char kResult = 'r';
constexpr char kError = 'e';

void write_all(int descriptor, const std::string& text) {
  for (std::size_t done = 0; done < text.size();) {
    const ssize_t n = ::write(descriptor, text.data() + done, text.size() - done);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return;
    done += static_cast<std::size_t>(n);
  }
}

[[noreturn]] void run_child(int descriptor, const std::function<std::string()>& work) {
  // Handlers of MPI or of the program would print a report or set a flag.
  for (const int signal : {SIGSEGV, SIGBUS, SIGABRT, SIGFPE, SIGILL, SIGTERM, SIGINT, SIGUSR1}) {
    std::signal(signal, SIG_DFL);
  }
  std::signal(SIGPIPE, SIG_IGN);
  const rlimit no_core{0, 0};
  ::setrlimit(RLIMIT_CORE, &no_core);
  std::string reply;
  try {
    reply = std::string{kResult, '\0'} + work();
  } catch (const Error& e) {
    reply = std::string{kError, static_cast<char>(e.code())} + e.what();
  } catch (const std::exception& e) {
    reply = std::string{kError, static_cast<char>(ExitCode::bad_data)} + e.what();
  }
  write_all(descriptor, reply);
  ::_exit(0);
}

// Reads until the child closes the pipe. False when time ran out.
bool read_reply(int descriptor, Clock::time_point deadline, std::string& reply) {
  std::array<char, 1 << 16> piece;
  for (;;) {
    const auto left =
        std::chrono::duration_cast<std::chrono::milliseconds>(deadline - Clock::now()).count();
    if (left <= 0) return false;
    pollfd wait{descriptor, POLLIN, 0};
    const int ready = ::poll(&wait, 1, static_cast<int>(std::min<int64_t>(left, 1 << 30)));
    if (ready < 0 && errno != EINTR) return false;
    if (ready <= 0) continue;
    const ssize_t n = ::read(descriptor, piece.data(), piece.size());
    if (n == 0) return true;
    if (n > 0) reply.append(piece.data(), static_cast<std::size_t>(n));
  }
}

int wait_for(pid_t child) {
  int status = 0;
  while (::waitpid(child, &status, 0) < 0 && errno == EINTR) {
  }
  return status;
}

}  // namespace

std::string run_in_helper(const std::string& what, double seconds,
                          const std::function<std::string()>& work) {
  std::array<int, 2> ends{};
  if (::pipe(ends.data()) != 0) return work();
  const pid_t child = ::fork();
  if (child < 0) {
    ::close(ends[0]);
    ::close(ends[1]);
    return work();
  }
  if (child == 0) {
    ::close(ends[0]);
    run_child(ends[1], work);
  }
  ::close(ends[1]);
  std::string reply;
  const auto limit =
      std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(seconds));
  const bool complete = read_reply(ends[0], Clock::now() + limit, reply);
  ::close(ends[0]);
  if (!complete) ::kill(child, SIGKILL);
  const int status = wait_for(child);
  if (!complete) {
    fail(ExitCode::bad_data, "{}: HDF5 did not answer within {} s (corrupt metadata?)", what,
         seconds);
  }
  if (WIFSIGNALED(status)) {
    fail(ExitCode::bad_data, "{}: HDF5 crashed while reading it ({}; corrupt metadata?)", what,
         ::strsignal(WTERMSIG(status)));
  }
  if (reply.size() < 2) fail(ExitCode::bad_data, "{}: the reading process gave no answer", what);
  if (reply[0] == kError) throw Error(static_cast<ExitCode>(reply[1]), reply.substr(2));
  return reply.substr(2);
}

}  // namespace airmoe::scheduler
