#include "scheduler/store/src/coverage.hpp"

#include <algorithm>
#include <array>
#include <set>
#include <vector>

#include "comm/base/error.hpp"
#include "scheduler/store/agreement.hpp"
#include "scheduler/store/src/crc32c.hpp"

namespace airmoe::scheduler {

namespace {

void check_local(std::span<const StoredArray> arrays) {
  std::set<std::string> seen;
  for (const auto& a : arrays) {
    AIRMOE_CHECK(a.path.size() > 1 && a.path[0] == '/', "dataset path {} is not absolute", a.path);
    AIRMOE_CHECK(seen.insert(a.path).second, "dataset {} is named twice", a.path);
    AIRMOE_CHECK(!a.shape.empty() &&
                     std::all_of(a.shape.begin(), a.shape.end(), [](int64_t n) { return n >= 0; }),
                 "dataset {} has shape {}", a.path, shape_text(a.shape));
    AIRMOE_CHECK(a.row_count >= 0 && a.row_begin >= 0 && a.row_begin + a.row_count <= a.shape[0],
                 "dataset {} {}: rows {} to {} do not exist", a.path, shape_text(a.shape),
                 a.row_begin, a.row_begin + a.row_count);
    AIRMOE_CHECK(a.data != nullptr || a.row_count == 0, "dataset {} has no data", a.path);
  }
}

uint32_t fingerprint(std::span<const StoredArray> arrays) {
  uint32_t crc = 0;
  for (const auto& a : arrays) {
    const std::string line =
        fmt::format("{} {} {}\n", a.path, name_of(a.dtype), shape_text(a.shape));
    crc = crc32c(crc, line.data(), std::ssize(line));
  }
  return crc;
}

struct Rows {
  int64_t begin;
  int64_t end;
  int rank;
};

void check_rows(const StoredArray& array, std::vector<Rows>& rows) {
  std::sort(rows.begin(), rows.end(), [](const Rows& a, const Rows& b) {
    return std::tie(a.begin, a.end) < std::tie(b.begin, b.end);
  });
  int64_t next = 0;
  for (const auto& r : rows) {
    if (r.begin == r.end) continue;
    AIRMOE_CHECK(r.begin >= next, "dataset {}: row {} of rank {} is written by another rank too",
                 array.path, r.begin, r.rank);
    AIRMOE_CHECK(r.begin == next, "dataset {}: no rank writes rows {} to {}", array.path, next,
                 r.begin - 1);
    next = r.end;
  }
  AIRMOE_CHECK(next == array.shape[0], "dataset {}: no rank writes rows {} to {}", array.path, next,
               array.shape[0] - 1);
}

}  // namespace

void check_coverage(comm::Communicator& comm, std::span<const StoredArray> arrays) {
  together(comm, [&] { check_local(arrays); });
  const auto ranks = static_cast<std::size_t>(comm.size());

  const std::array<int64_t, 2> mine = {std::ssize(arrays), fingerprint(arrays)};
  std::vector<int64_t> all(2 * ranks);
  comm.all_gather(mine, std::span(all));
  for (std::size_t r = 0; r < ranks; ++r) {
    AIRMOE_CHECK(all[2 * r] == all[0] && all[2 * r + 1] == all[1],
                 "ranks 0 and {} name different arrays to write ({} and {})", r, all[0],
                 all[2 * r]);
  }

  std::vector<int64_t> range;
  for (const auto& a : arrays) {
    range.push_back(a.row_begin);
    range.push_back(a.row_begin + a.row_count);
  }
  std::vector<int64_t> ranges(ranks * range.size());
  comm.all_gather(range, std::span(ranges));
  std::vector<Rows> rows(ranks);
  for (std::size_t i = 0; i < arrays.size(); ++i) {
    for (std::size_t r = 0; r < ranks; ++r) {
      const std::size_t at = r * range.size() + 2 * i;
      rows[r] = {ranges[at], ranges[at + 1], static_cast<int>(r)};
    }
    check_rows(arrays[i], rows);
  }
}

}  // namespace airmoe::scheduler
