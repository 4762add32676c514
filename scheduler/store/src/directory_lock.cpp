#include "scheduler/store/directory_lock.hpp"

#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <sstream>

#include <fcntl.h>
#include <nlohmann/json.hpp>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "comm/base/error.hpp"
#include "scheduler/store/agreement.hpp"
#include "scheduler/store/src/checkpoint_directory.hpp"
#include "scheduler/store/src/posix_file.hpp"

namespace airmoe::scheduler {

namespace {

using Clock = std::chrono::steady_clock;
using nlohmann::json;

constexpr double kStaleSeconds = 60;
constexpr auto kRefreshInterval = std::chrono::seconds(10);

// Field 22 of /proc/<pid>/stat, ticks since boot: tells a process from a later one of the same id.
// 0 when there is no such process, when it has ended and only nobody asked for its exit code yet
// (in containers without an init process that lasts), or without /proc.
int64_t start_time_of(int64_t pid) {
  std::string line;
  try {
    const PosixFile file(fmt::format("/proc/{}/stat", pid), O_RDONLY);
    std::array<char, 1024> text{};
    const ssize_t n = ::read(file.descriptor(), text.data(), text.size());
    if (n > 0) line.assign(text.data(), static_cast<std::size_t>(n));
  } catch (const Error&) {
    return 0;
  }
  const auto name_end = line.rfind(')');
  if (name_end == std::string::npos) return 0;
  std::istringstream fields(line.substr(name_end + 1));
  std::string field;
  fields >> field;
  if (field == "Z" || field == "X") return 0;
  for (int i = 4; i <= 22; ++i) fields >> field;
  return std::strtoll(field.c_str(), nullptr, 10);
}

struct Holder {
  std::string host;
  int64_t pid = 0;
  int64_t start_time = 0;
  std::string job;
  std::string restarts;
  std::string nonce;

  std::string text() const {
    return json{{"host", host}, {"pid", pid},           {"start_time", start_time},
                {"job", job},   {"restarts", restarts}, {"nonce", nonce}}
               .dump() +
           "\n";
  }
  std::string name() const {
    return fmt::format("{} on node {}", job.empty() ? fmt::format("process {}", pid) : "job " + job,
                       host);
  }
};

std::string environment(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? "" : value;
}

Holder this_run() {
  const auto pid = static_cast<int64_t>(::getpid());
  return {host_name(),
          pid,
          start_time_of(pid),
          environment("SLURM_JOB_ID"),
          environment("SLURM_RESTART_COUNT"),
          random_hex(16)};
}

// An unreadable lock (its writer died early) is one of an unknown holder.
Holder parse_holder(const std::string& text) {
  Holder holder{"unknown", 0, 0, "", "", ""};
  const json j = json::parse(text, nullptr, false);
  if (!j.is_object()) return holder;
  holder.host = j.value("host", "unknown");
  holder.pid = j.value("pid", int64_t{0});
  holder.start_time = j.value("start_time", int64_t{0});
  holder.job = j.value("job", "");
  holder.nonce = j.value("nonce", "");
  return holder;
}

double seconds(const struct stat& info) {
  return static_cast<double>(info.st_mtim.tv_sec) +
         1e-9 * static_cast<double>(info.st_mtim.tv_nsec);
}

// By the clock of the file system, which is the one that sets modification times.
double age_of(const std::string& path, const std::string& directory) {
  const std::string probe = fmt::format("{}/.lock.probe.{}", directory, random_hex(6));
  struct stat now {};
  struct stat then {};
  {
    const PosixFile file(probe, O_WRONLY | O_CREAT | O_EXCL);
    ::fstat(file.descriptor(), &now);
  }
  ::unlink(probe.c_str());
  return ::stat(path.c_str(), &then) == 0 ? seconds(now) - seconds(then) : 0;
}

// True when the lock may be taken over; `why` says for what reason.
bool is_abandoned(const Holder& holder, double age, std::string& why) {
  if (holder.host == host_name() && holder.pid > 0) {
    const bool alive = ::kill(static_cast<pid_t>(holder.pid), 0) == 0 || errno == EPERM;
    if (!alive || start_time_of(holder.pid) != holder.start_time) {
      why = "its process is gone";
      return true;
    }
    return false;  // the very process, however long its step takes
  }
  if (age <= kStaleSeconds) return false;
  why = fmt::format("no heartbeat for {:.0f} s", age);
  return true;
}

}  // namespace

struct DirectoryLock::Impl {
  bool root = false;
  std::string path;
  std::string nonce;
  Clock::time_point refreshed;

