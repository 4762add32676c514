#include "scheduler/data/src/mapped_file.hpp"

#include <cerrno>
#include <cstring>

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "comm/base/error.hpp"

namespace airmoe::scheduler {
namespace {

[[noreturn]] void fail_to_read(const std::string& path) {
  fail(ExitCode::bad_data, "--data {}: cannot be read: {}", path, std::strerror(errno));
}

}  // namespace

MappedFile::MappedFile(const std::string& path) {
  const int file = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (file < 0) fail_to_read(path);
  struct stat status = {};
  void* mapped = nullptr;
  bool good = ::fstat(file, &status) == 0;
  if (good && status.st_size > 0) {
    mapped =
        ::mmap(nullptr, static_cast<std::size_t>(status.st_size), PROT_READ, MAP_SHARED, file, 0);
    good = mapped != MAP_FAILED;
  }
  const int reason = errno;
  ::close(file);
  if (!good) {
    errno = reason;
    fail_to_read(path);
  }
  data_ = static_cast<const uint8_t*>(mapped);
  size_ = status.st_size;
}

MappedFile::~MappedFile() {
  if (size_ > 0) {
    ::munmap(const_cast<uint8_t*>(data_), static_cast<std::size_t>(size_));
  }
}

}  // namespace airmoe::scheduler
