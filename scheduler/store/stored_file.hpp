#pragma once
// What a sealed airmoe file (checkpoint or trace) holds: attributes, datasets and their checksums.
// Every such file is plain HDF5 that h5py and h5dump read; docs/checkpoint-format.md describes it.

#include <cstdint>
#include <string>
#include <variant>
#include <vector>

#include "comm/base/dtype.hpp"

namespace airmoe::scheduler {

using AttributeValue = std::variant<int64_t, double, std::string>;

/// One attribute of the root or of a group; names are unique per object.
struct Attribute {
  std::string object;  ///< "/" or a group, for example /step_000100/layer_02
  std::string name;
  AttributeValue value;
};

/// A contiguous dataset and the CRC32C of its blocks of `block_rows` rows (the last may be
/// shorter).
struct DatasetInfo {
  std::string path;
  DType dtype = DType::f32;
  std::vector<int64_t> shape;  ///< global
  int64_t offset = 0;          ///< byte in the file where row 0 starts
  int64_t block_rows = 1;
  std::vector<uint32_t> checksums;  ///< Shape: [num_blocks()]

  int64_t rows() const { return shape.empty() ? 1 : shape[0]; }
  int64_t row_bytes() const;
  int64_t bytes() const { return rows() * row_bytes(); }
  int64_t num_blocks() const { return (rows() + block_rows - 1) / block_rows; }
};

/// Rows of a checksum block: about 4 MiB, at least one row; depends on the shape only.
int64_t block_rows_of(DType dtype, const std::vector<int64_t>& shape);

/// "[4096 x 1 x 64]"
std::string shape_text(const std::vector<int64_t>& shape);

struct StoredFile {
  std::string path;
  int64_t bytes = 0;
  std::string format;   ///< root attribute `format`
  int64_t version = 0;  ///< root attribute `format_version`
  bool sealed = false;
  std::string root_digest;  ///< stored; CRC-64 over attributes, shapes and checksum tables, in hex
  std::vector<Attribute> attributes;  ///< all others, sorted by object and name
  std::vector<DatasetInfo> datasets;  ///< sorted by path; without /integrity

  const DatasetInfo* find(const std::string& dataset) const;
  /// nullptr when there is no such attribute.
  const AttributeValue* attribute(const std::string& object, const std::string& name) const;
  /// Throws Error(ExitCode::bad_data) when absent or of another type.
  int64_t integer(const std::string& name) const;
  double real(const std::string& name) const;
  const std::string& text(const std::string& name) const;
};

struct ReadLimits {
  double seconds = 20;  ///< longest time that HDF5 may take to describe the file
};

/// Describes a file without reading its data. Local. HDF5 runs in a forked process, so that a
/// corrupt file that makes it hang or crash is an Error here. Checks: it is HDF5, it has the size
/// that its header says, `sealed` is 1, every dataset is contiguous, of a known type, inside the
/// file and has its checksum table, and the root digest matches. Throws Error(ExitCode::bad_data)
/// naming file and fault, Error(ExitCode::io) when it cannot be opened; both begin with the file's
/// name.
StoredFile read_stored_file(const std::string& path, const ReadLimits& limits = {});

/// The root digest that the contents ask for. Local.
std::string root_digest_of(const StoredFile& file);

}  // namespace airmoe::scheduler
