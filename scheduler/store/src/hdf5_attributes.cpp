// Attributes of Hdf5File.

#include <algorithm>

#include "comm/base/error.hpp"
#include "scheduler/store/src/hdf5_file.hpp"
#include "scheduler/store/src/hdf5_handle.hpp"

namespace airmoe::scheduler {

namespace {

// Deletes and makes again unless the type is the same, so that a new value of a fixed size changes
// the file in place.
hid_t open_or_create(hid_t object, const std::string& name, hid_t type) {
  if (H5Aexists(object, name.c_str()) > 0) {
    const hid_t attribute = H5Aopen(object, name.c_str(), H5P_DEFAULT);
    const Hdf5Handle present(attribute < 0 ? -1 : H5Aget_type(attribute), H5Tclose);
    if (present.valid() && H5Tequal(present, type) > 0) return attribute;
    if (attribute >= 0) H5Aclose(attribute);
    H5Adelete(object, name.c_str());
  }
  const Hdf5Handle space(H5Screate(H5S_SCALAR), H5Sclose);
  return H5Acreate2(object, name.c_str(), type, space, H5P_DEFAULT, H5P_DEFAULT);
}

hid_t string_type(std::size_t size) {
  const hid_t type = H5Tcopy(H5T_C_S1);
  H5Tset_size(type, size);
  H5Tset_cset(type, H5T_CSET_UTF8);
  return type;
}

bool read_string(hid_t attribute, hid_t type, std::string& value) {
  if (H5Tis_variable_str(type) > 0) {
    char* text = nullptr;
    const Hdf5Handle memory(string_type(H5T_VARIABLE), H5Tclose);
    if (H5Aread(attribute, memory, &text) < 0) return false;
    value = text == nullptr ? "" : text;
    H5free_memory(text);
    return true;
  }
  value.assign(H5Tget_size(type), '\0');
  if (H5Aread(attribute, type, value.data()) < 0) return false;
  value.resize(std::min(value.size(), value.find('\0')));
  return true;
}

bool read_value(hid_t attribute, AttributeValue& value) {
  const Hdf5Handle type(H5Aget_type(attribute), H5Tclose);
  const Hdf5Handle space(H5Aget_space(attribute), H5Sclose);
  if (!type.valid() || !space.valid() || H5Sget_simple_extent_npoints(space) != 1) return false;
  switch (H5Tget_class(type)) {
    case H5T_INTEGER: {
      int64_t integer = 0;
      if (H5Aread(attribute, H5T_NATIVE_INT64, &integer) < 0) return false;
      value = integer;
      return true;
    }
    case H5T_FLOAT: {
      double real = 0;
      if (H5Aread(attribute, H5T_NATIVE_DOUBLE, &real) < 0) return false;
      value = real;
      return true;
    }
    case H5T_STRING: {
      std::string text;
      if (!read_string(attribute, type, text)) return false;
      value = text;
      return true;
    }
    default:
      return false;
  }
}

}  // namespace

void Hdf5File::set_attribute(const Attribute& a) {
  create_group(a.object);
  const Hdf5Handle object(H5Oopen(id_, a.object.c_str(), H5P_DEFAULT), H5Oclose);
  if (!object.valid()) fail_here("open", a.object);
  herr_t status = -1;
  if (const auto* integer = std::get_if<int64_t>(&a.value)) {
    const Hdf5Handle attribute(open_or_create(object, a.name, H5T_STD_I64LE), H5Aclose);
    if (attribute.valid()) status = H5Awrite(attribute, H5T_NATIVE_INT64, integer);
  } else if (const auto* real = std::get_if<double>(&a.value)) {
    const Hdf5Handle attribute(open_or_create(object, a.name, H5T_IEEE_F64LE), H5Aclose);
    if (attribute.valid()) status = H5Awrite(attribute, H5T_NATIVE_DOUBLE, real);
  } else {
    const Hdf5Handle type(string_type(H5T_VARIABLE), H5Tclose);
    const Hdf5Handle attribute(open_or_create(object, a.name, type), H5Aclose);
    const char* text = std::get<std::string>(a.value).c_str();
    if (attribute.valid()) status = H5Awrite(attribute, type, &text);
  }
  if (status < 0) fail_here("write attribute " + a.name + " of", a.object);
}

void Hdf5File::set_fixed_string(const std::string& path, const std::string& name,
                                const std::string& value) {
  const Hdf5Handle object(H5Oopen(id_, path.c_str(), H5P_DEFAULT), H5Oclose);
  const Hdf5Handle type(string_type(value.size()), H5Tclose);
  H5Tset_strpad(type, H5T_STR_NULLPAD);
  const Hdf5Handle attribute(object.valid() ? open_or_create(object, name, type) : -1, H5Aclose);
  if (!attribute.valid() || H5Awrite(attribute, type, value.data()) < 0) {
    fail_here("write attribute " + name + " of", path);
  }
}

std::vector<Attribute> Hdf5File::attributes(const std::string& path) const {
  const Hdf5Handle object(H5Oopen(id_, path.c_str(), H5P_DEFAULT), H5Oclose);
  if (!object.valid()) fail_here("open", path);
  std::vector<std::string> names;
  const auto collect = [](hid_t, const char* name, const H5A_info_t*, void* out) -> herr_t {
    static_cast<std::vector<std::string>*>(out)->emplace_back(name);
    return 0;
  };
  if (H5Aiterate2(object, H5_INDEX_NAME, H5_ITER_INC, nullptr, collect, &names) < 0) {
    fail_here("list the attributes of", path);
  }
  std::sort(names.begin(), names.end());
  std::vector<Attribute> result;
  for (const auto& name : names) {
    const Hdf5Handle attribute(H5Aopen(object, name.c_str(), H5P_DEFAULT), H5Aclose);
    AttributeValue value;
    if (!attribute.valid() || !read_value(attribute, value)) {
      fail_here("read attribute " + name + " of", path);
    }
    result.push_back({path, name, value});
  }
  return result;
}

}  // namespace airmoe::scheduler
