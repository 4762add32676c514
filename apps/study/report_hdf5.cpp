#include <algorithm>

#include <fmt/ranges.h>

#include "apps/common/version.hpp"
#include "apps/study/report.hpp"
#include "comm/mpi_communicator.hpp"
#include "scheduler/store/sharded_file.hpp"
#include "scheduler/store/study_file.hpp"

namespace airmoe::study {

namespace {

using scheduler::StoredArray;

// Columns as arrays that stay where they are until the file is written.
class Columns {
 public:
  explicit Columns(std::span<const Row> rows) : rows_(rows) {
    add("budget", [](const Row& r) { return r.budget; });
    add("candidate_ranks", [](const Row& r) { return r.candidate_ranks; });
    add("selected_ranks", [](const Row& r) { return r.selected_ranks; });
    add("copy_bytes_per_step", [](const Row& r) { return r.copy_bytes; });
    add("messages_mean", [](const Row& r) { return r.messages_mean; });
    add("messages_max", [](const Row& r) { return r.messages_max; });
    add("rows_max", [](const Row& r) { return r.rows_max; });
    add("memory_max_bytes", [](const Row& r) { return r.memory_max; });
    add("tokens_imbalance", [](const Row& r) { return r.tokens_imbalance; });
    add("work_imbalance", [](const Row& r) { return r.work_imbalance; });
    add("seconds", [](const Row& r) { return r.seconds; });
    add("estimated_bytes", [](const Row& r) { return r.estimated_bytes; });
    add("estimated_seconds", [](const Row& r) { return r.estimated_seconds; });
    add("plan_seconds", [](const Row& r) { return r.plan_seconds; });
    add_integers("ranks", [](const Row& r) { return int64_t{r.ranks}; });
    add_integers("tokens_per_rank", [](const Row& r) { return r.tokens_per_rank; });
    add_integers("best", [](const Row& r) { return int64_t{r.best}; });
    add_integers("strategy", [&](const Row& r) { return index(strategies_, r.strategy); });
    add_integers("placement", [&](const Row& r) { return index(placements_, r.placement); });
    reals_.emplace_back();
    for (const Row& row : rows) {
      reals_.back().insert(reals_.back().end(), row.bytes.begin(), row.bytes.end());
    }
    add_array("bytes_per_token", DType::f64, reals_.back().data(), {scheduler::kChannels});
  }

  std::span<const StoredArray> arrays() const { return arrays_; }
  std::string strategies() const { return fmt::format("{}", fmt::join(strategies_, ",")); }
  std::string placements() const { return fmt::format("{}", fmt::join(placements_, ",")); }

 private:
  static int64_t index(std::vector<std::string>& names, const std::string& name) {
    const auto at = std::find(names.begin(), names.end(), name);
    const int64_t place = at - names.begin();
    if (at == names.end()) names.push_back(name);
    return place;
  }
  template <class Get>
  void add(const char* name, Get&& get) {
    reals_.emplace_back();
    for (const Row& row : rows_) reals_.back().push_back(get(row));
    add_array(name, DType::f64, reals_.back().data(), {});
  }
  template <class Get>
  void add_integers(const char* name, Get&& get) {
    integers_.emplace_back();
    for (const Row& row : rows_) integers_.back().push_back(get(row));
    add_array(name, DType::i64, integers_.back().data(), {});
  }
  void add_array(const char* name, DType type, const void* data, std::vector<int64_t> inner) {
    inner.insert(inner.begin(), std::ssize(rows_));
    arrays_.push_back({.path = fmt::format("/study/{}", name),
                       .dtype = type,
                       .shape = std::move(inner),
                       .row_begin = 0,
                       .row_count = std::ssize(rows_),
                       .data = data});
  }

  std::span<const Row> rows_;
  std::vector<std::string> strategies_, placements_;
  std::vector<std::vector<double>> reals_;
  std::vector<std::vector<int64_t>> integers_;
  std::vector<StoredArray> arrays_;
};

}  // namespace

void write_hdf5(const std::string& path, const Subject& subject, std::span<const Row> rows) {
  const Columns columns(rows);
  std::vector<std::string> channels;
  for (int c = 0; c < scheduler::kChannels; ++c) {
    channels.emplace_back(scheduler::name_of(static_cast<scheduler::Channel>(c)));
  }
  const std::string group = "/study";
  const scheduler::FileHeader header{
      .format = scheduler::kStudyFormat,
      .version = scheduler::kStudyVersion,
      .attributes = {
          {"/", "writer", std::string("airmoe-study ") + apps::kVersion},
          {group, "source", subject.source},
          {group, "subject", subject.text()},
          {group, "synthetic", int64_t{subject.synthetic}},
          {group, "strategies", columns.strategies()},
          {group, "placements", columns.placements()},
          {group, "channels", fmt::format("{}", fmt::join(channels, ","))},
          {group, "latency_s", subject.machine.latency_s},
          {group, "bandwidth_bytes_per_s", subject.machine.bandwidth_bytes_per_s},
          {group, "memory_bandwidth_bytes_per_s", subject.machine.memory_bandwidth_bytes_per_s},
          {group, "flops", subject.machine.flops}}};
  const auto comm = comm::make_mpi_communicator(comm::MpiOptions{});
  scheduler::write_sharded_file(*comm, path, header, columns.arrays());
}

}  // namespace airmoe::study
