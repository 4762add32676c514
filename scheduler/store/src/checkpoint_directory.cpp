#include "scheduler/store/src/checkpoint_directory.hpp"

#include <algorithm>
#include <filesystem>

#include "comm/base/error.hpp"
#include "scheduler/store/src/posix_file.hpp"

namespace airmoe::scheduler {

namespace {

namespace fs = std::filesystem;

constexpr std::string_view kPrefix = "step-";
constexpr std::string_view kSuffix = ".h5";
constexpr std::size_t kDigits = 9;

// -1 when the name is another.
int64_t step_of(std::string_view name) {
  if (!name.starts_with(kPrefix) || !name.ends_with(kSuffix)) return -1;
  name.remove_prefix(kPrefix.size());
  name.remove_suffix(kSuffix.size());
  if (name.size() < kDigits || name.size() > 18) return -1;
  int64_t step = 0;
  for (const char c : name) {
    if (c < '0' || c > '9') return -1;
    step = 10 * step + (c - '0');
  }
  return step;
}

std::string latest_path(const std::string& directory) {
  return directory + "/latest";
}

// Step that `latest` names, -1 without a good one.
int64_t latest_step(const std::string& directory) {
  std::string line;
  try {
    line = read_small_file(latest_path(directory));
  } catch (const Error&) {
    return -1;  // a hint only
  }
  const std::string name = line.substr(0, line.find(' '));
  return fs::exists(fs::path(directory) / name) ? step_of(name) : -1;
}

bool same_file(const std::string& a, const std::string& b) {
  std::error_code error;
  return a == b || fs::equivalent(a, b, error);
}

}  // namespace

std::string checkpoint_path(const std::string& directory, int64_t step) {
  return fmt::format("{}/{}{:09}{}", directory, kPrefix, step, kSuffix);
}

std::vector<CheckpointFile> list_checkpoints(const std::string& directory) {
  std::vector<CheckpointFile> files;
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(directory, error)) {
    const int64_t step = step_of(entry.path().filename().string());
    if (step >= 0) files.push_back({directory + "/" + entry.path().filename().string(), step});
  }
  if (error && error != std::errc::no_such_file_or_directory) {
    fail(ExitCode::io, "{}: cannot list the directory: {}", directory, error.message());
  }
  std::sort(files.begin(), files.end(),
            [](const auto& a, const auto& b) { return a.step > b.step; });
  return files;
}

std::vector<CheckpointFile> resume_order(const std::string& directory) {
  auto files = list_checkpoints(directory);
  const int64_t latest = latest_step(directory);
  if (latest < 0) return files;
  std::error_code error;
  const auto written = fs::last_write_time(latest_path(directory), error);
  std::stable_partition(files.begin(), files.end(), [&](const CheckpointFile& f) {
    return f.step <= latest || fs::last_write_time(f.path, error) >= written;
  });
  return files;
}

void write_latest(const std::string& path, int64_t bytes, const std::string& root_digest) {
  replace_file(latest_path(directory_of(path)),
               fmt::format("{} {} {}\n", file_name_of(path), bytes, root_digest));
}

std::vector<std::string> rotate(const std::string& directory, int64_t step, int64_t keep,
                                const std::vector<std::string>& keep_files) {
  std::vector<std::string> removed;
  int64_t seen = 0;
  for (const auto& file : list_checkpoints(directory)) {
    if (file.step > step || ++seen <= keep) continue;
    const bool wanted = std::any_of(keep_files.begin(), keep_files.end(),
                                    [&](const auto& k) { return same_file(k, file.path); });
    std::error_code error;
    if (!wanted && fs::remove(file.path, error)) removed.push_back(file.path);
  }
  return removed;
}

std::vector<OrphanedFile> remove_orphans(const std::string& directory) {
  std::vector<OrphanedFile> removed;
  std::error_code error;
  std::vector<fs::path> paths;
  for (const auto& entry : fs::directory_iterator(directory, error)) paths.push_back(entry.path());
  for (const auto& path : paths) {
    const std::string name = path.filename().string();
    const auto mark = name.find(".tmp.");
    if (mark == std::string::npos) continue;
    const std::string target = name.substr(0, mark);
    if (step_of(target) < 0 && target != "latest") continue;
    const std::string rest = name.substr(mark + 5);
    OrphanedFile orphan{name, rest.substr(0, rest.find('.')), 0};
    orphan.bytes = static_cast<int64_t>(fs::file_size(path, error));
    if (fs::remove(path, error)) removed.push_back(orphan);
  }
  return removed;
}

}  // namespace airmoe::scheduler
