#include "scheduler/store/stored_file.hpp"

#include <algorithm>

#include <fmt/ranges.h>
#include <isa-l/crc64.h>

#include "comm/base/error.hpp"

namespace airmoe::scheduler {

namespace {

constexpr int64_t kBlockBytes = int64_t{4} << 20;

int64_t product_after_first(const std::vector<int64_t>& shape) {
  int64_t n = 1;
  for (std::size_t i = 1; i < shape.size(); ++i) n *= shape[i];
  return n;
}

template <class T>
const T& typed(const StoredFile& file, const std::string& name, const char* kind) {
  const AttributeValue* value = file.attribute("/", name);
  const T* result = value == nullptr ? nullptr : std::get_if<T>(value);
  if (result == nullptr) {
    fail(ExitCode::bad_data, "{}: root attribute {} is {}", file.path, name,
         value == nullptr ? "missing" : fmt::format("no {}", kind));
  }
  return *result;
}

// Bytes that the root digest covers, in order.
class Digest {
 public:
  void add(const void* data, std::size_t size) {
    state_ = crc64_ecma_refl(state_, static_cast<const unsigned char*>(data), size);
  }
  void add(const std::string& text) { add(text.data(), text.size()); }
  std::string hex() const { return fmt::format("{:016x}", state_); }

 private:
  uint64_t state_ = 0;
};

std::string value_text(const AttributeValue& value) {
  if (const auto* integer = std::get_if<int64_t>(&value)) return fmt::format("i {}", *integer);
  if (const auto* real = std::get_if<double>(&value)) return fmt::format("d {:a}", *real);
  return "s " + std::get<std::string>(value);
}

}  // namespace

int64_t DatasetInfo::row_bytes() const {
  return product_after_first(shape) * size_of(dtype);
}

int64_t block_rows_of(DType dtype, const std::vector<int64_t>& shape) {
  const int64_t row_bytes = std::max<int64_t>(1, product_after_first(shape) * size_of(dtype));
  return std::max<int64_t>(1, kBlockBytes / row_bytes);
}

std::string shape_text(const std::vector<int64_t>& shape) {
  return fmt::format("[{}]", fmt::join(shape, " x "));
}

const DatasetInfo* StoredFile::find(const std::string& dataset) const {
  const auto at =
      std::lower_bound(datasets.begin(), datasets.end(), dataset,
                       [](const DatasetInfo& d, const std::string& p) { return d.path < p; });
  return at != datasets.end() && at->path == dataset ? &*at : nullptr;
}

const AttributeValue* StoredFile::attribute(const std::string& object,
                                            const std::string& name) const {
  for (const auto& a : attributes) {
    if (a.object == object && a.name == name) return &a.value;
  }
  return nullptr;
}

int64_t StoredFile::integer(const std::string& name) const {
  return typed<int64_t>(*this, name, "integer");
}
double StoredFile::real(const std::string& name) const {
  return typed<double>(*this, name, "real number");
}
const std::string& StoredFile::text(const std::string& name) const {
  return typed<std::string>(*this, name, "string");
}

// One line for the format, one per attribute, one per dataset followed by its checksums as they are
// in the file; everything in sorted order.
std::string root_digest_of(const StoredFile& file) {
  Digest digest;
  digest.add(fmt::format("{} {}\n", file.format, file.version));
  for (const auto& a : file.attributes) {
    digest.add(fmt::format("{} {} {}\n", a.object, a.name, value_text(a.value)));
  }
  for (const auto& d : file.datasets) {
    digest.add(
        fmt::format("{} {} {} {}\n", d.path, name_of(d.dtype), shape_text(d.shape), d.block_rows));
    digest.add(d.checksums.data(), d.checksums.size() * sizeof(uint32_t));
  }
  return digest.hex();
}

}  // namespace airmoe::scheduler
