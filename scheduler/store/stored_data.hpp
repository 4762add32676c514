#pragma once
// The data of a sealed file, read past HDF5 at the offsets of its description. All local.

#include <cstdint>
#include <memory>
#include <string>

#include "scheduler/store/stored_file.hpp"

namespace airmoe::scheduler {

/// What is wrong with one block of a dataset.
struct BlockFault {
  enum class Kind : uint8_t { checksum, not_finite };
  Kind kind = Kind::checksum;
  int64_t block = 0;
  int64_t row_begin = 0;
  int64_t row_end = 0;            ///< one past the last
  uint32_t stored = 0, read = 0;  ///< checksums

  /// "/layers/02/moe/up block 3 (rows 3072-4095): CRC32C 1f3a0c55 stored, 77c0aa01 read"
  std::string text(const DatasetInfo& dataset) const;
};

/// Reads blocks of the datasets of one file; holds at most 64 MiB.
class StoredData {
 public:
  /// Throws Error(ExitCode::io) when the file cannot be opened.
  explicit StoredData(const StoredFile& file);
  ~StoredData();
  StoredData(const StoredData&) = delete;
  StoredData& operator=(const StoredData&) = delete;

  /// Checks one block; true when its checksum is right and, for floats, every value is finite.
  bool verify_block(const DatasetInfo& dataset, int64_t block, BlockFault& fault);

  /// Reads rows [row_begin, row_begin + row_count) into `out` by whole blocks, checking each.
  /// Throws Error(ExitCode::bad_data) naming dataset, block and rows.
  void read_rows(const DatasetInfo& dataset, int64_t row_begin, int64_t row_count, void* out);

  /// Makes later reads come from the device rather than from the system's cache, where it can.
  void drop_cache();

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

/// True when all `count` elements are finite; always for integers.
bool all_finite(DType dtype, const void* data, int64_t count);

}  // namespace airmoe::scheduler
