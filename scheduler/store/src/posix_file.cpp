#include "scheduler/store/src/posix_file.hpp"

#include <algorithm>
#include <array>
#include <cerrno>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <random>
#include <utility>

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "comm/base/error.hpp"

namespace airmoe::scheduler {

namespace {

constexpr int64_t kPiece = int64_t{64} << 20;

[[noreturn]] void fail_errno(const char* action, const std::string& path, int error) {
  fail(ExitCode::io, "{}: cannot {}: {}", path, action, std::strerror(error));
}

}  // namespace

PosixFile::PosixFile(const std::string& path, int flags, int mode)
    : path_(path), descriptor_(::open(path.c_str(), flags | O_CLOEXEC, mode)) {
  if (descriptor_ < 0) fail_errno("open", path, errno);
}

PosixFile::PosixFile(PosixFile&& other) noexcept
    : path_(std::move(other.path_)), descriptor_(std::exchange(other.descriptor_, -1)) {}

PosixFile::~PosixFile() {
  if (descriptor_ >= 0) ::close(descriptor_);
}

int64_t PosixFile::size() const {
  struct stat info {};
  if (::fstat(descriptor_, &info) != 0) fail_errno("stat", path_, errno);
  return info.st_size;
}

void PosixFile::write_at(const void* data, int64_t size, int64_t offset) {
  const auto* bytes = static_cast<const char*>(data);
  for (int64_t done = 0; done < size;) {
    const auto piece = static_cast<std::size_t>(std::min(kPiece, size - done));
    const ssize_t n = ::pwrite(descriptor_, bytes + done, piece, offset + done);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) fail_errno("write", path_, errno);
    if (n == 0) fail_errno("write", path_, ENOSPC);
    done += n;
  }
}

void PosixFile::read_at(void* data, int64_t size, int64_t offset) const {
  auto* bytes = static_cast<char*>(data);
  for (int64_t done = 0; done < size;) {
    const auto piece = static_cast<std::size_t>(std::min(kPiece, size - done));
    const ssize_t n = ::pread(descriptor_, bytes + done, piece, offset + done);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) fail_errno("read", path_, errno);
    if (n == 0) {
      fail(ExitCode::bad_data, "{}: ends at byte {}, {} more expected", path_, offset + done,
           size - done);
    }
    done += n;
  }
}

void PosixFile::sync_data() {
  if (::fdatasync(descriptor_) != 0) fail_errno("flush to disk", path_, errno);
}

void PosixFile::sync() {
  if (::fsync(descriptor_) != 0) fail_errno("flush to disk", path_, errno);
}

void PosixFile::drop_cache() const {
  ::posix_fadvise(descriptor_, 0, 0, POSIX_FADV_DONTNEED);
}

std::string directory_of(const std::string& path) {
  const auto slash = path.rfind('/');
  if (slash == std::string::npos) return ".";
  return slash == 0 ? "/" : path.substr(0, slash);
}

std::string file_name_of(const std::string& path) {
  const auto slash = path.rfind('/');
  return slash == std::string::npos ? path : path.substr(slash + 1);
}

void sync_directory(const std::string& directory) {
  PosixFile(directory, O_RDONLY | O_DIRECTORY).sync();
}

void rename_file(const std::string& from, const std::string& to) {
  if (::rename(from.c_str(), to.c_str()) != 0) fail_errno("rename to its final name", from, errno);
}

void replace_file(const std::string& path, const std::string& content) {
  const std::string temporary = temporary_name(path);
  try {
    PosixFile file(temporary, O_WRONLY | O_CREAT | O_EXCL);
    file.write_at(content.data(), std::ssize(content), 0);
    file.sync();
    rename_file(temporary, path);
    sync_directory(directory_of(path));
  } catch (...) {
    ::unlink(temporary.c_str());
    throw;
  }
}

std::string read_small_file(const std::string& path) {
  if (::access(path.c_str(), F_OK) != 0 && errno == ENOENT) return "";
  const PosixFile file(path, O_RDONLY);
  std::string content(static_cast<std::size_t>(std::min<int64_t>(file.size(), 1 << 16)), '\0');
  file.read_at(content.data(), std::ssize(content), 0);
  return content;
}

void copy_file(const std::string& from, const std::string& to) {
  const PosixFile source(from, O_RDONLY);
  PosixFile target(to, O_WRONLY | O_CREAT | O_EXCL);
  const int64_t size = source.size();
  int64_t done = 0;
  while (done < size) {
    off_t in = done;
    off_t out = done;
    const ssize_t n = ::copy_file_range(source.descriptor(), &in, target.descriptor(), &out,
                                        static_cast<std::size_t>(size - done), 0);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0 && (errno == ENOSPC || errno == EDQUOT || errno == EFBIG || errno == EIO)) {
      fail_errno("copy", from, errno);
    }
    if (n <= 0) break;  // not between these file systems
    done += n;
  }
  std::string piece(std::size_t{4} << 20, '\0');
  for (; done < size; done += std::ssize(piece)) {
    const int64_t n = std::min(std::ssize(piece), size - done);
    source.read_at(piece.data(), n, done);
    target.write_at(piece.data(), n, done);
  }
}

std::string bytes_text(int64_t bytes) {
  constexpr std::array kUnits = {"KiB", "MiB", "GiB", "TiB"};
  if (bytes < 1024) return fmt::format("{} bytes", bytes);
  double value = static_cast<double>(bytes) / 1024;
  std::size_t unit = 0;
  while (value >= 1024 && unit + 1 < kUnits.size()) {
    value /= 1024;
    ++unit;
  }
  return fmt::format("{:.1f} {}", value, kUnits[unit]);
}

std::string free_space_text(const std::string& directory) {
  struct statvfs info {};
  if (::statvfs(directory.c_str(), &info) != 0) return "";
  const auto free = static_cast<int64_t>(info.f_bavail) * static_cast<int64_t>(info.f_frsize);
  std::error_code error;
  auto mount = std::filesystem::canonical(directory, error);
  struct stat here {};
  struct stat above {};
  while (!error && mount.has_relative_path() && ::stat(mount.c_str(), &here) == 0 &&
         ::stat(mount.parent_path().c_str(), &above) == 0 && here.st_dev == above.st_dev) {
    mount = mount.parent_path();
  }
  return fmt::format("{} free on {}", bytes_text(free), error ? directory : mount.string());
}

std::string random_hex(int digits) {
  std::random_device device;
  std::string text;
  while (std::ssize(text) < digits) text += fmt::format("{:08x}", device());
  text.resize(static_cast<std::size_t>(digits));
  return text;
}

std::string temporary_name(const std::string& path) {
  const char* job = std::getenv("SLURM_JOB_ID");
  const std::string owner = job != nullptr ? job : std::to_string(::getpid());
  return fmt::format("{}.tmp.{}.{}", path, owner, random_hex(6));
}

std::string host_name() {
  std::array<char, 256> name{};
  if (::gethostname(name.data(), name.size() - 1) != 0) return "unknown";
  return name.data();
}

ScopedIgnoreSignal::ScopedIgnoreSignal(int signal)
    : signal_(signal), previous_(std::signal(signal, SIG_IGN)) {}

ScopedIgnoreSignal::~ScopedIgnoreSignal() {
  if (previous_ != SIG_ERR) std::signal(signal_, previous_);
}

}  // namespace airmoe::scheduler
