#include <chrono>
#include <limits>
#include <set>

#include "comm/base/error.hpp"
#include "scheduler/store/checkpoint.hpp"
#include "scheduler/store_support.hpp"
#include "support/mpi_test.hpp"

namespace airmoe::scheduler {
namespace {

using test::TestDirectory;
using test::TestState;

class Checkpoint : public ::testing::Test {
 protected:
  void TearDown() override { comm_.barrier(); }  // rank 0 removes the directory

  SavedCheckpoint save(int64_t step, int64_t experts = 5, SaveOptions options = {}) {
    TestState state(experts, comm_.rank(), comm_.size());
    const auto views = state.views();
    return save_checkpoint(comm_, dir_.path(), test::test_meta(step), views, options);
  }
  /// Collective: rank 0 does it, the others wait.
  template <class Work>
  void on_root(Work&& work) {
    comm_.barrier();
    if (comm_.rank() == 0) work();
    comm_.barrier();
  }
  /// Collective: opens, expecting an error; returns its code, 0 without one.
  int open_code(const std::string& path) {
    notices_.clear();
    OpenOptions options;
    options.notify = [this](const std::string& line) { notices_.push_back(line); };
    try {
      opened_ = open_checkpoint(comm_, path, options);
    } catch (const Error& e) {
      text_ = e.what();
      return static_cast<int>(e.code());
    }
    return 0;
  }
  int restore_code(const std::vector<StateArray>& views, RestoreOptions options = {}) {
    try {
      restore_checkpoint(comm_, opened_, views, options);
    } catch (const Error& e) {
      text_ = e.what();
      return static_cast<int>(e.code());
    }
    return 0;
  }
  bool mentions(const std::string& part) const { return text_.find(part) != std::string::npos; }

