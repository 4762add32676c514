#include "scheduler/store/src/describe_file.hpp"

#include <algorithm>
#include <array>
#include <cstring>

#include <fcntl.h>

#include "comm/base/error.hpp"
#include "scheduler/store/checkpoint.hpp"
#include "scheduler/store/src/hdf5_file.hpp"
#include "scheduler/store/src/helper_process.hpp"
#include "scheduler/store/src/posix_file.hpp"
#include "scheduler/store/study_file.hpp"
#include "scheduler/store/trace.hpp"

namespace airmoe::scheduler {

namespace {

constexpr int64_t kSuperblockBytes = 48;
constexpr std::array<unsigned char, 8> kSignature = {0x89, 'H', 'D', 'F', '\r', '\n', 0x1a, '\n'};

bool is_integrity(const std::string& path) {
  return path == kIntegrityGroup || path.starts_with(std::string(kIntegrityGroup) + "/");
}

// Sorts the attributes that have their own place in StoredFile out of the list.
void take_root_attribute(StoredFile& file, Attribute&& a) {
  const auto* integer = std::get_if<int64_t>(&a.value);
  const auto* text = std::get_if<std::string>(&a.value);
  if (a.name == "format" && text != nullptr) {
    file.format = *text;
  } else if (a.name == "format_version" && integer != nullptr) {
    file.version = *integer;
  } else if (a.name == "sealed" && integer != nullptr) {
    file.sealed = *integer == 1;
  } else if (a.name == "root_digest" && text != nullptr) {
    file.root_digest = *text;
  } else {
    file.attributes.push_back(std::move(a));
  }
}

int64_t known_version(const std::string& format) {
  if (format == kCheckpointFormat) return kCheckpointVersion;
  if (format == kTraceFormat) return kTraceVersion;
  if (format == kStudyFormat) return kStudyVersion;
  return 0;
}

void check_format(const StoredFile& file) {
  if (file.format.empty()) {
    fail(ExitCode::bad_data, "{}: HDF5, but not a file of airmoe (it has no attribute `format`)",
         file.path);
  }
  const int64_t known = known_version(file.format);
  if (known == 0) {
    fail(ExitCode::bad_data, "{}: its format is `{}`; airmoe reads {}, {} and {}", file.path,
         file.format, kCheckpointFormat, kTraceFormat, kStudyFormat);
  }
  if (file.version > known) {
    const AttributeValue* writer = file.attribute("/", "writer");
    const auto* name = writer == nullptr ? nullptr : std::get_if<std::string>(writer);
    fail(ExitCode::config, "{}: format_version {}, this program reads 1-{}. Written by {}.",
         file.path, file.version, known, name == nullptr ? "an unknown program" : *name);
  }
  if (file.version < 1) {
    fail(ExitCode::bad_data, "{}: format_version {} does not exist", file.path, file.version);
  }
}

void read_checksums(const Hdf5File& file, const StoredFile& stored, DatasetInfo& dataset) {
  const std::string table = kIntegrityGroup + dataset.path;
  if (!file.exists(table)) {
    fail(ExitCode::bad_data, "{}: no checksums for {} (no dataset {})", stored.path, dataset.path,
         table);
  }
  for (const auto& a : file.attributes(table)) {
    const auto* rows = std::get_if<int64_t>(&a.value);
    if (a.name == "block_rows" && rows != nullptr) dataset.block_rows = *rows;
  }
  if (dataset.block_rows != block_rows_of(dataset.dtype, dataset.shape) ||
      file.dataset(table).rows() != dataset.num_blocks()) {
    fail(ExitCode::bad_data, "{}: {} does not fit {} {}", stored.path, table, dataset.path,
         shape_text(dataset.shape));
  }
  if (dataset.num_blocks() > 0) dataset.checksums = file.read_u32(table);
}

void check_placement(const StoredFile& file, const DatasetInfo& d) {
  // In double first: the product over a corrupt shape may overflow.
  double elements = 1;
  for (const int64_t n : d.shape) elements *= static_cast<double>(std::max<int64_t>(n, 1));
  if (elements > 1e17 || d.bytes() > file.bytes || d.offset < 0 ||
      d.offset > file.bytes - d.bytes() || (d.bytes() > 0 && d.offset == 0)) {
    fail(ExitCode::bad_data, "{}: {} {} does not fit the file's {} bytes", file.path, d.path,
         shape_text(d.shape), file.bytes);
  }
}

}  // namespace

void check_superblock(const std::string& path) {
  const PosixFile file(path, O_RDONLY);
  const int64_t size = file.size();
  std::array<unsigned char, kSuperblockBytes> block{};
  file.read_at(block.data(), std::min(size, kSuperblockBytes), 0);
  if (size == 0) fail(ExitCode::bad_data, "{}: empty file", path);
  const auto compared = static_cast<std::size_t>(std::min<int64_t>(size, 8));
  if (std::memcmp(block.data(), kSignature.data(), compared) != 0) {
    fail(ExitCode::bad_data, "{}: not an HDF5 file", path);
  }
  if (size < kSuperblockBytes) {
    fail(ExitCode::bad_data, "{}: {} bytes, less than the header of any HDF5 file: cut short", path,
         size);
  }
  if (block[8] != 2 && block[8] != 3) {
    fail(ExitCode::bad_data, "{}: HDF5, but not a file of airmoe (superblock version {})", path,
         block[8]);
  }
  int64_t end = 0;
  std::memcpy(&end, block.data() + 28, sizeof(end));
  if (size < end) {
    fail(ExitCode::bad_data, "{}: {} bytes, its header says {}: cut short (copy or disk full?)",
         path, size, end);
  }
  if (size > end) {
    fail(ExitCode::bad_data, "{}: {} bytes, its header says {}: something was added", path, size,
         end);
  }
}

StoredFile describe_file(const std::string& path) {
  StoredFile stored;
  stored.path = path;
  stored.bytes = PosixFile(path, O_RDONLY).size();
  const Hdf5File file(path, Hdf5File::Mode::read);
  for (auto& a : file.attributes("/")) take_root_attribute(stored, std::move(a));
  check_format(stored);
  const auto objects = file.objects();
  for (const auto& group : objects.groups) {
    if (is_integrity(group)) continue;
    for (auto& a : file.attributes(group)) stored.attributes.push_back(std::move(a));
  }
  std::sort(stored.attributes.begin(), stored.attributes.end(), [](const auto& a, const auto& b) {
    return std::tie(a.object, a.name) < std::tie(b.object, b.name);
  });
  for (const auto& dataset : objects.datasets) {
    if (is_integrity(dataset)) continue;
    stored.datasets.push_back(file.dataset(dataset));
    check_placement(stored, stored.datasets.back());
    read_checksums(file, stored, stored.datasets.back());
  }
  return stored;
}

void check_description(const StoredFile& file) {
  check_format(file);
  if (!file.sealed) {
    fail(ExitCode::bad_data, "{}: was never sealed (its writer died between data and seal)",
         file.path);
  }
  const std::string digest = root_digest_of(file);
  if (digest != file.root_digest) {
    fail(ExitCode::bad_data,
         "{}: root digest {} stored, {} computed: attributes or checksum tables were changed",
         file.path, file.root_digest, digest);
  }
}

StoredFile read_stored_file(const std::string& path, const ReadLimits& limits) {
  check_superblock(path);
  StoredFile file = deserialize(
      run_in_helper(path, limits.seconds, [&] { return serialize(describe_file(path)); }));
  check_description(file);
  return file;
}

}  // namespace airmoe::scheduler
