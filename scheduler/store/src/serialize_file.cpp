// StoredFile as CBOR, for the helper process and for broadcasts.

#include <nlohmann/json.hpp>

#include "scheduler/store/src/describe_file.hpp"

namespace airmoe::scheduler {

namespace {

using nlohmann::json;

json to_json(const AttributeValue& value) {
  return std::visit([](const auto& v) { return json(v); }, value);
}

AttributeValue value_of(const json& j) {
  if (j.is_string()) return j.get<std::string>();
  if (j.is_number_float()) return j.get<double>();
  return j.get<int64_t>();
}

}  // namespace

std::string serialize(const StoredFile& file) {
  json out = {{"path", file.path},           {"bytes", file.bytes},
              {"format", file.format},       {"version", file.version},
              {"sealed", file.sealed},       {"root_digest", file.root_digest},
              {"attributes", json::array()}, {"datasets", json::array()}};
  for (const auto& a : file.attributes) {
    out["attributes"].push_back({a.object, a.name, to_json(a.value)});
  }
  for (const auto& d : file.datasets) {
    out["datasets"].push_back(
        {d.path, static_cast<int>(d.dtype), d.shape, d.offset, d.block_rows, d.checksums});
  }
  std::string bytes;
  json::to_cbor(out, bytes);
  return bytes;
}

StoredFile deserialize(const std::string& bytes) {
  const json in = json::from_cbor(bytes);
  StoredFile file;
  file.path = in["path"];
  file.bytes = in["bytes"];
  file.format = in["format"];
  file.version = in["version"];
  file.sealed = in["sealed"];
  file.root_digest = in["root_digest"];
  for (const auto& a : in["attributes"]) {
    file.attributes.push_back({a[0], a[1], value_of(a[2])});
  }
  for (const auto& d : in["datasets"]) {
    DatasetInfo dataset;
    dataset.path = d[0];
    dataset.dtype = static_cast<DType>(d[1].get<int>());
    dataset.shape = d[2].get<std::vector<int64_t>>();
    dataset.offset = d[3];
    dataset.block_rows = d[4];
    dataset.checksums = d[5].get<std::vector<uint32_t>>();
    file.datasets.push_back(std::move(dataset));
  }
  return file;
}

}  // namespace airmoe::scheduler