  comm::Communicator& comm_ = test::world();
  TestDirectory dir_{comm_};
  OpenedCheckpoint opened_;
  std::string text_;
  std::vector<std::string> notices_;
};

TEST_F(Checkpoint, ComesBackWhole) {
  const SavedCheckpoint saved = save(12, 40003);
  EXPECT_EQ(saved.path, dir_.file("step-000000012.h5"));
  ASSERT_ON_ALL_RANKS(open_code(dir_.path()) == 0);
  EXPECT_EQ(opened_.meta.step, 12);
  EXPECT_EQ(opened_.meta.tokens, 12000);
  EXPECT_EQ(opened_.meta.samples, 120);
  EXPECT_EQ(opened_.meta.world_size, comm_.size());
  EXPECT_EQ(opened_.meta.config_json, test::test_meta(12).config_json);
  EXPECT_EQ(opened_.meta.model_digest, "d1");
  EXPECT_EQ(opened_.meta.uuid, saved.uuid);
  EXPECT_EQ(opened_.meta.created_utc.size(), 20u);
  const TestState expected(40003, comm_.rank(), comm_.size());
  TestState state = expected;
  state.clear();
  EXPECT_EQ(restore_code(state.views()), 0) << text_;
  EXPECT_TRUE(state == expected);
  EXPECT_EQ(dir_.names(), (std::vector<std::string>{"latest", "step-000000012.h5"}));
}

TEST_F(Checkpoint, RotationKeepsNewestAndProtected) {
  EXPECT_FALSE(has_checkpoint(comm_, dir_.path()));
  SaveOptions options;
  options.keep = 2;
  options.never_remove = dir_.file("step-000000001.h5");
  for (const int64_t step : {1, 2, 3}) save(step, 5, options);
  const SavedCheckpoint last = save(4, 5, options);
  EXPECT_EQ(last.removed, std::vector<std::string>{dir_.file("step-000000002.h5")});
  EXPECT_EQ(dir_.names(), (std::vector<std::string>{"latest", "step-000000001.h5",
                                                    "step-000000003.h5", "step-000000004.h5"}));
  EXPECT_TRUE(has_checkpoint(comm_, dir_.path()));
}

TEST_F(Checkpoint, GoingBackToAnOlderStepKeepsAndPrefersTheNewBranch) {
  SaveOptions options;
  options.keep = 1;
  save(30);
  const auto past = std::filesystem::file_time_type::clock::now() - std::chrono::hours(1);
  on_root([&] { std::filesystem::last_write_time(dir_.file("step-000000030.h5"), past); });
  save(11, 5, options);  // of a run that resumed from step 10
  EXPECT_EQ(open_code(dir_.path()), 0);
  EXPECT_EQ(opened_.meta.step, 11);
  EXPECT_TRUE(std::filesystem::exists(dir_.file("step-000000030.h5")));
}

TEST_F(Checkpoint, BadOnesArePassedOverAndNamed) {
  save(1);
  save(2, 40003);
  save(3);
  on_root([&] {
    std::filesystem::resize_file(dir_.file("step-000000003.h5"),
                                 std::filesystem::file_size(dir_.file("step-000000003.h5")) - 1);
  });
  ASSERT_ON_ALL_RANKS(open_code(dir_.file("step-000000002.h5")) == 0);
  const DatasetInfo up = *opened_.file.find("/layers/00/moe/up");
  on_root([&] { test::flip_bit(dir_.file("step-000000002.h5"), up.offset + 20000 * 256 + 77, 3); });
  EXPECT_EQ(open_code(dir_.path()), 0);
  EXPECT_EQ(opened_.meta.step, 1);
  if (comm_.rank() == 0) {
    ASSERT_EQ(notices_.size(), 2u);
    EXPECT_NE(notices_[0].find("cut short"), std::string::npos) << notices_[0];
    EXPECT_NE(notices_[0].find("Trying step-000000002.h5."), std::string::npos) << notices_[0];
    EXPECT_NE(notices_[1].find("/layers/00/moe/up block 1 (rows 16384-32767): CRC32C"),
              std::string::npos)
        << notices_[1];
  } else {
    EXPECT_TRUE(notices_.empty());
  }
  // A path to the file itself: no other is tried.
  EXPECT_EQ(open_code(dir_.file("step-000000002.h5")), 65);
  EXPECT_TRUE(mentions("step-000000002.h5") && mentions("block 1")) << text_;
  EXPECT_EQ(open_code(dir_.file("step-000000003.h5")), 65);
  on_root([&] { std::filesystem::resize_file(dir_.file("step-000000001.h5"), 0); });
  EXPECT_EQ(open_code(dir_.path()), 65);
  EXPECT_TRUE(mentions("none of its 3 checkpoints is good")) << text_;
}

TEST_F(Checkpoint, ForeignAndMissingFiles) {
  EXPECT_EQ(open_code(dir_.file("nothing.h5")), 65);
  EXPECT_TRUE(mentions("no such file")) << text_;
  EXPECT_EQ(open_code(dir_.path()), 65);
  EXPECT_TRUE(mentions("holds no checkpoint")) << text_;
  on_root([&] { std::ofstream(dir_.file("text.h5")) << "experts = 4096\n"; });
  EXPECT_EQ(open_code(dir_.file("text.h5")), 65);
  EXPECT_TRUE(mentions("not an HDF5 file")) << text_;
  write_sharded_file(comm_, dir_.file("t.h5"), {"airmoe-trace", 1, {}}, {});
  EXPECT_EQ(open_code(dir_.file("t.h5")), 65);
  EXPECT_TRUE(mentions("airmoe-trace")) << text_;
}

TEST_F(Checkpoint, NewerFormatIsRefusedNotPassedOver) {
  save(1);
  const FileHeader newer{"airmoe-checkpoint", 3, {{"/", "writer", std::string("airmoe 0.9")}}};
  try {  // the read-back refuses its own file too
    write_sharded_file(comm_, dir_.file("step-000000002.h5"), newer, {}, {false, false});
  } catch (const Error& e) {
    text_ = e.what();
  }
  EXPECT_TRUE(mentions("format_version 3, this program reads 1-1. Written by airmoe 0.9."))
      << text_;
}

TEST_F(Checkpoint, WrongModelIsNamedBeforeMemoryIsTouched) {
  save(1);
  ASSERT_ON_ALL_RANKS(open_code(dir_.path()) == 0);
  TestState larger(7, comm_.rank(), comm_.size());
  larger.clear();
  const TestState untouched = larger;
  auto views = larger.views();
  views[1].options = {"experts", "expert-dim", "dim"};
  EXPECT_EQ(restore_code(views), 78);
  EXPECT_TRUE(
      mentions("/layers/00/moe/up is [5 x 2 x 32], the model wants [7 x 2 x 32]: --experts "
               "5 -> 7"))
      << text_;
  EXPECT_TRUE(larger == untouched);

  TestState same(5, comm_.rank(), comm_.size());
  views = same.views();
  views.pop_back();
  EXPECT_EQ(restore_code(views), 78);
  EXPECT_TRUE(mentions("/stats/empty") && mentions("no place")) << text_;
  EXPECT_EQ(restore_code(views, {true}), 0);
  views[0].path = "/other";
  EXPECT_EQ(restore_code(views), 65);
  EXPECT_TRUE(mentions("no dataset /other")) << text_;
  // Only one rank asks for another type: all of them hear it.
  views = same.views();
  if (comm_.rank() == comm_.size() - 1) views[2].dtype = DType::i64;
  EXPECT_EQ(restore_code(views), 78);
  EXPECT_TRUE(mentions("holds f64, the model wants i64")) << text_;
}

TEST_F(Checkpoint, NotFiniteIsNotSaved) {
  save(1);
  TestState state(5, comm_.rank(), comm_.size());
  const int holder = comm_.size() - 1;
  if (comm_.rank() == holder) {
    auto* up = reinterpret_cast<float*>(state.arrays[1].bytes.data());
    up[(state.arrays[1].row_count - 1) * 64 + 9] = std::numeric_limits<float>::quiet_NaN();
  }
  int code = 0;
  try {
    save_checkpoint(comm_, dir_.path(), test::test_meta(2), state.views());
  } catch (const Error& e) {
    code = static_cast<int>(e.code());
    text_ = e.what();
  }
  EXPECT_EQ(code, 87);
  EXPECT_TRUE(mentions("/layers/00/moe/up row 4 is not finite")) << text_;
  EXPECT_EQ(dir_.names(), (std::vector<std::string>{"latest", "step-000000001.h5"}));
}

}  // namespace
}  // namespace airmoe::scheduler
