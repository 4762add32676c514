#pragma once
// Owns the HDF5 library: the only header through which the rest of the store reaches it. Every
// failure is an airmoe::Error that names file, object and HDF5's own words; HDF5 prints nothing
// itself.

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "comm/base/dtype.hpp"
#include "scheduler/store/stored_file.hpp"

namespace airmoe::scheduler {

class Hdf5File {
 public:
  enum class Mode : uint8_t { create, read, write };

  /// create replaces an existing file. New files use the format of HDF5 1.10, whose metadata
  /// carries checksums. Throws Error(ExitCode::io) when writing, Error(ExitCode::bad_data) when
  /// reading.
  Hdf5File(const std::string& path, Mode mode);
  /// Closes without throwing; after writing, call close().
  ~Hdf5File();
  Hdf5File(const Hdf5File&) = delete;
  Hdf5File& operator=(const Hdf5File&) = delete;
  void close();

  /// Makes a contiguous dataset (and its groups) with its space allocated and not filled. Returns
  /// the byte of the file where it starts, 0 when it has no elements.
  int64_t create_dataset(const std::string& path, DType dtype, const std::vector<int64_t>& shape);
  void create_group(const std::string& path);
  bool exists(const std::string& path) const;
  void remove(const std::string& path);

  void write_u32(const std::string& path, std::span<const uint32_t> values);
  std::vector<uint32_t> read_u32(const std::string& path) const;
  /// An integer dataset of any width and layout, and its shape; what does not fit
  /// becomes the nearest value.
  std::vector<int32_t> read_i32(const std::string& path, std::vector<int64_t>& shape) const;

  /// Sets an attribute, making it when missing. Strings are UTF-8 of variable length.
  void set_attribute(const Attribute& attribute);
  /// A string of fixed length, whose later values of the same length change the file in place.
  void set_fixed_string(const std::string& object, const std::string& name,
                        const std::string& value);
  std::vector<Attribute> attributes(const std::string& object) const;

  struct Objects {
    std::vector<std::string> groups;  ///< without "/"
    std::vector<std::string> datasets;
  };
  /// Absolute paths, sorted. Throws on links that leave the file and on named types.
  Objects objects() const;
  /// Type, shape and place of a dataset; without checksums. Throws when it is not contiguous.
  DatasetInfo dataset(const std::string& path) const;

 private:
  [[noreturn]] void fail_here(const std::string& action, const std::string& object) const;

  std::string path_;
  Mode mode_;
  int64_t id_ = -1;  // hid_t
};

/// "1.10.8", of the linked library.
std::string hdf5_version();

}  // namespace airmoe::scheduler
