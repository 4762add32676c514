#pragma once
// Checkpoints: one sealed file per step, in global index space (expert id, never rank), written by
// any number of ranks and read by any other. docs/checkpoint-format.md describes the file.

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "comm/base/dtype.hpp"
#include "comm/communicator.hpp"
#include "scheduler/store/notify.hpp"
#include "scheduler/store/stored_file.hpp"

namespace airmoe::scheduler {

inline constexpr const char* kCheckpointFormat = "airmoe-checkpoint";
inline constexpr int64_t kCheckpointVersion = 1;

struct CheckpointMeta {
  int64_t step = 0;          ///< optimizer steps done
  int64_t tokens = 0;        ///< training tokens seen
  int64_t samples = 0;       ///< training sequences seen: the data cursor
  int64_t world_size = 0;    ///< ranks that wrote it; information only. Filled in by save
  std::string config_json;   ///< the full resolved configuration
  std::string model_digest;  ///< equal for equal parameter shapes and meanings
  std::string writer;        ///< program and version, for example "airmoe-train 0.1.0"
  std::string created_utc;   ///< ISO 8601. Filled in by save
  std::string uuid;          ///< of this file. Filled in by save
  std::string parent_uuid;   ///< of the checkpoint that the run resumed from or wrote before, or ""
};

/// One array of the training state. Replicated arrays are equal on all ranks: rank 0 writes them
/// and every rank reads them in full. Of the others each rank holds rows [row_begin, row_begin +
/// row_count) of dimension 0, all ranks together each row once.
struct StateArray {
  std::string path;  ///< for example /layers/02/moe/up
  DType dtype = DType::f32;
  std::vector<int64_t> shape;  ///< global
  bool replicated = false;
  int64_t row_begin = 0;  ///< ignored when replicated
  int64_t row_count = 0;  ///< ignored when replicated
  void* data = nullptr;   ///< host. Shape: [row_count, shape[1], ...]
  std::vector<std::string>
      options;  ///< option behind each dimension, for messages ("experts"), or empty
};

struct SaveOptions {
  int64_t keep = 3;          ///< newest checkpoints to keep, at least 1
  std::string never_remove;  ///< file that the run resumed from, or ""
  bool read_back = true;     ///< verify before the file gets its name and before any is rotated out
  Notify notify = notify_stderr;
};

struct SavedCheckpoint {
  std::string path;  ///< <dir>/step-000012000.h5
  std::string uuid;
  int64_t bytes = 0;
  double seconds = 0;
  std::vector<std::string> removed;  ///< rotated out
};

/// Writes <dir>/step-%09d.h5, then <dir>/latest, then rotates. Collective, blocking. `dir` is made
/// when missing. Checks that float data is finite first (Error(ExitCode::not_finite) names array
/// and row). On any failure every rank throws the same Error, and the older checkpoints, `latest`
/// and the rotation are untouched.
SavedCheckpoint save_checkpoint(comm::Communicator& comm, const std::string& dir,
                                const CheckpointMeta& meta, std::span<const StateArray> arrays,
                                const SaveOptions& options = {});

/// A checkpoint that passed every check that needs no model. Equal on all ranks.
struct OpenedCheckpoint {
  StoredFile file;
  CheckpointMeta meta;
};

struct OpenOptions {
  ReadLimits limits;
  Notify notify = notify_stderr;
};

/// Finds and verifies a checkpoint; touches no state. Collective. `path` is a file, or a directory:
/// then the newest good one is taken and each bad one is told and passed over. Verification: size,
/// format and version, seal, root digest, layout, CRC32C of every block and finite floats, the
/// blocks split over the ranks. Every rank throws the same Error: ExitCode::bad_data for a missing,
/// foreign, truncated or corrupt file, or a directory whose checkpoints are all bad or that holds
/// none; ExitCode::config for a newer format.
OpenedCheckpoint open_checkpoint(comm::Communicator& comm, const std::string& path,
                                 const OpenOptions& options = {});

/// True when `dir` holds a file named like a checkpoint, good or not: a run that was told to resume
/// "if there is something" calls open_checkpoint then and never starts from scratch silently.
/// Collective.
bool has_checkpoint(comm::Communicator& comm, const std::string& dir);

struct RestoreOptions {
  bool allow_unused = false;  ///< accept datasets of the file that `arrays` does not name
};

/// Reads the state for this rank's rows; the rank count may differ from the writer's. Collective.
/// First compares every array with the file, on all ranks, before any memory is written:
/// Error(ExitCode::bad_data) for a missing dataset, Error(ExitCode::config) for another shape or
/// type or for unused datasets. Then reads whole blocks and checks them again;
/// Error(ExitCode::bad_data) then means that the file changed since open_checkpoint, and the state
/// is undefined.
void restore_checkpoint(comm::Communicator& comm, const OpenedCheckpoint& opened,
                        std::span<const StateArray> arrays, const RestoreOptions& options = {});

}  // namespace airmoe::scheduler
