#include "scheduler/store/src/hdf5_file.hpp"

#include <algorithm>
#include <array>
#include <bit>

#include "comm/base/error.hpp"
#include "scheduler/store/src/hdf5_handle.hpp"

namespace airmoe::scheduler {

static_assert(std::endian::native == std::endian::little, "files are written from memory as it is");

namespace {

hid_t file_type(DType dtype) {
  switch (dtype) {
    case DType::u8:
      return H5T_STD_U8LE;
    case DType::i32:
      return H5T_STD_I32LE;
    case DType::u32:
      return H5T_STD_U32LE;
    case DType::i64:
      return H5T_STD_I64LE;
    case DType::u64:
      return H5T_STD_U64LE;
    case DType::f32:
      return H5T_IEEE_F32LE;
    case DType::f64:
      return H5T_IEEE_F64LE;
  }
  return -1;
}

// The innermost entry of HDF5's error stack is the most specific.
std::string innermost_error() {
  std::string text;
  H5Ewalk2(
      H5E_DEFAULT, H5E_WALK_UPWARD,
      [](unsigned n, const H5E_error2_t* entry, void* out) -> herr_t {
        if (n == 0 && entry->desc != nullptr) *static_cast<std::string*>(out) = entry->desc;
        return 0;
      },
      &text);
  H5Eclear2(H5E_DEFAULT);
  return text.empty() ? "no reason given" : text;
}

// Reads the parts of an object's metadata that only matter to writers and to tools that list sizes;
// a damaged one would stop those.
bool reads_whole_metadata(hid_t object) {
#if H5_VERSION_GE(1, 12, 0)
  H5O_native_info_t info;
  return H5Oget_native_info(object, &info, H5O_NATIVE_INFO_ALL) >= 0;
#else
  H5O_info_t info;
  return H5Oget_info2(object, &info, H5O_INFO_ALL) >= 0;
#endif
}

}  // namespace

std::string hdf5_version() {
  unsigned major = 0;
  unsigned minor = 0;
  unsigned release = 0;
  H5get_libversion(&major, &minor, &release);
  return fmt::format("{}.{}.{}", major, minor, release);
}

void Hdf5File::fail_here(const std::string& action, const std::string& object) const {
  const std::string reason = innermost_error();
  const ExitCode code = mode_ == Mode::read ? ExitCode::bad_data : ExitCode::io;
  if (object.empty()) fail(code, "{}: HDF5 cannot {}: {}", path_, action, reason);
  fail(code, "{}: HDF5 cannot {} {}: {}", path_, action, object, reason);
}

Hdf5File::Hdf5File(const std::string& path, Mode mode) : path_(path), mode_(mode) {
  H5Eset_auto2(H5E_DEFAULT, nullptr, nullptr);
  const Hdf5Handle access(H5Pcreate(H5P_FILE_ACCESS), H5Pclose);
  H5Pset_libver_bounds(access, H5F_LIBVER_V110, H5F_LIBVER_V110);
  H5Pset_fclose_degree(access, H5F_CLOSE_STRONG);
  H5Pset_alignment(access, 64 << 10, 4 << 10);  // larger arrays start on a page
  switch (mode) {
    case Mode::create:
      id_ = H5Fcreate(path.c_str(), H5F_ACC_TRUNC, H5P_DEFAULT, access);
      break;
    case Mode::read:
      id_ = H5Fopen(path.c_str(), H5F_ACC_RDONLY, access);
      break;
    case Mode::write:
      id_ = H5Fopen(path.c_str(), H5F_ACC_RDWR, access);
      break;
  }
  if (id_ < 0) fail_here(mode == Mode::create ? "create the file" : "open the file", "");
}

Hdf5File::~Hdf5File() {
  if (id_ >= 0) H5Fclose(id_);
}

void Hdf5File::close() {
  const hid_t id = id_;
  id_ = -1;
  if (id >= 0 && H5Fclose(id) < 0) fail_here("close the file", "");
}

bool Hdf5File::exists(const std::string& path) const {
  // H5Lexists fails when a group on the way is missing, so it is asked for each prefix.
  for (auto slash = path.find('/', 1); slash != std::string::npos;
       slash = path.find('/', slash + 1)) {
    if (H5Lexists(id_, path.substr(0, slash).c_str(), H5P_DEFAULT) <= 0) return false;
  }
  return H5Lexists(id_, path.c_str(), H5P_DEFAULT) > 0;
}

void Hdf5File::create_group(const std::string& path) {
  if (path == "/" || exists(path)) return;
  const Hdf5Handle links(H5Pcreate(H5P_LINK_CREATE), H5Pclose);
  H5Pset_create_intermediate_group(links, 1);
  const Hdf5Handle group(H5Gcreate2(id_, path.c_str(), links, H5P_DEFAULT, H5P_DEFAULT), H5Gclose);
  if (!group.valid()) fail_here("create group", path);
}

void Hdf5File::remove(const std::string& path) {
  if (H5Ldelete(id_, path.c_str(), H5P_DEFAULT) < 0) fail_here("remove", path);
}

int64_t Hdf5File::create_dataset(const std::string& path, DType dtype,
                                 const std::vector<int64_t>& shape) {
  std::vector<hsize_t> dims(shape.begin(), shape.end());
  const Hdf5Handle space(H5Screate_simple(static_cast<int>(dims.size()), dims.data(), nullptr),
                         H5Sclose);
  const Hdf5Handle creation(H5Pcreate(H5P_DATASET_CREATE), H5Pclose);
  H5Pset_layout(creation, H5D_CONTIGUOUS);
  H5Pset_alloc_time(creation, H5D_ALLOC_TIME_EARLY);
  H5Pset_fill_time(creation, H5D_FILL_TIME_NEVER);
  const Hdf5Handle links(H5Pcreate(H5P_LINK_CREATE), H5Pclose);
  H5Pset_create_intermediate_group(links, 1);
  const Hdf5Handle dataset(
      H5Dcreate2(id_, path.c_str(), file_type(dtype), space, links, creation, H5P_DEFAULT),
      H5Dclose);
  if (!dataset.valid()) fail_here("create dataset", path);
  const haddr_t offset = H5Dget_offset(dataset);
  return offset == HADDR_UNDEF ? 0 : static_cast<int64_t>(offset);
}

void Hdf5File::write_u32(const std::string& path, std::span<const uint32_t> values) {
  const Hdf5Handle dataset(H5Dopen2(id_, path.c_str(), H5P_DEFAULT), H5Dclose);
  if (!dataset.valid() ||
      H5Dwrite(dataset, H5T_NATIVE_UINT32, H5S_ALL, H5S_ALL, H5P_DEFAULT, values.data()) < 0) {
    fail_here("write", path);
  }
}

std::vector<uint32_t> Hdf5File::read_u32(const std::string& path) const {
  const DatasetInfo info = dataset(path);
  if (info.dtype != DType::u32 || info.shape.size() != 1) {
    fail(ExitCode::bad_data, "{}: {} is no list of u32", path_, path);
  }
  std::vector<uint32_t> values(static_cast<std::size_t>(info.rows()));
  const Hdf5Handle handle(H5Dopen2(id_, path.c_str(), H5P_DEFAULT), H5Dclose);
  if (!handle.valid() ||
      H5Dread(handle, H5T_NATIVE_UINT32, H5S_ALL, H5S_ALL, H5P_DEFAULT, values.data()) < 0) {
    fail_here("read", path);
  }
  return values;
}

std::vector<int32_t> Hdf5File::read_i32(const std::string& path,
                                        std::vector<int64_t>& shape) const {
  const Hdf5Handle handle(H5Dopen2(id_, path.c_str(), H5P_DEFAULT), H5Dclose);
  if (!handle.valid()) fail_here("open dataset", path);
  const Hdf5Handle type(H5Dget_type(handle), H5Tclose);
  const Hdf5Handle space(H5Dget_space(handle), H5Sclose);
  if (!type.valid() || !space.valid()) fail_here("describe", path);
  if (H5Tget_class(type) != H5T_INTEGER) {
    fail(ExitCode::bad_data, "{}: {} does not hold integers", path_, path);
  }
  const int rank = H5Sget_simple_extent_ndims(space);
  if (rank < 1) fail(ExitCode::bad_data, "{}: {} has no dimensions", path_, path);
  std::vector<hsize_t> dims(static_cast<std::size_t>(rank));
  H5Sget_simple_extent_dims(space, dims.data(), nullptr);
  shape.assign(dims.begin(), dims.end());
  std::vector<int32_t> values(static_cast<std::size_t>(H5Sget_simple_extent_npoints(space)));
  if (H5Dread(handle, H5T_NATIVE_INT32, H5S_ALL, H5S_ALL, H5P_DEFAULT, values.data()) < 0) {
    fail_here("read", path);
  }
  return values;
}

Hdf5File::Objects Hdf5File::objects() const {
  struct Visit {
    std::vector<std::pair<std::string, H5L_type_t>> links;
  } visit;
  const auto collect = [](hid_t, const char* name, const H5L_info_t* info, void* out) -> herr_t {
    static_cast<Visit*>(out)->links.emplace_back(std::string("/") + name, info->type);
    return 0;
  };
  if (H5Lvisit(id_, H5_INDEX_NAME, H5_ITER_INC, collect, &visit) < 0) {
    fail_here("list the objects", "");
  }
  if (!reads_whole_metadata(id_)) fail_here("open", "/");
  Objects result;
  for (const auto& [path, type] : visit.links) {
    if (type != H5L_TYPE_HARD) fail(ExitCode::bad_data, "{}: {} is a link", path_, path);
    const Hdf5Handle object(H5Oopen(id_, path.c_str(), H5P_DEFAULT), H5Oclose);
    if (!object.valid() || !reads_whole_metadata(object)) fail_here("open", path);
    const H5I_type_t kind = H5Iget_type(object);
    if (kind == H5I_GROUP) {
      result.groups.push_back(path);
    } else if (kind == H5I_DATASET) {
      result.datasets.push_back(path);
    } else {
      fail(ExitCode::bad_data, "{}: {} is neither group nor dataset", path_, path);
    }
  }
  std::sort(result.groups.begin(), result.groups.end());
  std::sort(result.datasets.begin(), result.datasets.end());
  return result;
}

DatasetInfo Hdf5File::dataset(const std::string& path) const {
  const Hdf5Handle handle(H5Dopen2(id_, path.c_str(), H5P_DEFAULT), H5Dclose);
  if (!handle.valid()) fail_here("open dataset", path);
  const Hdf5Handle type(H5Dget_type(handle), H5Tclose);
  const Hdf5Handle space(H5Dget_space(handle), H5Sclose);
  const Hdf5Handle creation(H5Dget_create_plist(handle), H5Pclose);
  if (!type.valid() || !space.valid() || !creation.valid()) fail_here("describe", path);

  DatasetInfo info;
  info.path = path;
  constexpr std::array kTypes = {DType::u8,  DType::i32, DType::u32, DType::i64,
                                 DType::u64, DType::f32, DType::f64};
  const auto known = std::find_if(kTypes.begin(), kTypes.end(),
                                  [&](DType t) { return H5Tequal(type, file_type(t)) > 0; });
  if (known == kTypes.end()) {
    fail(ExitCode::bad_data, "{}: {} has an element type that airmoe does not write", path_, path);
  }
  info.dtype = *known;
  if (H5Pget_layout(creation) != H5D_CONTIGUOUS || H5Pget_external_count(creation) != 0) {
    fail(ExitCode::bad_data, "{}: {} is not contiguous (rewritten by another program?)", path_,
         path);
  }
  const int rank = H5Sget_simple_extent_ndims(space);
  if (rank < 1) fail(ExitCode::bad_data, "{}: {} has no dimensions", path_, path);
  std::vector<hsize_t> dims(static_cast<std::size_t>(rank));
  H5Sget_simple_extent_dims(space, dims.data(), nullptr);
  info.shape.assign(dims.begin(), dims.end());
  const haddr_t offset = H5Dget_offset(handle);
  info.offset = offset == HADDR_UNDEF ? 0 : static_cast<int64_t>(offset);
  return info;
}

}  // namespace airmoe::scheduler
