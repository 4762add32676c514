#include <iterator>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "apps/inspect/report.hpp"

namespace airmoe::inspect {

namespace {

std::string bytes_text(int64_t bytes) {
  if (bytes < 10240) return fmt::format("{} B", bytes);
  if (bytes < int64_t{10} << 20)
    return fmt::format("{:.1f} KiB", static_cast<double>(bytes) / 1024);
  return fmt::format("{:.1f} MiB", static_cast<double>(bytes) / (1 << 20));
}

class Printer {
 public:
  template <class... Args>
  void line(fmt::format_string<Args...> format, Args&&... args) {
    fmt::format_to(std::back_inserter(text_), format, std::forward<Args>(args)...);
    text_ += '\n';
  }
  /// "  name  value" for every entry of an object.
  void table(const Json& object) {
    for (const auto& [name, value] : object.items()) {
      line("  {:<22} {}", name, value.is_string() ? value.get<std::string>() : value.dump());
    }
  }
  std::string take() { return std::move(text_); }

 private:
  std::string text_;
};

// Four significant digits are enough for people.
std::string numbers(const Json& object) {
  std::string text;
  for (const auto& [name, value] : object.items()) {
    text += fmt::format(
        "{}{} {}", text.empty() ? "" : ", ", name,
        value.is_number_float() ? fmt::format("{:.4g}", value.get<double>()) : value.dump());
  }
  return text;
}

void print_datasets(Printer& out, const Json& report) {
  out.line("\ndatasets ({})", report["datasets"].size());
  for (const auto& d : report["datasets"]) {
    out.line("  {:<40} {} {:<22} {}", d["path"].get<std::string>(), d["type"].get<std::string>(),
             fmt::format("[{}]", fmt::join(d["shape"].get<std::vector<int64_t>>(), " x ")),
             bytes_text(d["bytes"].get<int64_t>()));
  }
}

void print_layers(Printer& out, const Json& report) {
  for (const auto& layer : report["moe_layers"]) {
    out.line("\nMoE layer {}: {} experts", layer["layer"].get<std::string>(),
             layer["experts"].get<int64_t>());
    for (const char* part : {"centroid_norm", "codeword_count", "shortlist"}) {
      if (layer.contains(part) && layer[part].is_object()) {
        out.line("  {:<16} {}", part, numbers(layer[part]));
      }
    }
  }
  if (!report.contains("recomputed")) return;
  for (const auto& layer : report["recomputed"]) {
    Json rest = layer;
    rest.erase("layer");
    out.line("\nrecomputed {}\n  {}", layer["layer"].get<std::string>(), numbers(rest));
  }
}

}  // namespace

std::string as_text(const Json& report) {
  Printer out;
  out.line("{}\n  {} {}, {}", report["file"].get<std::string>(),
           report["format"].get<std::string>(), report["format_version"].get<int64_t>(),
           bytes_text(report["bytes"].get<int64_t>()));
  if (report.contains("attributes")) out.table(report["attributes"]);
  if (report.contains("config")) {
    out.line("\nconfiguration");
    if (report["config"].is_object()) {
      out.table(report["config"]);
    } else {
      out.line("  {}", report["config"].dump());
    }
  }
  print_datasets(out, report);
  if (report.contains("moe_layers")) print_layers(out, report);
  if (!report.contains("verified")) {
    out.line("\ndata not read (--quick)");
    return out.take();
  }
  const Json& verified = report["verified"];
  out.line("\nread {} in {} blocks", bytes_text(verified["bytes"].get<int64_t>()),
           verified["blocks"].get<int64_t>());
  for (const auto& problem : report["problems"]) {
    out.line("problem: {}", problem.get<std::string>());
  }
  out.line("{}", report["problems"].empty() ? "good" : "BAD");
  return out.take();
}

}  // namespace airmoe::inspect
