#include "scheduler/data/src/file_list.hpp"

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <set>
#include <tuple>
#include <utility>

#include <sys/stat.h>

#include "comm/base/error.hpp"

namespace airmoe::scheduler {
namespace {

namespace fs = std::filesystem;

struct Found {
  std::string path;
  std::string below;  ///< path below the folder it was found in; empty for a file named itself
  int64_t bytes = 0;
};

/// Device and inode of what was already taken.
using Seen = std::set<std::pair<dev_t, ino_t>>;

bool is_tokens(const std::string& path) {
  return path.ends_with(".bin");
}

/// Git's rule: a zero byte near the start means that a file is not text.
bool looks_binary(const std::string& path) {
  std::array<char, 8192> head;
  std::ifstream in(path, std::ios::binary);
  if (!in) fail(ExitCode::bad_data, "--data {}: cannot be read: {}", path, std::strerror(errno));
  in.read(head.data(), head.size());
  return std::find(head.data(), head.data() + in.gcount(), '\0') != head.data() + in.gcount();
}

/// The non-empty regular files below `folder`, each inode once, sorted by path.
std::vector<Found> walk(const std::string& folder, Seen& seen) {
  std::vector<Found> candidates;
  try {
    for (const auto& entry : fs::recursive_directory_iterator(folder)) {
      const std::string path = entry.path().string();
      candidates.push_back({path, entry.path().lexically_relative(folder).string(), 0});
    }
  } catch (const fs::filesystem_error& error) {
    fail(ExitCode::bad_data, "--data {}: cannot be walked: {}: {}", folder, error.path1().string(),
         error.code().message());
  }
  std::sort(candidates.begin(), candidates.end(),
            [](const Found& a, const Found& b) { return a.below < b.below; });
  std::vector<Found> files;
  for (Found& file : candidates) {
    struct stat status = {};
    if (::stat(file.path.c_str(), &status) != 0) continue;  // a link to nowhere
    if (!S_ISREG(status.st_mode) || status.st_size == 0) continue;
    if (!seen.insert({status.st_dev, status.st_ino}).second) continue;
    file.bytes = status.st_size;
    files.push_back(std::move(file));
  }
  return files;
}

/// Adds what `path` means to `found`.
void find(const std::string& path, Seen& seen, std::vector<Found>& found) {
  struct stat status = {};
  if (::stat(path.c_str(), &status) != 0) {
    fail(ExitCode::bad_data, "--data {}: {}: name an existing file or folder", path,
         std::strerror(errno));
  }
  if (S_ISDIR(status.st_mode)) {
    std::vector<Found> files = walk(path, seen);
    if (files.empty()) {
      fail(ExitCode::bad_data,
           "--data {}: no file in this folder that was not named before: name another", path);
    }
    std::move(files.begin(), files.end(), std::back_inserter(found));
    return;
  }
  if (!S_ISREG(status.st_mode)) {
    fail(ExitCode::bad_data, "--data {}: neither a regular file nor a folder", path);
  }
  if (status.st_size == 0) fail(ExitCode::bad_data, "--data {}: the file is empty", path);
  if (seen.insert({status.st_dev, status.st_ino}).second) {
    found.push_back({path, "", status.st_size});
  }
}

void refuse_mixture(const std::vector<Found>& found) {
  const auto by_kind = [](const Found& file) { return is_tokens(file.path); };
  const auto tokens = std::find_if(found.begin(), found.end(), by_kind);
  const auto text = std::find_if_not(found.begin(), found.end(), by_kind);
  if (tokens != found.end() && text != found.end()) {
    fail(ExitCode::bad_data,
         "--data mixes token files ({}) and text ({}): name the files of one kind", tokens->path,
         text->path);
  }
}

/// FNV-1a, then the finaliser of SplitMix64: FNV alone keeps similar names in similar places.
uint64_t hash(const std::string& text) {
  uint64_t h = 14695981039346656037ull;
  for (const char c : text) h = (h ^ static_cast<unsigned char>(c)) * 1099511628211ull;
  h = (h ^ (h >> 30)) * 0xbf58476d1ce4e5b9ull;
  h = (h ^ (h >> 27)) * 0x94d049bb133111ebull;
  return h ^ (h >> 31);
}

/// Drops what is not text in folders, and whole files until the rest fits into `cap`, in the order
/// of a hash of their path. Returns how many the cap dropped.
int64_t select_text(std::vector<Found>& found, int64_t cap) {
  std::vector<std::tuple<uint64_t, std::string, std::size_t>> order;
  for (std::size_t i = 0; i < found.size(); ++i) {
    if (!found[i].below.empty()) order.emplace_back(hash(found[i].below), found[i].below, i);
  }
  std::sort(order.begin(), order.end());
  int64_t taken = 0, dropped = 0;
  for (const auto& entry : order) {
    Found& file = found[std::get<2>(entry)];
    const bool fits = taken + file.bytes <= cap;
    if (fits && !looks_binary(file.path)) {
      taken += file.bytes;
    } else {
      file.bytes = 0;
      if (!fits) ++dropped;
    }
  }
  std::erase_if(found, [](const Found& file) { return file.bytes == 0; });
  return dropped;
}

}  // namespace

FileList list_files(const std::vector<std::string>& paths, int64_t max_folder_bytes) {
  std::vector<Found> found;
  Seen seen;
  for (const std::string& path : paths) find(path, seen, found);
  refuse_mixture(found);
  FileList list;
  list.tokens = is_tokens(found.front().path);
  if (!list.tokens) list.left_out = select_text(found, max_folder_bytes);
  if (found.empty() && list.left_out == 0) {
    fail(ExitCode::bad_data, "--data {}: no text file in this folder: name another", paths.front());
  }
  if (found.empty()) {
    fail(ExitCode::bad_data,
         "--data {}: every file is larger than the cap of {} bytes on folders: raise "
         "--data-max-bytes or name files",
         paths.front(), max_folder_bytes);
  }
  for (const Found& file : found) list.files.push_back({file.path, file.bytes});
  return list;
}

}  // namespace airmoe::scheduler
