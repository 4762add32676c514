#pragma once
// A file mapped read-only: ranks of a node share its pages.

#include <cstdint>
#include <string>

namespace airmoe::scheduler {

class MappedFile {
 public:
  /// Throws Error(ExitCode::bad_data) naming the file and the system's reason.
  explicit MappedFile(const std::string& path);
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;
  ~MappedFile();

  const uint8_t* data() const { return data_; }
  int64_t size() const { return size_; }

 private:
  const uint8_t* data_ = nullptr;
  int64_t size_ = 0;
};

}  // namespace airmoe::scheduler
