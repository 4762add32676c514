// A checkpoint of experts that are anywhere holds the same bytes as one of experts in blocks.

#include "scheduler/residency/block_staging.hpp"
#include "scheduler/store/checkpoint.hpp"
#include "scheduler/store/stored_data.hpp"
#include "tests/scheduler/residency_case.hpp"
#include "tests/scheduler/store_support.hpp"

namespace airmoe::test {
namespace {

using scheduler::BlockStaging;
using scheduler::StateArray;

class ResidencyStaging : public ::testing::TestWithParam<int64_t> {
 protected:
  ResidencyStaging() : c(GetParam(), SumPrecision::f64) {}
  void TearDown() override { world().barrier(); }  // rank 0 removes the directory

  // What a model does to save: each array of experts through the staging.
  std::vector<StateArray> state(BlockStaging& staging) {
    const BlockPartition blocks{GetParam(), c.ranks};
    std::vector<StateArray> arrays;
    const auto add = [&](const char* path, Buffer<float>& rows, int64_t size) {
      StateArray a;
      a.path = path;
      a.shape = {GetParam(), size};
      a.row_begin = blocks.begin(c.rank);
      a.row_count = blocks.size(c.rank);
      a.data = staging.stage(c.residency, rows.data(), size);
      arrays.push_back(a);
    };
    add("/layers/00/moe/unit", c.unit, c.kUnit);
    add("/layers/00/moe/up", c.up, c.kUp);
    add("/optimizer/moment1/layers/00/moe/up", c.moment, c.kMoment);
    return arrays;
  }
  std::string save(int64_t step, BlockStaging& staging) {
    const auto arrays = state(staging);
    return save_checkpoint(world(), dir.path(), test_meta(step), arrays).path;
  }
  // The bytes of every dataset, in order.
  static std::vector<std::vector<char>> contents(const std::string& path) {
    const scheduler::StoredFile file = scheduler::read_stored_file(path);
    scheduler::StoredData data(file);
    std::vector<std::vector<char>> all;
    for (const auto& d : file.datasets) {
      all.emplace_back(static_cast<std::size_t>(d.bytes()));
      data.read_rows(d, 0, d.rows(), all.back().data());
    }
    return all;
  }

  TestDirectory dir{world()};
  ResidencyCase c;
};

TEST_P(ResidencyStaging, CopiesNothingWhileHomesAreBlocks) {
  BlockStaging staging;
  c.comm.reset();
  EXPECT_EQ(staging.stage(c.residency, c.up.data(), c.kUp), c.up.data());
  EXPECT_EQ(c.sent("to_blocks"), 0);
}

TEST_P(ResidencyStaging, KeepsEveryArrayUntilCleared) {
  c.residency.set_homes(random_homes(GetParam(), c.ranks, 2));
  const bool moved = !c.residency.in_blocks();
  BlockStaging staging;
  for (int round = 0; round < 2; ++round) {
    const std::vector<StateArray> arrays = state(staging);
    const std::vector<int32_t> mine = experts_of(block_homes(GetParam(), c.ranks), c.rank);
    for (std::size_t a = 0; a < arrays.size(); ++a) {
      const auto* rows = static_cast<const float*>(arrays[a].data);
      const int64_t size = arrays[a].shape[1];
      for (int64_t i = 0; i < std::ssize(mine) * size; ++i) {
        EXPECT_EQ(rows[i], element(mine[i / size], static_cast<int>(a), i % size));
      }
    }
    EXPECT_EQ(arrays[1].data == c.up.data(), !moved || mine.empty());
    staging.clear();
  }
}

TEST_P(ResidencyStaging, ACheckpointDoesNotShowTheHomes) {
  BlockStaging staging;
  const std::string in_blocks = save(1, staging);
  c.residency.set_homes(random_homes(GetParam(), c.ranks, 3));
  const auto wishes = random_wishes(GetParam(), c.ranks, 3);
  c.residency.acquire(wishes[c.rank]);
  const std::string scattered = save(2, staging);
  staging.clear();
  c.residency.drop_copies();
  EXPECT_EQ(contents(in_blocks), contents(scattered));

  // The way back: homes are blocks again and the file fills in every row.
  c.residency.reset_homes();
  for (Buffer<float>* rows : {&c.unit, &c.up, &c.moment}) rows->fill(-1.0f);
  const auto opened = scheduler::open_checkpoint(world(), scattered);
  restore_checkpoint(world(), opened, state(staging));
  c.expect_index(block_homes(GetParam(), c.ranks), {});
  c.expect_owned(0);
}

INSTANTIATE_TEST_SUITE_P(All, ResidencyStaging, ::testing::Values(41, 600, 3));

}  // namespace
}  // namespace airmoe::test
