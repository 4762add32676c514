#include <algorithm>

#include "apps/inspect/arrays.hpp"
#include "apps/inspect/report.hpp"
#include "apps/inspect/trace_oracle.hpp"
#include "comm/base/error.hpp"
#include "scheduler/store/trace.hpp"

namespace airmoe::inspect {

namespace {

using scheduler::StoredData;
using scheduler::StoredFile;

template <class T>
T attribute(const StoredFile& file, const std::string& group, const std::string& name) {
  const auto* value = file.attribute(group, name);
  const T* typed = value == nullptr ? nullptr : std::get_if<T>(value);
  if (typed == nullptr) fail(ExitCode::bad_data, "no attribute {} of the right type", name);
  return *typed;
}

std::vector<int64_t> shape_of(const StoredFile& file, const std::string& path) {
  const auto* d = file.find(path);
  if (d == nullptr) fail(ExitCode::bad_data, "no dataset {}", path);
  return d->shape;
}

void require(const StoredFile& file, const std::string& group, const std::string& name,
             const std::vector<int64_t>& expected) {
  const auto shape = shape_of(file, group + "/" + name);
  if (shape != expected) {
    fail(ExitCode::bad_data, "{} is {}, expected {}", name, scheduler::shape_text(shape),
         scheduler::shape_text(expected));
  }
}

void check_shapes(const StoredFile& file, const std::string& group, const TraceArrays& t) {
  require(file, group, "hidden", {t.tokens, t.dim});
  require(file, group, "codeword", {t.tokens});
  require(file, group, "expert", {t.tokens, t.active});
  require(file, group, "gate", {t.tokens, t.active});
  require(file, group, "output", {t.tokens, t.dim});
  require(file, group, "home_rank", {t.tokens});
  require(file, group, "centroid", {t.experts, t.dim});
  require(file, group, "up", {t.experts, t.width, t.dim});
  require(file, group, "down", {t.experts, t.width, t.dim});
  require(file, group, "codebook", {t.codewords, t.dim});
  require(file, group, "shortlist", {t.codewords, t.list_length});
}

TraceArrays load(const StoredFile& file, StoredData& data, const std::string& group) {
  TraceArrays t;
  t.activation = attribute<std::string>(file, group, "activation");
  t.jitter = attribute<double>(file, group, "jitter");
  t.active = attribute<int64_t>(file, group, "active");
  for (const char* name : {"hidden", "shortlist", "up"}) {
    const std::size_t dimensions = std::string(name) == "up" ? 3 : 2;
    if (shape_of(file, group + "/" + name).size() != dimensions) {
      fail(ExitCode::bad_data, "{} has not {} dimensions", name, dimensions);
    }
  }
  const auto hidden = shape_of(file, group + "/hidden");
  const auto list = shape_of(file, group + "/shortlist");
  const auto up = shape_of(file, group + "/up");
  t.tokens = hidden[0];
  t.dim = hidden[1];
  t.codewords = list[0];
  t.list_length = list[1];
  t.experts = up[0];
  t.width = up[1];
  check_shapes(file, group, t);
  const auto reals = [&](const char* name) {
    return read_array<float>(file, data, group + "/" + name, 0);
  };
  const auto integers = [&](const char* name) {
    return read_array<int32_t>(file, data, group + "/" + name, 0);
  };
  t.hidden = reals("hidden");
  t.gate = reals("gate");
  t.output = reals("output");
  t.centroid = reals("centroid");
  t.up = reals("up");
  t.down = reals("down");
  t.codebook = reals("codebook");
  t.codeword = integers("codeword");
  t.expert = integers("expert");
  t.shortlist = integers("shortlist");
  t.home_rank = integers("home_rank");
  if (t.activation == "swiglu") {
    require(file, group, "gate_proj", {t.experts, t.width, t.dim});
    t.gate_proj = reals("gate_proj");
  } else if (t.activation != "gelu" && t.activation != "silu" && t.activation != "relu") {
    fail(ExitCode::bad_data, "activation `{}` is unknown", t.activation);
  }
  return t;
}

void add_problems(const std::string& group, const TraceErrors& e, Problems& problems) {
  const auto add = [&](int64_t count, const char* what, double largest) {
    if (count == 0) return;
    problems.push_back(fmt::format("{}: {} tokens with {} (largest {:.3g}, first token {})", group,
                                   count, what, largest, e.first_bad_token));
  };
  add(e.bad_codewords, "a codeword that is not the nearest", e.codeword_gap);
  add(e.bad_selections, "experts that are not the K best candidates", e.score_gap);
  add(e.bad_gates, "gates that are not the softmax of the scores", e.gate_error);
  add(e.bad_outputs, "an output that is not the sum of its experts", e.output_error);
}

Json check(const StoredFile& file, StoredData& data, const std::string& group, Problems& problems) {
  const TraceArrays trace = load(file, data, group);
  const TraceErrors e = compare_with_oracle(trace);
  add_problems(group, e, problems);
  const bool homes = std::all_of(trace.home_rank.begin(), trace.home_rank.end(),
                                 [](int32_t rank) { return rank >= 0; });
  if (!homes) problems.push_back(fmt::format("{}/home_rank: negative ranks", group));
  return {{"layer", group},
          {"tokens", trace.tokens},
          {"active", trace.active},
          {"jitter", trace.jitter},
          {"activation", trace.activation},
          {"codeword_gap", e.codeword_gap},
          {"score_gap", e.score_gap},
          {"gate_error", e.gate_error},
          {"output_error", e.output_error},
          {"output_max", e.output_size}};
}

}  // namespace

Json check_traces(const StoredFile& file, StoredData& data, Problems& problems) {
  Json result = Json::array();
  for (const auto& group : groups_with(file, "hidden")) {
    try {
      result.push_back(check(file, data, group, problems));
    } catch (const Error& e) {
      problems.push_back(fmt::format("{}: {}", group, e.what()));
    }
  }
  return result;
}

}  // namespace airmoe::inspect
