#include <optional>

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include "comm/base/error.hpp"
#include "scheduler/store/directory_lock.hpp"
#include "scheduler/store_support.hpp"
#include "support/mpi_test.hpp"

namespace airmoe::scheduler {
namespace {

using test::TestDirectory;

class Lock : public ::testing::Test {
 protected:
  void TearDown() override { comm_.barrier(); }  // rank 0 removes the directory

  /// Collective: 0 when the lock was had (and given back unless `hold`), else the error's code.
  int take(bool hold = false) {
    notices_.clear();
    try {
      lock_.emplace(comm_, dir_.path(), [this](const std::string& l) { notices_.push_back(l); });
    } catch (const Error& e) {
      text_ = e.what();
      return static_cast<int>(e.code());
    }
    if (!hold) lock_.reset();
    comm_.barrier();
    return 0;
  }
  /// Collective: rank 0 writes a lock file whose heartbeat is `age` seconds old.
  void write_lock(const std::string& text, int age) {
    comm_.barrier();
    if (comm_.rank() == 0) {
      std::ofstream(lock_path_) << text;
      const timespec then{::time(nullptr) - age, 0};
      const timespec times[2] = {then, then};
      ::utimensat(AT_FDCWD, lock_path_.c_str(), times, 0);
    }
    comm_.barrier();
  }
  bool told(const std::string& part) const {
    if (comm_.rank() != 0) return notices_.empty();
    for (const auto& line : notices_) {
      if (line.find(part) != std::string::npos) return true;
    }
    return false;
  }

  comm::Communicator& comm_ = test::world();
  TestDirectory dir_{comm_};
  std::string lock_path_ = dir_.file(".lock");
  std::optional<DirectoryLock> lock_;
  std::vector<std::string> notices_;
  std::string text_;
};

std::string other_host(const std::string& job) {
  return R"({"host":"far-away","pid":1,"start_time":5,"job":")" + job + R"(","nonce":"n"})";
}

TEST_F(Lock, SecondTakerIsRefusedUntilTheFirstLeaves) {
  ASSERT_ON_ALL_RANKS(take(true) == 0);
  try {
    DirectoryLock second(comm_, dir_.path());
    ADD_FAILURE() << "two runs hold the directory";
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), ExitCode::try_again);
    EXPECT_NE(std::string(e.what()).find("is in use by"), std::string::npos) << e.what();
  }
  lock_->refresh();
  lock_.reset();
  comm_.barrier();
  EXPECT_FALSE(std::filesystem::exists(lock_path_));
  comm_.barrier();
  EXPECT_EQ(take(), 0);
}

TEST_F(Lock, FreshHeartbeatOfAnotherHostCounts) {
  write_lock(other_host("4712"), 4);
  EXPECT_EQ(take(), 75);
  EXPECT_NE(text_.find("job 4712 on node far-away (heartbeat "), std::string::npos) << text_;
}

TEST_F(Lock, StaleHeartbeatOfAnotherHostIsTakenOver) {
  write_lock(other_host("4712"), 100);
  EXPECT_EQ(take(), 0);
  EXPECT_TRUE(told("taking over the lock of job 4712")) << notices_.size();
}

TEST_F(Lock, DeadProcessOfThisHostIsTakenOverAtOnce) {
  int pid = 0;
  if (comm_.rank() == 0) {
    pid = ::fork();
    if (pid == 0) ::_exit(0);
    ::waitpid(pid, nullptr, 0);
  }
  char host[256] = {};
  ::gethostname(host, sizeof(host) - 1);
  write_lock(R"({"host":")" + std::string(host) + R"(","pid":)" + std::to_string(pid) +
                 R"(,"start_time":7,"job":"","nonce":"n"})",
             0);
  EXPECT_EQ(take(), 0);
  EXPECT_TRUE(told("its process is gone"));
}

TEST_F(Lock, HalfWrittenLockIsLeftAloneWhileFresh) {
  write_lock("", 0);
  EXPECT_EQ(take(), 75);
  write_lock("{\"host\":", 100);
  EXPECT_EQ(take(), 0);
}

TEST_F(Lock, OrphansAreRemovedAndNamed) {
  comm_.barrier();
  if (comm_.rank() == 0) {
    std::ofstream(dir_.file("step-000000013.h5.tmp.4711.a3")) << "half";
    std::ofstream(dir_.file("latest.tmp.4711.a4")) << "half";
    std::ofstream(dir_.file("notes.tmp.1.txt")) << "a user's file";
  }
  comm_.barrier();
  EXPECT_EQ(take(), 0);
  EXPECT_TRUE(told("ignoring step-000000013.h5.tmp.4711.a3 (job or process 4711 ended"));
  comm_.barrier();
  EXPECT_EQ(dir_.names(), std::vector<std::string>{"notes.tmp.1.txt"});
}

}  // namespace
}  // namespace airmoe::scheduler
