#include <cstring>

#include <sys/resource.h>

#include "comm/base/error.hpp"
#include "scheduler/store/sharded_file.hpp"
#include "scheduler/store/stored_data.hpp"
#include "scheduler/store_support.hpp"
#include "support/mpi_test.hpp"

namespace airmoe::scheduler {
namespace {

using test::TestDirectory;
using test::TestState;

std::vector<StoredArray> stored(TestState& state, int rank) {
  std::vector<StoredArray> result;
  for (auto& a : state.arrays) {
    const bool rows_here = !a.replicated || rank == 0;
    result.push_back({a.path, a.dtype, a.shape, rows_here ? a.row_begin : 0,
                      rows_here ? a.row_count : 0, a.bytes.data()});
  }
  return result;
}

FileHeader header() {
  return {"airmoe-trace", 1, {{"/", "note", std::string("n")}, {"/g/h", "x", 0.1}}};
}

// Error code of a collective call that must fail, 0 when it does not; the message goes to `text`.
template <class Call>
int code_of(Call&& call, std::string& text) {
  try {
    call();
  } catch (const Error& e) {
    text = e.what();
    return static_cast<int>(e.code());
  }
  return 0;
}

class ShardedFile : public ::testing::Test {
 protected:
  void TearDown() override { comm_.barrier(); }  // rank 0 removes the directory

