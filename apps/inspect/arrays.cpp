#include "apps/inspect/arrays.hpp"

#include "comm/base/error.hpp"

namespace airmoe::inspect {

template <class T>
std::vector<T> read_array(const scheduler::StoredFile& file, scheduler::StoredData& data,
                          const std::string& path, std::size_t dimensions) {
  const scheduler::DatasetInfo* d = file.find(path);
  if (d == nullptr) fail(ExitCode::bad_data, "no dataset {}", path);
  if (d->dtype != dtype_of<T> || (dimensions != 0 && d->shape.size() != dimensions)) {
    fail(ExitCode::bad_data, "{} is {} {}, expected {} with {} dimensions", path, name_of(d->dtype),
         scheduler::shape_text(d->shape), name_of(dtype_of<T>), dimensions);
  }
  std::vector<T> values(static_cast<std::size_t>(d->bytes()) / sizeof(T));
  data.read_rows(*d, 0, d->rows(), values.data());
  return values;
}

template std::vector<float> read_array(const scheduler::StoredFile&, scheduler::StoredData&,
                                       const std::string&, std::size_t);
template std::vector<int32_t> read_array(const scheduler::StoredFile&, scheduler::StoredData&,
                                         const std::string&, std::size_t);

std::vector<std::string> groups_with(const scheduler::StoredFile& file, const std::string& name) {
  std::vector<std::string> groups;
  for (const auto& d : file.datasets) {
    if (d.path.ends_with("/" + name)) {
      groups.push_back(d.path.substr(0, d.path.size() - name.size() - 1));
    }
  }
  return groups;
}

}  // namespace airmoe::inspect
