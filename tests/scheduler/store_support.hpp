#pragma once
// A training state for the tests of the store: every value follows from its global place, so that
// whoever reads a row knows what it must be.

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include <unistd.h>

#include "comm/base/partition.hpp"
#include "comm/communicator.hpp"
#include "scheduler/store/checkpoint.hpp"
#include "scheduler/store/sharded_file.hpp"

namespace airmoe::test {

/// One array of the state with its memory.
struct TestArray {
  std::string path;
  DType dtype;
  std::vector<int64_t> shape;
  bool replicated;
  int64_t row_begin = 0, row_count = 0;
  std::vector<char> bytes = {};

  int64_t row_size() const {
    int64_t n = 1;
    for (std::size_t i = 1; i < shape.size(); ++i) n *= shape[i];
    return n;
  }
};

/// Element `i` of the array number `array`: exact in every type.
inline int64_t expected_value(std::size_t array, int64_t i) {
  return (i * 7 + static_cast<int64_t>(array) * 1000003) % 65521;
}

template <class T>
void fill_as(TestArray& a, std::size_t index) {
  auto* out = reinterpret_cast<T*>(a.bytes.data());
  const int64_t first = a.row_begin * a.row_size();
  for (int64_t i = 0; i < a.row_count * a.row_size(); ++i) {
    out[i] = static_cast<T>(expected_value(index, first + i) % (sizeof(T) == 1 ? 251 : 65521));
  }
}

inline void fill(TestArray& a, std::size_t index) {
  switch (a.dtype) {
    case DType::u8:
      return fill_as<uint8_t>(a, index);
    case DType::i32:
      return fill_as<int32_t>(a, index);
    case DType::u32:
      return fill_as<uint32_t>(a, index);
    case DType::i64:
      return fill_as<int64_t>(a, index);
    case DType::u64:
      return fill_as<uint64_t>(a, index);
    case DType::f32:
      return fill_as<float>(a, index);
    case DType::f64:
      return fill_as<double>(a, index);
  }
}

struct TestState {
  std::vector<TestArray> arrays;

  /// Rows of `rank` of `ranks`. `experts` rows of 256 bytes: with 40003 of them /layers/00/moe/up
  /// has three checksum blocks, whose borders are not those of the ranks.
  TestState(int64_t experts, int rank, int ranks) {
    arrays = {{"/embedding", DType::f32, {17, 5}, true},
              {"/layers/00/moe/up", DType::f32, {experts, 2, 32}, false},
              {"/layers/00/moe/centroid", DType::f64, {experts, 3}, false},
              {"/lists/ids", DType::i32, {6, 4}, true},
              {"/lists/counts", DType::u64, {6}, true},
              {"/stats/hits", DType::u32, {experts}, false},
              {"/stats/bytes", DType::u8, {2, 3}, false},
              {"/stats/empty", DType::i64, {0, 4}, false}};
    for (std::size_t i = 0; i < arrays.size(); ++i) {
      TestArray& a = arrays[i];
      const BlockPartition rows{a.shape[0], ranks};
      a.row_begin = a.replicated ? 0 : rows.begin(rank);
      a.row_count = a.replicated ? a.shape[0] : rows.size(rank);
      a.bytes.resize(static_cast<std::size_t>(a.row_count * a.row_size() * size_of(a.dtype)));
      fill(a, i);
    }
  }

  std::vector<scheduler::StateArray> views() {
    std::vector<scheduler::StateArray> result;
    for (auto& a : arrays) {
      result.push_back(
          {a.path, a.dtype, a.shape, a.replicated, a.row_begin, a.row_count, a.bytes.data(), {}});
    }
    return result;
  }

  void clear() {
    for (auto& a : arrays) a.bytes.assign(a.bytes.size(), '\x5a');
  }

  friend bool operator==(const TestState& a, const TestState& b) {
    for (std::size_t i = 0; i < a.arrays.size(); ++i) {
      if (a.arrays[i].bytes != b.arrays[i].bytes) return false;
    }
    return a.arrays.size() == b.arrays.size();
  }
};

inline scheduler::CheckpointMeta test_meta(int64_t step) {
  scheduler::CheckpointMeta meta;
  meta.step = step;
  meta.tokens = step * 1000;
  meta.samples = step * 10;
  meta.config_json = R"({"experts": 40003, "name": "ü"})";
  meta.model_digest = "d1";
  meta.writer = "airmoe-test 0.1.0";
  return meta;
}

/// A fresh directory, removed at the end; the same on all ranks. Collective.
class TestDirectory {
 public:
  explicit TestDirectory(comm::Communicator& comm) : root_(comm.rank() == 0) {
    std::string name(64, '\0');
    if (root_) {
      std::string made = (std::filesystem::temp_directory_path() / "airmoe-test-XXXXXX").string();
      if (::mkdtemp(made.data()) != nullptr) made.copy(name.data(), name.size() - 1);
    }
    comm.broadcast(std::span<uint8_t>(reinterpret_cast<uint8_t*>(name.data()), name.size()), 0);
    path_ = name.c_str();
  }
  ~TestDirectory() {
    if (root_) std::filesystem::remove_all(path_);
  }
  const std::string& path() const { return path_; }
  std::string file(const std::string& name) const { return path_ + "/" + name; }
  /// Names in the directory, sorted.
  std::vector<std::string> names() const {
    std::vector<std::string> result;
    for (const auto& e : std::filesystem::directory_iterator(path_)) {
      result.push_back(e.path().filename().string());
    }
    std::sort(result.begin(), result.end());
    return result;
  }

 private:
  bool root_;
  std::string path_;
};

/// Changes one bit.
inline void flip_bit(const std::string& path, int64_t byte, int bit) {
  std::fstream file(path, std::ios::in | std::ios::out | std::ios::binary);
  file.seekg(byte);
  const char c = static_cast<char>(file.get() ^ (1 << bit));
  file.seekp(byte);
  file.put(c);
}

}  // namespace airmoe::test
