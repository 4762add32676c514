#pragma once
// Names in a checkpoint directory: step-%09d.h5, latest, and what is left of dead writers. All
// local.

#include <cstdint>
#include <string>
#include <vector>

namespace airmoe::scheduler {

struct CheckpointFile {
  std::string path;
  int64_t step = 0;
};

std::string checkpoint_path(const std::string& directory, int64_t step);

/// Files named like checkpoints, by step, newest first. Empty when the directory does not exist.
std::vector<CheckpointFile> list_checkpoints(const std::string& directory);

/// The order in which to try them: newest step first. `latest` only tells of a run that went back
/// to an older step: files of higher steps that are older than `latest` belong to the branch it
/// left, and come last.
std::vector<CheckpointFile> resume_order(const std::string& directory);

/// One line: name, bytes, root digest.
void write_latest(const std::string& path, int64_t bytes, const std::string& root_digest);

/// Removes all but the `keep` newest checkpoints of steps up to `step`, never the files in
/// `keep_files`. Returns what it removed; files it could not remove are left.
std::vector<std::string> rotate(const std::string& directory, int64_t step, int64_t keep,
                                const std::vector<std::string>& keep_files);

struct OrphanedFile {
  std::string name;
  std::string owner;  ///< job or process id
  int64_t bytes = 0;
};

/// Removes temporary files that no one can be writing, because the caller holds the directory's
/// lock.
std::vector<OrphanedFile> remove_orphans(const std::string& directory);

}  // namespace airmoe::scheduler
