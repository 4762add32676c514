#pragma once
// Programs in which every test skipped itself: CTest shows them as skipped, not as passed.

#include <gtest/gtest.h>

namespace airmoe::test {

/// Exit code of a program of one process, SKIP_RETURN_CODE in tests/cmake/AirmoeTest.cmake.
inline constexpr int kSkipped = 77;
/// Last line of a program of several ranks, whose exit code mpirun may change; there
/// SKIP_REGULAR_EXPRESSION.
inline constexpr const char* kSkippedLine = "skipped: every test of this program";

/// Local, after RUN_ALL_TESTS(): there were tests, and all skipped themselves.
inline bool all_skipped() {
  const ::testing::UnitTest& tests = *::testing::UnitTest::GetInstance();
  return tests.test_to_run_count() > 0 && tests.skipped_test_count() == tests.test_to_run_count();
}

}  // namespace airmoe::test
