#include <algorithm>
#include <optional>
#include <set>

#include "comm/base/error.hpp"
#include "scheduler/store/agreement.hpp"
#include "scheduler/store/checkpoint.hpp"
#include "scheduler/store/stored_data.hpp"

namespace airmoe::scheduler {

namespace {

// "--experts 4096 -> 8192", or the dimension's number when no option is known.
std::string difference(const StateArray& want, const DatasetInfo& have) {
  if (want.shape.size() != have.shape.size()) {
    return fmt::format("{} dimensions -> {}", have.shape.size(), want.shape.size());
  }
  std::string text;
  for (std::size_t i = 0; i < want.shape.size(); ++i) {
    if (want.shape[i] == have.shape[i]) continue;
    const bool named = i < want.options.size() && !want.options[i].empty();
    text += fmt::format("{}{} {} -> {}", text.empty() ? "" : ", ",
                        named ? "--" + want.options[i] : fmt::format("dimension {}", i),
                        have.shape[i], want.shape[i]);
  }
  return text;
}

void check_array(const StoredFile& file, const StateArray& want, std::size_t wanted) {
  const DatasetInfo* have = file.find(want.path);
  if (have == nullptr) {
    fail(ExitCode::bad_data,
         "checkpoint {}: no dataset {} (the file has {} datasets, this run wants {})", file.path,
         want.path, file.datasets.size(), wanted);
  }
  if (have->shape != want.shape) {
    fail(ExitCode::config,
         "checkpoint {}: {} is {}, the model wants {}: {}. Resume with the options it was made "
         "with, or start anew in another directory.",
         file.path, want.path, shape_text(have->shape), shape_text(want.shape),
         difference(want, *have));
  }
  if (have->dtype != want.dtype) {
    fail(ExitCode::config, "checkpoint {}: {} holds {}, the model wants {}", file.path, want.path,
         name_of(have->dtype), name_of(want.dtype));
  }
  AIRMOE_CHECK(want.replicated || (want.row_begin >= 0 && want.row_count >= 0 &&
                                   want.row_begin + want.row_count <= have->rows()),
               "{}: rows {} to {} do not exist", want.path, want.row_begin,
               want.row_begin + want.row_count);
}

void check_unused(const StoredFile& file, std::span<const StateArray> arrays) {
  std::set<std::string> wanted;
  for (const auto& a : arrays) wanted.insert(a.path);
  for (const auto& d : file.datasets) {
    if (wanted.contains(d.path)) continue;
    fail(ExitCode::config,
         "checkpoint {}: dataset {} {} has no place in this model (the file has {} datasets, this "
         "run wants {})",
         file.path, d.path, shape_text(d.shape), file.datasets.size(), arrays.size());
  }
}

// A piece of an array that is read in one go.
struct Piece {
  const StateArray* array;
  const DatasetInfo* dataset;
  int64_t row_begin;
  int64_t row_count;
};

std::vector<Piece> local_pieces(const StoredFile& file, std::span<const StateArray> arrays) {
  std::vector<Piece> pieces;
  for (const auto& a : arrays) {
    const DatasetInfo* d = file.find(a.path);
    const int64_t end = a.replicated ? d->rows() : a.row_begin + a.row_count;
    const int64_t step = 16 * d->block_rows;
    for (int64_t row = a.replicated ? 0 : a.row_begin; row < end;) {
      const int64_t next = std::min(end, (row / step + 1) * step);
      pieces.push_back({&a, d, row, next - row});
      row = next;
    }
  }
  return pieces;
}

}  // namespace

void restore_checkpoint(comm::Communicator& comm, const OpenedCheckpoint& opened,
                        std::span<const StateArray> arrays, const RestoreOptions& options) {
  const comm::ScopedPhase phase(comm, "checkpoint restore");
  std::optional<StoredData> data;
  together(comm, [&] {
    for (const auto& a : arrays) check_array(opened.file, a, arrays.size());
    if (!options.allow_unused) check_unused(opened.file, arrays);
    data.emplace(opened.file);
  });
  const auto pieces = local_pieces(opened.file, arrays);
  std::vector<int64_t> bytes;
  for (const auto& p : pieces) bytes.push_back(p.row_count * p.dataset->row_bytes());
  const auto read = [&](std::size_t i) {
    const Piece& p = pieces[i];
    const int64_t first = p.array->replicated ? 0 : p.array->row_begin;
    auto* target = static_cast<char*>(p.array->data);
    data->read_rows(*p.dataset, p.row_begin, p.row_count,
                    target + (p.row_begin - first) * p.dataset->row_bytes());
  };
  in_rounds(comm, bytes, read, [] {});
}

}  // namespace airmoe::scheduler