  bool is_ours() const { return parse_holder(read_small_file(path)).nonce == nonce; }
};

namespace {

// Takes over an abandoned lock. Two runs that find the same one are kept apart by flock.
// True when it was taken; false when there is no lock any more.
bool take_over(const std::string& path, const std::string& directory, const Holder& self,
               const Notify& notify) {
  const int descriptor = ::open(path.c_str(), O_RDWR | O_CLOEXEC);
  if (descriptor < 0 && errno == ENOENT) return false;
  if (descriptor < 0) fail(ExitCode::io, "{}: cannot open: {}", path, std::strerror(errno));
  struct Close {
    int descriptor;
    ~Close() { ::close(descriptor); }
  } close{descriptor};
  while (::flock(descriptor, LOCK_EX) != 0 && errno == EINTR) {
  }
  const Holder holder = parse_holder(read_small_file(path));
  const double age = age_of(path, directory);
  std::string why;
  if (!is_abandoned(holder, age, why)) {
    fail(ExitCode::try_again,
         "{} is in use by {} (heartbeat {:.0f} s ago). Another run in the same directory? Use "
         "another --checkpoint-dir or wait.",
         directory, holder.name(), age);
  }
  if (notify) {
    notify(fmt::format("{}: taking over the lock of {} ({})", directory, holder.name(), why));
  }
  const std::string text = self.text();
  if (::ftruncate(descriptor, 0) != 0 ||
      ::pwrite(descriptor, text.data(), text.size(), 0) != std::ssize(text)) {
    fail(ExitCode::io, "{}: cannot write: {}", path, std::strerror(errno));
  }
  return true;
}

// True when this call made the lock.
bool create(const std::string& path, const Holder& self) {
  const int descriptor = ::open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
  if (descriptor < 0 && errno == EEXIST) return false;
  if (descriptor < 0)
    fail(ExitCode::io, "{}: cannot make the lock: {}", path, std::strerror(errno));
  const std::string text = self.text();
  const bool written = ::write(descriptor, text.data(), text.size()) == std::ssize(text);
  const int error = errno;
  ::close(descriptor);
  if (!written) {
    ::unlink(path.c_str());
    fail(ExitCode::io, "{}: cannot write the lock: {}", path, std::strerror(error));
  }
  return true;
}

void tell_orphans(const std::string& directory, const Notify& notify) {
  for (const auto& orphan : remove_orphans(directory)) {
    if (!notify) continue;
    notify(fmt::format("ignoring {} (job or process {} ended while writing it); removed, {} freed.",
                       orphan.name, orphan.owner, bytes_text(orphan.bytes)));
  }
}

}  // namespace

DirectoryLock::DirectoryLock(comm::Communicator& comm, const std::string& dir, const Notify& notify)
    : impl_(std::make_unique<Impl>()) {
  const Holder self = this_run();
  impl_->root = comm.rank() == 0;
  impl_->path = dir + "/.lock";
  on_root(comm, [&] {
    std::error_code error;
    std::filesystem::create_directories(dir, error);
    if (error) fail(ExitCode::io, "{}: cannot make the directory: {}", dir, error.message());
    while (!create(impl_->path, self)) {
      if (take_over(impl_->path, dir, self, notify)) break;
    }
    impl_->nonce = self.nonce;
    impl_->refreshed = Clock::now();
    tell_orphans(dir, notify);
  });
}

DirectoryLock::~DirectoryLock() {
  if (!impl_->root || impl_->nonce.empty()) return;
  try {
    if (impl_->is_ours()) ::unlink(impl_->path.c_str());
  } catch (const std::exception&) {  // the next run finds the process gone
  }
}

void DirectoryLock::refresh() {
  if (!impl_->root || Clock::now() - impl_->refreshed < kRefreshInterval) return;
  impl_->refreshed = Clock::now();
  if (!impl_->is_ours()) {
    fail(ExitCode::try_again, "{}: another run took the directory over; this one stops",
         impl_->path);
  }
  ::utimensat(AT_FDCWD, impl_->path.c_str(), nullptr, 0);
}

}  // namespace airmoe::scheduler
