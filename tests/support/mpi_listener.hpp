#pragma once
// GoogleTest output of a multi-rank run: rank 0 reports progress, every rank its own failures.

#include <cstdio>
#include <memory>
#include <sstream>
#include <string>
#include <thread>

#include <gtest/gtest.h>

#include "comm/mpi_environment.hpp"

namespace airmoe::test {

class MpiListener : public ::testing::EmptyTestEventListener {
 public:
  /// `printer` is GoogleTest's own; it is used on rank 0 only.
  MpiListener(const comm::MpiEnvironment& mpi, ::testing::TestEventListener* printer)
      : mpi_(mpi), printer_(printer) {}

  void OnTestProgramStart(const ::testing::UnitTest& test) override {
    if (mpi_.rank() == 0) printer_->OnTestProgramStart(test);
  }
  void OnTestIterationStart(const ::testing::UnitTest& test, int iteration) override {
    if (mpi_.rank() == 0) printer_->OnTestIterationStart(test, iteration);
  }
  void OnTestStart(const ::testing::TestInfo& test) override {
    if (mpi_.rank() == 0) printer_->OnTestStart(test);
  }
  void OnTestPartResult(const ::testing::TestPartResult& result) override {
    if (!result.failed()) {
      if (mpi_.rank() == 0) printer_->OnTestPartResult(result);
      return;
    }
    print_failure(result);
    if (result.fatally_failed() && mpi_.size() > 1) {
      std::this_thread::sleep_for(std::chrono::milliseconds(300));  // let other ranks report theirs
      comm::MpiEnvironment::abort_all(1);
    }
  }
  void OnTestEnd(const ::testing::TestInfo& test) override {
    if (mpi_.rank() == 0) printer_->OnTestEnd(test);
  }
  void OnTestIterationEnd(const ::testing::UnitTest& test, int iteration) override {
    if (mpi_.rank() == 0) printer_->OnTestIterationEnd(test, iteration);
  }

 private:
  void print_failure(const ::testing::TestPartResult& result) const {
    const char* file = result.file_name() == nullptr ? "unknown file" : result.file_name();
    std::istringstream lines(result.message());
    std::string text;
    std::string line;
    const std::string prefix = "[rank " + std::to_string(mpi_.rank()) + "] ";
    text += prefix + file + ":" + std::to_string(result.line_number()) + ": failure\n";
    while (std::getline(lines, line)) text += prefix + line + "\n";
    std::fputs(text.c_str(), stderr);
    std::fflush(stderr);
  }

  const comm::MpiEnvironment& mpi_;
  std::unique_ptr<::testing::TestEventListener> printer_;
};

}  // namespace airmoe::test