  comm::Communicator& comm_ = test::world();
  TestDirectory dir_{comm_};
  std::string path_ = dir_.file("f.h5");
};

TEST_F(ShardedFile, EveryRowComesBack) {
  for (const int64_t experts : {int64_t{0}, int64_t{1}, int64_t{2}, int64_t{40003}}) {
    TestState state(experts, comm_.rank(), comm_.size());
    const auto arrays = stored(state, comm_.rank());
    const WriteResult result = write_sharded_file(comm_, path_, header(), arrays);
    const TestState all(experts, 0, 1);
    const StoredFile file = read_stored_file(path_);
    EXPECT_EQ(file.bytes, result.bytes);
    EXPECT_EQ(file.root_digest, result.root_digest);
    EXPECT_EQ(file.text("note"), "n");
    EXPECT_EQ(std::get<double>(*file.attribute("/g/h", "x")), 0.1);
    EXPECT_EQ(file.datasets.size(), all.arrays.size());
    StoredData data(file);
    for (const auto& a : all.arrays) {
      const DatasetInfo* d = file.find(a.path);
      ASSERT_NE(d, nullptr);
      EXPECT_EQ(d->shape, a.shape);
      EXPECT_EQ(d->dtype, a.dtype);
      std::vector<char> bytes(a.bytes.size());
      data.read_rows(*d, 0, d->rows(), bytes.data());
      EXPECT_EQ(bytes, a.bytes) << a.path;
      BlockFault fault;
      for (int64_t b = 0; b < d->num_blocks(); ++b) EXPECT_TRUE(data.verify_block(*d, b, fault));
    }
    if (experts == 40003) {
      EXPECT_EQ(file.find("/layers/00/moe/up")->num_blocks(), 3);
    }
    EXPECT_EQ(dir_.names(), std::vector<std::string>{"f.h5"});
    comm_.barrier();
  }
}

TEST_F(ShardedFile, RanksInAnyOrder) {
  const int64_t n = 10;
  const int reversed = comm_.size() - 1 - comm_.rank();
  const BlockPartition rows{n, comm_.size()};
  std::vector<int32_t> values;
  for (int64_t i = rows.begin(reversed); i < rows.end(reversed); ++i) {
    values.push_back(static_cast<int32_t>(100 + i));
  }
  const std::vector<StoredArray> arrays = {
      {"/a", DType::i32, {n}, rows.begin(reversed), rows.size(reversed), values.data()}};
  write_sharded_file(comm_, path_, header(), arrays);
  const StoredFile file = read_stored_file(path_);
  std::vector<int32_t> all(n);
  StoredData(file).read_rows(file.datasets[0], 0, n, all.data());
  for (int64_t i = 0; i < n; ++i) EXPECT_EQ(all[static_cast<std::size_t>(i)], 100 + i);
}

TEST_F(ShardedFile, ReadsPartsOfBlocks) {
  TestState state(40003, comm_.rank(), comm_.size());
  write_sharded_file(comm_, path_, header(), stored(state, comm_.rank()));
  const TestState all(40003, 0, 1);
  const StoredFile file = read_stored_file(path_);
  StoredData data(file);
  const auto& a = all.arrays[1];
  const int64_t row_bytes = a.row_size() * 4;
  const std::vector<std::pair<int64_t, int64_t>> ranges = {{0, 1},       {16383, 2}, {16384, 16384},
                                                           {100, 39000}, {40002, 1}, {5, 0}};
  for (const auto& [begin, count] : ranges) {
    std::vector<char> rows(static_cast<std::size_t>(count * row_bytes) + 1, 'x');
    data.read_rows(*file.find(a.path), begin, count, rows.data());
    EXPECT_EQ(std::memcmp(rows.data(), a.bytes.data() + begin * row_bytes,
                          static_cast<std::size_t>(count * row_bytes)),
              0);
    EXPECT_EQ(rows.back(), 'x');
  }
}

TEST_F(ShardedFile, RefusesMissingAndDoubleRows) {
  std::vector<float> values(8);
  std::string text;
  const int64_t all = comm_.size() * 2;
  const auto write = [&](int64_t begin, int64_t count) {
    const std::vector<StoredArray> arrays = {
        {"/a", DType::f32, {all}, begin, count, values.data()}};
    return code_of([&] { write_sharded_file(comm_, path_, header(), arrays); }, text);
  };
  const bool last = comm_.rank() == comm_.size() - 1;
  EXPECT_EQ(write(2 * comm_.rank(), last ? 1 : 2), 1);  // the last row is missing
  EXPECT_NE(text.find("no rank writes rows"), std::string::npos) << text;
  if (comm_.size() > 1) {
    EXPECT_EQ(write(last ? 2 * comm_.rank() - 1 : 2 * comm_.rank(), 2), 1);
    EXPECT_NE(text.find("written by another rank too"), std::string::npos) << text;
  }
  EXPECT_EQ(write(last ? all : 2 * comm_.rank(), 2), 1);  // rows that do not exist, on one rank
  EXPECT_TRUE(dir_.names().empty());
}

TEST_F(ShardedFile, RefusesDifferentArrays) {
  if (comm_.size() == 1) GTEST_SKIP() << "one rank agrees with itself";
  std::vector<float> values(2);
  const std::string name = comm_.rank() == 1 ? "/b" : "/a";
  const std::vector<StoredArray> arrays = {
      {name, DType::f32, {2}, 0, comm_.rank() == 0 ? 2 : 0, values.data()}};
  std::string text;
  EXPECT_EQ(code_of([&] { write_sharded_file(comm_, path_, header(), arrays); }, text), 1);
}

// A limit on the size of files stands for a full disk: the same calls fail, with EFBIG.
// tests/scheduler/ store_files_test.py does it on a full file system where it may mount one.
TEST_F(ShardedFile, NoSpaceLeavesTheOldFile) {
  TestState small(3, comm_.rank(), comm_.size());
  const WriteResult old = write_sharded_file(comm_, path_, header(), stored(small, comm_.rank()));
  rlimit before{};
  getrlimit(RLIMIT_FSIZE, &before);
  TestState large(40003, comm_.rank(), comm_.size());
  for (const rlim_t limit : {rlim_t{100}, rlim_t{5000}, rlim_t{1} << 20, rlim_t{11300000}}) {
    const rlimit tight{limit, before.rlim_max};
    if (comm_.rank() == 0) setrlimit(RLIMIT_FSIZE, &tight);
    std::string text;
    const auto write = [&] {
      write_sharded_file(comm_, path_, header(), stored(large, comm_.rank()));
    };
    EXPECT_EQ(code_of(write, text), 74) << limit;
    setrlimit(RLIMIT_FSIZE, &before);
    EXPECT_NE(text.find("cannot reserve"), std::string::npos) << text;
    EXPECT_NE(text.find("File too large"), std::string::npos) << text;
    EXPECT_NE(text.find("free on"), std::string::npos) << text;
  }
  // The rank with the most rows meets the limit only when it writes.
  if (comm_.size() > 1) {
    const rlimit tight{1 << 20, before.rlim_max};
    if (comm_.rank() == comm_.size() - 1) setrlimit(RLIMIT_FSIZE, &tight);
    std::string text;
    const auto write = [&] {
      write_sharded_file(comm_, path_, header(), stored(large, comm_.rank()));
    };
    EXPECT_EQ(code_of(write, text), 74);
    setrlimit(RLIMIT_FSIZE, &before);
    EXPECT_NE(text.find("cannot write: File too large"), std::string::npos) << text;
  }
  comm_.barrier();
  EXPECT_EQ(dir_.names(), std::vector<std::string>{"f.h5"});
  EXPECT_EQ(read_stored_file(path_).root_digest, old.root_digest);
}

TEST_F(ShardedFile, MissingDirectoryIsNamed) {
  TestState state(3, comm_.rank(), comm_.size());
  std::string text;
  const std::string nowhere = dir_.file("no/where.h5");
  const auto write = [&] {
    write_sharded_file(comm_, nowhere, header(), stored(state, comm_.rank()));
  };
  EXPECT_EQ(code_of(write, text), 74);
  EXPECT_NE(text.find(nowhere), std::string::npos) << text;
}

TEST_F(ShardedFile, ExtendKeepsOldAndReplacesSame) {
  const int64_t n = 4;
  std::vector<float> values(n);
  const auto write = [&](const std::string& name, float value, bool extend) {
    values.assign(n, value);
    const bool root = comm_.rank() == comm_.size() - 1;
    const std::vector<StoredArray> arrays = {
        {name, DType::f32, {n}, 0, root ? n : 0, values.data()}};
    const FileHeader h{"airmoe-trace", 1, {{"/", "note", name}, {"/s", name.substr(1), 1.0}}};
    write_sharded_file(comm_, path_, h, arrays, {true, extend});
  };
  write("/a", 1, false);
  write("/b", 2, true);
  write("/a", 3, true);
  const StoredFile file = read_stored_file(path_);
  EXPECT_EQ(file.datasets.size(), 2u);
  EXPECT_EQ(file.text("note"), "/a");
  EXPECT_NE(file.attribute("/s", "b"), nullptr);
  StoredData data(file);
  float a = 0;
  float b = 0;
  data.read_rows(*file.find("/a"), 3, 1, &a);
  data.read_rows(*file.find("/b"), 0, 1, &b);
  EXPECT_EQ(a, 3);
  EXPECT_EQ(b, 2);
}

}  // namespace
}  // namespace airmoe::scheduler
