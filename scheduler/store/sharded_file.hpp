#pragma once
// Writes one file from all ranks without parallel HDF5: rank 0 makes the file and reserves its
// space, every rank writes its own rows at the datasets' offsets with checksums on the way, rank 0
// seals it under its final name. After a failure on any rank the old file of that name is as it
// was.

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "comm/communicator.hpp"
#include "scheduler/store/stored_file.hpp"

namespace airmoe::scheduler {

/// The rows of a global array that this rank writes. Rows of all ranks together cover the array
/// exactly once; ranks may hold them in any order, and any rank may hold none.
struct StoredArray {
  std::string path;  ///< absolute, for example /layers/02/moe/up; groups are made as needed
  DType dtype = DType::f32;
  std::vector<int64_t> shape;  ///< global, at least one dimension
  int64_t row_begin = 0;       ///< first row of dimension 0 held here
  int64_t row_count = 0;
  const void* data = nullptr;  ///< row-major. Shape: [row_count, shape[1], ...]
};

struct FileHeader {
  std::string format;   ///< root attribute `format`
  int64_t version = 1;  ///< root attribute `format_version`
  std::vector<Attribute> attributes;
};

struct WriteOptions {
  bool read_back = true;  ///< verify through a fresh open before the file gets its name
  /// Keep the datasets and attributes of the existing file of that name (its root attributes win);
  /// datasets written again replace the old ones. The old file stays whole until the new one is.
  bool extend = false;
};

struct WriteResult {
  std::string path;
  int64_t bytes = 0;
  std::string root_digest;
  double seconds = 0;
};

/// Collective: same path, header and arrays (but rows and data) on every rank. Blocking; no memory
/// beyond checksums. Every rank throws the same Error: ExitCode::io for a full disk or another
/// failed call, ExitCode::failure when rows are missing or written twice. The temporary file
/// <path>.tmp.<job or process id>.<nonce> is removed by then.
WriteResult write_sharded_file(comm::Communicator& comm, const std::string& path,
                               const FileHeader& header, std::span<const StoredArray> arrays,
                               const WriteOptions& options = {});

}  // namespace airmoe::scheduler
