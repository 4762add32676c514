#include "scheduler/data/src/file_list.hpp"

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <set>
#include <tuple>
#include <unordered_map>
#include <utility>

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "comm/base/error.hpp"
#include "comm/base/fnv.hpp"
#include "comm/base/in_parallel.hpp"

namespace airmoe::scheduler {
namespace {

namespace fs = std::filesystem;

/// Device and inode.
using Identity = std::pair<dev_t, ino_t>;
/// Of what was already taken.
using Seen = std::set<Identity>;

struct Found {
  std::string path;
  std::string below;  ///< path below the folder it was found in; empty for a file named itself
  int64_t bytes = 0;
  Identity identity = {};
};

bool is_tokens(const std::string& path) {
  return path.ends_with(".bin");
}

/// Git's rule: a zero byte near the start means that a file is not text. The rest of the file is
/// asked for, since it will be read if it is text.
bool looks_binary(const std::string& path) {
  std::array<char, 8192> head;
  const int file = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (file < 0)
    fail(ExitCode::bad_data, "--data {}: cannot be read: {}", path, std::strerror(errno));
  ::posix_fadvise(file, 0, 0, POSIX_FADV_WILLNEED);
  const ssize_t bytes = ::read(file, head.data(), head.size());
  const int reason = errno;
  ::close(file);
  if (bytes < 0) {
    fail(ExitCode::bad_data, "--data {}: cannot be read: {}", path, std::strerror(reason));
  }
  return std::find(head.data(), head.data() + bytes, '\0') != head.data() + bytes;
}

struct Folder {
  std::string path, below;
};

/// What is directly in a folder: links to folders are not followed.
struct Listing {
  std::vector<Folder> folders;
  std::vector<Found> files;  ///< regular, not empty
};

Listing list(const Folder& folder) {
  Listing listing;
  for (const auto& entry : fs::directory_iterator(folder.path)) {
    const std::string name = entry.path().filename().string();
    Found found = {entry.path().string(), folder.below.empty() ? name : folder.below + "/" + name};
    if (!entry.is_symlink() && entry.is_directory()) {
      listing.folders.push_back({std::move(found.path), std::move(found.below)});
      continue;
    }
    struct stat status = {};
    if (::stat(found.path.c_str(), &status) != 0) continue;  // a link to nowhere
    if (!S_ISREG(status.st_mode) || status.st_size == 0) continue;
    found.bytes = status.st_size;
    found.identity = {status.st_dev, status.st_ino};
    listing.files.push_back(std::move(found));
  }
  return listing;
}

/// The non-empty regular files below `folder`, each inode once, sorted by path.
std::vector<Found> walk(const std::string& folder, Seen& seen) {
  std::vector<Found> files;
  std::vector<Folder> level = {{folder, ""}};
  try {
    while (!level.empty()) {
      std::vector<Listing> listings(level.size());
      in_parallel(std::ssize(level), kReaders, [&](int64_t i) { listings[i] = list(level[i]); });
      level.clear();
      for (Listing& listing : listings) {
        std::move(listing.folders.begin(), listing.folders.end(), std::back_inserter(level));
        std::move(listing.files.begin(), listing.files.end(), std::back_inserter(files));
      }
    }
  } catch (const fs::filesystem_error& error) {
    fail(ExitCode::bad_data, "--data {}: cannot be walked: {}: {}", folder, error.path1().string(),
         error.code().message());
  }
  std::sort(files.begin(), files.end(),
            [](const Found& a, const Found& b) { return a.below < b.below; });
  std::erase_if(files, [&](const Found& file) { return !seen.insert(file.identity).second; });
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
  const Identity identity = {status.st_dev, status.st_ino};
  if (seen.insert(identity).second) found.push_back({path, "", status.st_size, identity});
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
  uint64_t h = fnv1a(text);
  h = (h ^ (h >> 30)) * 0xbf58476d1ce4e5b9ull;
  h = (h ^ (h >> 27)) * 0x94d049bb133111ebull;
  return h ^ (h >> 31);
}

/// Whether files are text. Those that will be asked about are looked at beforehand, in parallel.
class TextCheck {
 public:
  /// `order`: the files in the order in which they are taken until `cap` bytes are full.
  TextCheck(const std::vector<Found*>& order, int64_t cap) {
    std::vector<const Found*> likely;
    for (int64_t taken = 0; const Found* file : order) {
      if (taken + file->bytes > cap) continue;
      taken += file->bytes;
      likely.push_back(file);
    }
    std::vector<char> binary(likely.size());
    in_parallel(std::ssize(likely), kReaders,
                [&](int64_t i) { binary[i] = looks_binary(likely[i]->path) ? 1 : 0; });
    for (std::size_t i = 0; i < likely.size(); ++i) is_binary_[likely[i]] = binary[i] != 0;
  }
  bool is_text(const Found* file) const {
    const auto known = is_binary_.find(file);
    return !(known != is_binary_.end() ? known->second : looks_binary(file->path));
  }

 private:
  std::unordered_map<const Found*, bool> is_binary_;
};

/// Drops what is not text in folders, and whole files until the rest fits into `cap`, in the order
/// of a hash of their path. Returns how many the cap dropped.
int64_t select_text(std::vector<Found>& found, int64_t cap) {
  std::vector<std::pair<uint64_t, Found*>> hashed;
  for (Found& file : found) {
    if (!file.below.empty()) hashed.emplace_back(hash(file.below), &file);
  }
  std::stable_sort(hashed.begin(), hashed.end(), [](const auto& a, const auto& b) {
    return std::tie(a.first, a.second->below) < std::tie(b.first, b.second->below);
  });
  std::vector<Found*> order;
  for (const auto& entry : hashed) order.push_back(entry.second);
  const TextCheck check(order, cap);
  int64_t taken = 0, dropped = 0;
  for (Found* file : order) {
    const bool fits = taken + file->bytes <= cap;
    if (fits && check.is_text(file)) {
      taken += file->bytes;
    } else {
      file->bytes = 0;
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
