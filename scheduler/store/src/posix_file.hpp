#pragma once
// System calls on files with their errors turned into airmoe::Error (ExitCode::io). All local.

#include <cstdint>
#include <string>

namespace airmoe::scheduler {

/// An open file; closed by the destructor.
class PosixFile {
 public:
  /// `flags` as for open(2); O_CLOEXEC is added. Throws naming the path.
  PosixFile(const std::string& path, int flags, int mode = 0644);
  PosixFile(PosixFile&& other) noexcept;
  PosixFile& operator=(PosixFile&&) = delete;
  ~PosixFile();

  int descriptor() const { return descriptor_; }
  const std::string& path() const { return path_; }
  int64_t size() const;

  /// All `size` bytes at `offset`, in pieces of at most 64 MiB, over interruptions and short
  /// counts.
  void write_at(const void* data, int64_t size, int64_t offset);
  /// The same for reading; throws ExitCode::bad_data when the file ends before.
  void read_at(void* data, int64_t size, int64_t offset) const;
  void sync_data();
  void sync();
  /// Asks the system to forget cached pages, so that the next read comes from the device.
  void drop_cache() const;

 private:
  std::string path_;
  int descriptor_;
};

/// Folder of a path ("." when there is none), and the rest.
std::string directory_of(const std::string& path);
std::string file_name_of(const std::string& path);

void sync_directory(const std::string& directory);
void rename_file(const std::string& from, const std::string& to);
/// Whole content to a temporary file, synced, renamed to `path`, folder synced.
void replace_file(const std::string& path, const std::string& content);
/// Content of a small file; "" when it does not exist.
std::string read_small_file(const std::string& path);
/// Copies `from` to the new file `to`, inside the kernel where it can.
void copy_file(const std::string& from, const std::string& to);

/// "3.1 GiB free on /scratch"; "" when the system does not say.
std::string free_space_text(const std::string& directory);
/// "24.2 GiB"
std::string bytes_text(int64_t bytes);
/// "<path>.tmp.<job or process id>.<nonce>"
std::string temporary_name(const std::string& path);
/// Random lower-case hex digits.
std::string random_hex(int digits);
std::string host_name();

/// Ignores a signal while it lives; SIGXFSZ would kill a process that meets its file size limit.
class ScopedIgnoreSignal {
 public:
  explicit ScopedIgnoreSignal(int signal);
  ~ScopedIgnoreSignal();
  ScopedIgnoreSignal(const ScopedIgnoreSignal&) = delete;
  ScopedIgnoreSignal& operator=(const ScopedIgnoreSignal&) = delete;

 private:
  int signal_;
  void (*previous_)(int);
};

}  // namespace airmoe::scheduler
