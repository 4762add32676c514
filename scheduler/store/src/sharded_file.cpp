#include "scheduler/store/sharded_file.hpp"

#include <algorithm>
#include <chrono>
#include <csignal>
#include <optional>

#include <fcntl.h>
#include <unistd.h>

#include "comm/base/error.hpp"
#include "scheduler/store/agreement.hpp"
#include "scheduler/store/src/coverage.hpp"
#include "scheduler/store/src/crc32c.hpp"
#include "scheduler/store/src/posix_file.hpp"
#include "scheduler/store/src/skeleton.hpp"
#include "scheduler/store/src/verify_file.hpp"

namespace airmoe::scheduler {

namespace {

// Rows of one array that lie in one checksum block and on one rank. A plain list of int64, so that
// fragments travel as they are.
struct Fragment {
  int64_t array;
  int64_t row_begin;
  int64_t row_count;
  int64_t checksum;
};
constexpr int64_t kFragmentWords = sizeof(Fragment) / sizeof(int64_t);

int64_t row_bytes_of(const StoredArray& array) {
  int64_t bytes = size_of(array.dtype);
  for (std::size_t i = 1; i < array.shape.size(); ++i) bytes *= array.shape[i];
  return bytes;
}

std::vector<Fragment> local_fragments(std::span<const StoredArray> arrays) {
  std::vector<Fragment> fragments;
  for (std::size_t i = 0; i < arrays.size(); ++i) {
    const StoredArray& array = arrays[i];
    const int64_t block_rows = block_rows_of(array.dtype, array.shape);
    const int64_t end = array.row_begin + array.row_count;
    for (int64_t row = array.row_begin; row < end;) {
      const int64_t next = std::min(end, (row / block_rows + 1) * block_rows);
      fragments.push_back({static_cast<int64_t>(i), row, next - row, 0});
      row = next;
    }
  }
  return fragments;
}

// Collective: writes this rank's rows and fills in the checksums.
void write_fragments(comm::Communicator& comm, const std::string& temporary,
                     std::span<const StoredArray> arrays, const std::vector<int64_t>& offsets,
                     std::vector<Fragment>& fragments) {
  std::vector<int64_t> bytes;
  for (const auto& f : fragments) {
    bytes.push_back(f.row_count * row_bytes_of(arrays[static_cast<std::size_t>(f.array)]));
  }
  std::optional<PosixFile> file;
  together(comm, [&] { file.emplace(temporary, O_WRONLY); });
  const auto write = [&](std::size_t i) {
    Fragment& f = fragments[i];
    const auto a = static_cast<std::size_t>(f.array);
    const int64_t row_bytes = row_bytes_of(arrays[a]);
    const char* data =
        static_cast<const char*>(arrays[a].data) + (f.row_begin - arrays[a].row_begin) * row_bytes;
    f.checksum = crc32c(0, data, bytes[i]);
    file->write_at(data, bytes[i], offsets[a] + f.row_begin * row_bytes);
  };
  in_rounds(comm, bytes, write, [&] { file->sync_data(); });
}

// Collective: all fragments on rank 0, in row order of each array.
std::vector<Fragment> gather_fragments(comm::Communicator& comm,
                                       const std::vector<Fragment>& local) {
  std::vector<int64_t> counts(static_cast<std::size_t>(comm.size()));
  const int64_t words = std::ssize(local) * kFragmentWords;
  comm.all_gather(std::span<const int64_t>(&words, 1), std::span(counts));
  int64_t total = 0;
  if (comm.rank() == 0) {
    for (const int64_t n : counts) total += n;
  }
  std::vector<Fragment> all(static_cast<std::size_t>(total / kFragmentWords));
  comm.gather_v(
      std::span(reinterpret_cast<const int64_t*>(local.data()), static_cast<std::size_t>(words)),
      std::span(reinterpret_cast<int64_t*>(all.data()), static_cast<std::size_t>(total)),
      std::span<const int64_t>(counts), 0);
  std::sort(all.begin(), all.end(), [](const Fragment& a, const Fragment& b) {
    return std::tie(a.array, a.row_begin) < std::tie(b.array, b.row_begin);
  });
  return all;
}

// Checksums of whole blocks; a block on the border of ranks is combined from its fragments.
std::vector<std::vector<uint32_t>> checksum_tables(std::span<const StoredArray> arrays,
                                                   const std::vector<Fragment>& fragments) {
  std::vector<std::vector<uint32_t>> tables(arrays.size());
  for (const auto& f : fragments) {
    const auto a = static_cast<std::size_t>(f.array);
    const bool begins_block = f.row_begin % block_rows_of(arrays[a].dtype, arrays[a].shape) == 0;
    const auto checksum = static_cast<uint32_t>(f.checksum);
    if (begins_block) {
      tables[a].push_back(checksum);
    } else {
      tables[a].back() =
          crc32c_combine(tables[a].back(), checksum, f.row_count * row_bytes_of(arrays[a]));
    }
  }
  return tables;
}

// Collective. What was written is compared through a fresh open, by ranks that did not write it.
void read_back(comm::Communicator& comm, const std::string& temporary, const std::string& path) {
  try {
    verify_file(comm, read_stored_file_together(comm, temporary, ReadLimits{}), true);
  } catch (const Error& e) {
    if (e.code() != ExitCode::bad_data) throw;
    fail(ExitCode::io, "read-back of {} failed, older files are kept: {}", path, e.what());
  }
}

// Removed at the end of the scope unless it got its final name.
struct TemporaryFile {
  std::string path;
  ~TemporaryFile() {
    if (!path.empty()) ::unlink(path.c_str());
  }
};

}  // namespace

WriteResult write_sharded_file(comm::Communicator& comm, const std::string& path,
                               const FileHeader& header, std::span<const StoredArray> arrays,
                               const WriteOptions& options) {
  const comm::ScopedPhase phase(comm, "file write");
  const ScopedIgnoreSignal ignore(SIGXFSZ);
  const auto start = std::chrono::steady_clock::now();
  check_coverage(comm, arrays);

  TemporaryFile temporary;
  std::vector<int64_t> offsets(arrays.size());
  on_root(comm, [&] {
    temporary.path = temporary_name(path);
    offsets = make_skeleton(temporary.path, options.extend ? path : "", header, arrays);
  });
  std::string name = temporary.path;
  broadcast_string(comm, name);
  comm.broadcast(std::span(offsets), 0);

  std::vector<Fragment> fragments = local_fragments(arrays);
  write_fragments(comm, name, arrays, offsets, fragments);
  fragments = gather_fragments(comm, fragments);

  WriteResult result;
  result.path = path;
  on_root(comm, [&] {
    result.root_digest = seal_file(name, arrays, checksum_tables(arrays, fragments));
    result.bytes = PosixFile(name, O_RDONLY).size();
  });
  if (options.read_back) read_back(comm, name, path);
  on_root(comm, [&] {
    rename_file(name, path);
    temporary.path.clear();
    sync_directory(directory_of(path));
  });
  broadcast_string(comm, result.root_digest);
  comm.broadcast(std::span<int64_t>(&result.bytes, 1), 0);
  result.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return result;
}

}  // namespace airmoe::scheduler
