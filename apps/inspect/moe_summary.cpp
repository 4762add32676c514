#include <algorithm>
#include <cmath>

#include "apps/inspect/arrays.hpp"
#include "apps/inspect/report.hpp"
#include "comm/base/error.hpp"

namespace airmoe::inspect {

namespace {

using scheduler::DatasetInfo;
using scheduler::StoredData;
using scheduler::StoredFile;

// Where the arrays of one MoE layer lie: a checkpoint has folders moe and router, a trace has one.
struct LayerPaths {
  std::string name;
  std::string experts;  // prefix of centroid
  std::string router;   // prefix of shortlist, counts
};

std::vector<LayerPaths> moe_layers(const StoredFile& file) {
  std::vector<LayerPaths> layers;
  for (const auto& group : groups_with(file, "centroid")) {
    const bool checkpoint = group.ends_with("/moe");
    const std::string layer = checkpoint ? group.substr(0, group.size() - 4) : group;
    layers.push_back({layer, group, checkpoint ? layer + "/router" : group});
  }
  return layers;
}

Json centroid_norms(const DatasetInfo& d, StoredData& data) {
  if (d.dtype != DType::f32 || d.rows() == 0) return nullptr;
  const int64_t width = d.row_bytes() / size_of(d.dtype);
  std::vector<float> rows(static_cast<std::size_t>(std::min(d.block_rows, d.rows()) * width));
  double least = INFINITY;
  double most = 0;
  double sum = 0;
  for (int64_t begin = 0; begin < d.rows(); begin += d.block_rows) {
    const int64_t count = std::min(d.block_rows, d.rows() - begin);
    data.read_rows(d, begin, count, rows.data());
    for (int64_t r = 0; r < count; ++r) {
      double square = 0;
      for (int64_t k = 0; k < width; ++k) {
        const double x = rows[static_cast<std::size_t>(r * width + k)];
        square += x * x;
      }
      const double norm = std::sqrt(square);
      least = std::min(least, norm);
      most = std::max(most, norm);
      sum += norm;
    }
  }
  return {{"min", least}, {"mean", sum / static_cast<double>(d.rows())}, {"max", most}};
}

Json codeword_counts(std::vector<float> counts) {
  if (counts.empty()) return nullptr;
  std::sort(counts.begin(), counts.end());
  const auto below = std::lower_bound(counts.begin(), counts.end(), 1.0f) - counts.begin();
  return {{"min", counts.front()},
          {"median", counts[counts.size() / 2]},
          {"max", counts.back()},
          {"below_one", below}};
}

// Ids in range and distinct per list; how much the lists share. The sum over pairs of lists of what
// they share is the sum over experts of c (c - 1) / 2, c = lists that hold the expert.
Json shortlist_statistics(const std::string& path, const std::vector<int32_t>& lists,
                          int64_t codewords, int64_t experts, Problems& problems) {
  const int64_t length = codewords == 0 ? 0 : std::ssize(lists) / codewords;
  std::vector<int64_t> held(static_cast<std::size_t>(experts), 0);
  std::vector<int64_t> last_list(static_cast<std::size_t>(experts), -1);
  int64_t bad_lists = 0;
  for (int64_t g = 0; g < codewords; ++g) {
    bool bad = false;
    for (int64_t i = 0; i < length; ++i) {
      const int32_t id = lists[static_cast<std::size_t>(g * length + i)];
      const bool in_range = id >= 0 && id < experts;
      const auto e = static_cast<std::size_t>(id);
      if (!bad && (!in_range || last_list[e] == g)) {
        bad = true;
        problems.push_back(in_range ? fmt::format("{}: list {} holds expert {} twice", path, g, id)
                                    : fmt::format("{}: list {} holds id {}, experts are 0-{}", path,
                                                  g, id, experts - 1));
      }
      if (!in_range) continue;
      if (last_list[e] != g) ++held[e];
      last_list[e] = g;
    }
    bad_lists += bad ? 1 : 0;
  }
  int64_t listed = 0;
  double shared = 0;
  for (const int64_t c : held) {
    listed += c > 0 ? 1 : 0;
    shared += 0.5 * static_cast<double>(c) * static_cast<double>(c - 1);
  }
  const double pairs = 0.5 * static_cast<double>(codewords) * static_cast<double>(codewords - 1);
  Json result = {{"lists", codewords}, {"length", length}, {"bad_lists", bad_lists}};
  result["experts_listed"] =
      experts == 0 ? 0.0 : static_cast<double>(listed) / static_cast<double>(experts);
  result["lists_per_listed_expert"] =
      listed == 0 ? 0.0 : static_cast<double>(codewords * length) / static_cast<double>(listed);
  result["most_lists_of_one_expert"] =
      held.empty() ? 0 : *std::max_element(held.begin(), held.end());
  result["mean_overlap"] =
      pairs == 0 || length == 0 ? 0.0 : shared / pairs / static_cast<double>(length);
  return result;
}

Json summarise(const LayerPaths& layer, const StoredFile& file, StoredData& data,
               Problems& problems) {
  const DatasetInfo& centroid = *file.find(layer.experts + "/centroid");
  Json result = {{"layer", layer.name}, {"experts", centroid.rows()}};
  result["centroid_norm"] = centroid_norms(centroid, data);
  if (file.find(layer.router + "/counts") != nullptr) {
    result["codeword_count"] =
        codeword_counts(read_array<float>(file, data, layer.router + "/counts", 1));
  }
  const std::string lists = layer.router + "/shortlist";
  if (const DatasetInfo* d = file.find(lists); d != nullptr) {
    result["shortlist"] = shortlist_statistics(lists, read_array<int32_t>(file, data, lists, 2),
                                               d->rows(), centroid.rows(), problems);
  }
  return result;
}

}  // namespace

Json summarise_moe_layers(const StoredFile& file, StoredData& data, Problems& problems) {
  Json result = Json::array();
  for (const auto& layer : moe_layers(file)) {
    try {
      result.push_back(summarise(layer, file, data, problems));
    } catch (const Error& e) {
      problems.push_back(fmt::format("{}: {}", layer.name, e.what()));
    }
  }
  return result;
}

}  // namespace airmoe::inspect
