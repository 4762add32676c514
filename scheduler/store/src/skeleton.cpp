#include "scheduler/store/src/skeleton.hpp"

#include <algorithm>
#include <cerrno>
#include <cstring>

#include <fcntl.h>
#include <unistd.h>

#include "comm/base/error.hpp"
#include "scheduler/store/src/describe_file.hpp"
#include "scheduler/store/src/hdf5_file.hpp"
#include "scheduler/store/src/posix_file.hpp"

namespace airmoe::scheduler {

namespace {

const std::string kUnsealedDigest = "----------------";  // as long as a digest

DatasetInfo info_of(const StoredArray& array) {
  DatasetInfo info;
  info.path = array.path;
  info.dtype = array.dtype;
  info.shape = array.shape;
  info.block_rows = block_rows_of(array.dtype, array.shape);
  return info;
}

std::string table_of(const StoredArray& array) {
  return kIntegrityGroup + array.path;
}

[[noreturn]] void fail_reserve(const std::string& path, int64_t bytes, const std::string& reason) {
  const std::string directory = directory_of(path);
  fail(ExitCode::io, "cannot reserve {} in {} ({}): {}. Nothing was written, older files are kept.",
       bytes_text(bytes), directory, free_space_text(directory), reason);
}

// Asks for the space before HDF5 touches the file: HDF5 recovers badly from a full disk. Direct
// call, because posix_fallocate writes into every block where the file system cannot reserve.
void try_reserve(PosixFile& file, int64_t bytes) {
  int status = 0;
  do {
    status = ::fallocate(file.descriptor(), 0, 0, bytes);
  } while (status != 0 && errno == EINTR);
  if (status != 0 && errno != EOPNOTSUPP && errno != ENOSYS) {
    fail_reserve(file.path(), bytes, std::strerror(errno));
  }
}

void reserve(const std::string& path) {
  PosixFile file(path, O_RDWR);
  const int64_t bytes = file.size();
  int error = 0;
  do {
    error = ::posix_fallocate(file.descriptor(), 0, bytes);
  } while (error == EINTR);
  if (error != 0) fail_reserve(path, bytes, std::strerror(error));
  file.sync();
}

// Data, tables and some for groups and alignment; the true size is known when HDF5 has made the
// file.
int64_t estimated_bytes(std::span<const StoredArray> arrays) {
  int64_t bytes = int64_t{64} << 10;
  for (const auto& array : arrays) {
    const DatasetInfo info = info_of(array);
    bytes += info.bytes() + info.num_blocks() * static_cast<int64_t>(sizeof(uint32_t)) + (8 << 10);
  }
  return bytes;
}

void set_header(Hdf5File& file, const FileHeader& header, bool fresh) {
  file.set_attribute({"/", "sealed", int64_t{0}});
  file.set_fixed_string("/", "root_digest", kUnsealedDigest);
  if (fresh) {
    file.set_attribute({"/", "format", header.format});
    file.set_attribute({"/", "format_version", header.version});
  }
  for (const auto& a : header.attributes) {
    if (fresh || a.object != "/") file.set_attribute(a);
  }
}

std::vector<int64_t> add_datasets(Hdf5File& file, std::span<const StoredArray> arrays) {
  std::vector<int64_t> offsets;
  for (const auto& array : arrays) {
    const DatasetInfo info = info_of(array);
    const std::string table = table_of(array);
    if (file.exists(array.path)) file.remove(array.path);
    if (file.exists(table)) file.remove(table);
    offsets.push_back(file.create_dataset(array.path, array.dtype, array.shape));
    file.create_dataset(table, DType::u32, {info.num_blocks()});
    file.set_attribute({table, "block_rows", info.block_rows});
  }
  return offsets;
}

}  // namespace

std::vector<int64_t> make_skeleton(const std::string& temporary, const std::string& original,
                                   const FileHeader& header, std::span<const StoredArray> arrays) {
  int64_t expected = estimated_bytes(arrays);
  const bool fresh = original.empty();
  if (!fresh) expected += PosixFile(original, O_RDONLY).size();
  {
    PosixFile trial(temporary, O_RDWR | O_CREAT | O_EXCL);
    try_reserve(trial, expected);
  }
  if (!fresh) {
    ::unlink(temporary.c_str());
    copy_file(original, temporary);
  }
  std::vector<int64_t> offsets;
  try {
    Hdf5File file(temporary, fresh ? Hdf5File::Mode::create : Hdf5File::Mode::write);
    set_header(file, header, fresh);
    offsets = add_datasets(file, arrays);
    file.close();
  } catch (const Error& e) {
    fail_reserve(temporary, expected, e.what());
  }
  reserve(temporary);
  return offsets;
}

std::string seal_file(const std::string& temporary, std::span<const StoredArray> arrays,
                      const std::vector<std::vector<uint32_t>>& tables) {
  {
    Hdf5File file(temporary, Hdf5File::Mode::write);
    for (std::size_t i = 0; i < arrays.size(); ++i) {
      if (!tables[i].empty()) file.write_u32(table_of(arrays[i]), tables[i]);
    }
    file.close();
  }
  // Described from the file, as every reader will.
  const std::string digest = root_digest_of(describe_file(temporary));
  {
    Hdf5File file(temporary, Hdf5File::Mode::write);
    file.set_fixed_string("/", "root_digest", digest);
    file.set_attribute({"/", "sealed", int64_t{1}});
    file.close();
  }
  PosixFile(temporary, O_RDWR).sync();
  return digest;
}

}  // namespace airmoe::scheduler
