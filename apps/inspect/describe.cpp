#include "apps/inspect/report.hpp"

namespace airmoe::inspect {

namespace {

Json to_json(const scheduler::AttributeValue& value) {
  return std::visit([](const auto& v) { return Json(v); }, value);
}

}  // namespace

Json describe(const scheduler::StoredFile& file) {
  Json report;
  report["file"] = file.path;
  report["bytes"] = file.bytes;
  report["format"] = file.format;
  report["format_version"] = file.version;
  report["root_digest"] = file.root_digest;
  for (const auto& a : file.attributes) {
    const bool config = a.object == "/" && a.name == "config_json";
    if (config && std::holds_alternative<std::string>(a.value)) {
      const Json parsed = Json::parse(std::get<std::string>(a.value), nullptr, false);
      report["config"] = parsed.is_discarded() ? to_json(a.value) : parsed;
    } else if (a.object == "/") {
      report["attributes"][a.name] = to_json(a.value);
    } else {
      report["groups"][a.object][a.name] = to_json(a.value);
    }
  }
  report["datasets"] = Json::array();
  for (const auto& d : file.datasets) {
    report["datasets"].push_back({{"path", d.path},
                                  {"type", name_of(d.dtype)},
                                  {"shape", d.shape},
                                  {"bytes", d.bytes()},
                                  {"blocks", d.num_blocks()}});
  }
  return report;
}

}  // namespace airmoe::inspect
