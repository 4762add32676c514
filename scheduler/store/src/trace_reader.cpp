#include "scheduler/store/trace_reader.hpp"

#include <algorithm>
#include <charconv>
#include <cstring>

#include <fcntl.h>
#include <fmt/ranges.h>
#include <nlohmann/json.hpp>
#include <unistd.h>

#include "comm/base/error.hpp"
#include "scheduler/store/src/describe_file.hpp"
#include "scheduler/store/src/hdf5_file.hpp"
#include "scheduler/store/src/helper_process.hpp"
#include "scheduler/store/stored_data.hpp"

namespace airmoe::scheduler {

namespace {

using Json = nlohmann::json;

constexpr double kReadSeconds = 120;

// "step_000300" with the prefix "step_" is 300.
std::optional<int64_t> number_after(const std::string& name, const std::string& prefix) {
  if (!name.starts_with(prefix)) return std::nullopt;
  int64_t value = 0;
  const char* end = name.data() + name.size();
  const auto result = std::from_chars(name.data() + prefix.size(), end, value);
  if (result.ec != std::errc() || result.ptr != end) return std::nullopt;
  return value;
}

struct Place {
  int64_t step, layer;
  std::string group;
};

// Groups with a codeword dataset, by step and layer.
std::vector<Place> places_of(const Hdf5File::Objects& objects) {
  std::vector<Place> places;
  for (const std::string& path : objects.groups) {
    const auto slash = path.find('/', 1);
    if (slash == std::string::npos) continue;
    const auto step = number_after(path.substr(1, slash - 1), "step_");
    const auto layer = number_after(path.substr(slash + 1), "layer_");
    if (step && layer) places.push_back({*step, *layer, path});
  }
  std::sort(places.begin(), places.end(), [](const Place& a, const Place& b) {
    return a.step != b.step ? a.step < b.step : a.layer < b.layer;
  });
  return places;
}

Place choose(const std::string& path, const std::vector<Place>& places,
             const TraceSelection& wanted) {
  if (places.empty()) {
    fail(ExitCode::bad_data,
         "{}: no /step_NNNNNN/layer_ii in it; airmoe-train --trace FILE writes such files", path);
  }
  std::vector<int64_t> steps, layers;
  for (const Place& p : places) {
    if (steps.empty() || steps.back() != p.step) steps.push_back(p.step);
  }
  const int64_t step = wanted.step.value_or(steps.back());
  for (const Place& p : places) {
    if (p.step != step) continue;
    layers.push_back(p.layer);
    if (!wanted.layer || *wanted.layer == p.layer) return p;
  }
  if (layers.empty()) {
    fail(ExitCode::usage, "--step {}: {} has the steps {}", step, path, fmt::join(steps, ", "));
  }
  fail(ExitCode::usage, "--layer {}: step {} of {} has the layers {}", *wanted.layer, step, path,
       fmt::join(layers, ", "));
}

// Numbers of the model from the root attribute config_json, attributes of the layer on top.
Json settings_of(const Hdf5File& file, const std::string& group) {
  Json settings = Json::object();
  for (const Attribute& a : file.attributes("/")) {
    if (a.name != "config_json" || !std::holds_alternative<std::string>(a.value)) continue;
    const Json config = Json::parse(std::get<std::string>(a.value), nullptr, false);
    if (config.is_object()) settings = config;
  }
  for (const Attribute& a : file.attributes(group)) {
    std::visit([&](const auto& value) { settings[a.name] = value; }, a.value);
  }
  return settings;
}

struct Array {
  std::vector<int64_t> shape;
  std::vector<int32_t> values;
};

void append(std::string& to, const void* data, std::size_t bytes) {
  to.append(static_cast<const char*>(data), bytes);
}

// In the helper process: a JSON header and the arrays, as text.
std::string read_in_helper(const std::string& path, const TraceSelection& wanted) {
  const Hdf5File file(path, Hdf5File::Mode::read);
  const Hdf5File::Objects objects = file.objects();
  const Place place = choose(path, places_of(objects), wanted);
  Json header = {{"step", place.step}, {"layer", place.layer}, {"group", place.group}};
  header["settings"] = settings_of(file, place.group);
  header["sealed"] = file.exists(kIntegrityGroup);
  if (file.exists(place.group + "/centroid")) {
    header["experts"] = file.dataset(place.group + "/centroid").rows();
  }
  std::string arrays;
  for (const char* name : {"codeword", "expert", "shortlist", "home_rank"}) {
    const std::string dataset = place.group + "/" + name;
    if (!file.exists(dataset)) {
      if (std::strcmp(name, "home_rank") == 0) continue;
      fail(ExitCode::bad_data, "{}: {} is missing; a trace has codeword, expert and shortlist",
           path, dataset);
    }
    Array array;
    array.values = file.read_i32(dataset, array.shape);
    header["shapes"][name] = array.shape;
    append(arrays, array.values.data(), array.values.size() * sizeof(int32_t));
  }
  const std::string text = header.dump(-1, ' ', false, Json::error_handler_t::replace);
  const auto size = static_cast<uint64_t>(text.size());
  std::string out;
  append(out, &size, sizeof(size));
  return out + text + arrays;
}

// The checksums of the arrays that were read.
void verify(const std::string& path, const std::string& group) {
  const StoredFile file = read_stored_file(path);
  StoredData data(file);
  for (const char* name : {"codeword", "expert", "shortlist", "home_rank"}) {
    const DatasetInfo* info = file.find(group + "/" + name);
    if (info == nullptr) continue;
    for (int64_t block = 0; block < info->num_blocks(); ++block) {
      BlockFault fault;
      if (!data.verify_block(*info, block, fault)) {
        fail(ExitCode::bad_data, "{}: {}", path, fault.text(*info));
      }
    }
  }
}

template <class T>
std::optional<T> get(const Json& settings, const char* name) {
  const auto value = settings.find(name);
  if (value == settings.end()) return std::nullopt;
  if constexpr (std::is_same_v<T, std::string>) {
    if (!value->is_string()) return std::nullopt;
  } else if (!value->is_number()) {
    return std::nullopt;
  }
  return value->get<T>();
}

}  // namespace

RecordedRouting read_routing(const std::string& path, const TraceSelection& selection) {
  if (::access(path.c_str(), R_OK) != 0) {
    fail(ExitCode::io, "{}: cannot read this file: {}", path, std::strerror(errno));
  }
  const std::string bytes =
      run_in_helper(path, kReadSeconds, [&] { return read_in_helper(path, selection); });
  uint64_t size = 0;
  std::memcpy(&size, bytes.data(), sizeof(size));
  const Json header = Json::parse(bytes.substr(sizeof(size), size));
  const char* data = bytes.data() + sizeof(size) + size;
  const auto take = [&](const char* name, std::size_t dimensions) {
    Array array;
    if (!header["shapes"].contains(name)) return array;
    array.shape = header["shapes"][name].get<std::vector<int64_t>>();
    if (array.shape.size() != dimensions) {
      fail(ExitCode::bad_data, "{}: {} has {} dimensions, not {}", path, name, array.shape.size(),
           dimensions);
    }
    int64_t count = 1;
    for (const int64_t n : array.shape) count *= n;
    array.values.resize(static_cast<std::size_t>(count));
    if (count > 0) std::memcpy(array.values.data(), data, array.values.size() * sizeof(int32_t));
    data += array.values.size() * sizeof(int32_t);
    return array;
  };
  Array codeword = take("codeword", 1), expert = take("expert", 2), lists = take("shortlist", 2),
        home = take("home_rank", 1);
  if (expert.shape[0] != codeword.shape[0] || codeword.shape[0] == 0) {
    fail(ExitCode::bad_data, "{}: {} codewords of tokens, {} rows of experts", path,
         codeword.shape[0], expert.shape[0]);
  }
  if (header["sealed"].get<bool>()) verify(path, header["group"].get<std::string>());

  const Json& settings = header["settings"];
  RecordedRouting recorded;
  recorded.step = header["step"].get<int64_t>();
  recorded.layer = header["layer"].get<int64_t>();
  recorded.dim = get<int64_t>(settings, "dim");
  recorded.expert_dim = get<int64_t>(settings, "expert_dim");
  recorded.activation = get<std::string>(settings, "activation");
  recorded.jitter = get<double>(settings, "jitter");
  recorded.balance_weight = get<double>(settings, "balance_weight");
  if (const auto sums = get<std::string>(settings, "sum_precision")) {
    recorded.sums = *sums == "f32" ? SumPrecision::f32 : SumPrecision::f64;
  }
  auto experts = get<int64_t>(settings, "experts");
  if (!experts) experts = get<int64_t>(header, "experts");
  if (!experts) experts = selection.experts;
  if (!experts) {
    fail(ExitCode::usage, "{} does not say how many experts there are; give --experts", path);
  }
  RoutingTrace& routing = recorded.routing;
  routing.experts = *experts;
  routing.active = expert.shape[1];
  routing.length = lists.shape[1];
  routing.codeword = std::move(codeword.values);
  routing.expert = std::move(expert.values);
  routing.lists = std::move(lists.values);
  routing.home_rank = std::move(home.values);
  routing.validate(path);
  return recorded;
}

}  // namespace airmoe::scheduler
