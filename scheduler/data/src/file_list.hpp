#pragma once
// Which files --data means.

#include <cstdint>
#include <string>
#include <vector>

namespace airmoe::scheduler {

/// Files read at a time, whatever the number of cores: on a cold disk each one waits for
/// milliseconds.
inline constexpr int64_t kReaders = 16;

struct DataFile {
  std::string path;
  int64_t bytes = 0;
};

struct FileList {
  std::vector<DataFile> files;  ///< in reading order
  bool tokens = false;          ///< all end in .bin; otherwise none does
  int64_t left_out = 0;         ///< text files of folders beyond max_folder_bytes
};

/// Walks the paths by the rules of scheduler/data/corpus.hpp. Throws Error(ExitCode::bad_data) for
/// a missing, unreadable or empty path, or a mix of text and .bin.
FileList list_files(const std::vector<std::string>& paths, int64_t max_folder_bytes);

}  // namespace airmoe::scheduler
