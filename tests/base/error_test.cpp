#include "comm/base/error.hpp"

#include <string>

#include <gtest/gtest.h>

namespace airmoe {
namespace {

TEST(Error, FailCarriesMessageAndCode) {
  try {
    fail(ExitCode::config, "K = {} exceeds M = {}", 5, 3);
  } catch (const Error& error) {
    EXPECT_STREQ(error.what(), "K = 5 exceeds M = 3");
    EXPECT_EQ(error.code(), ExitCode::config);
    EXPECT_EQ(static_cast<int>(error.code()), 78);
    return;
  }
  FAIL() << "no error";
}

TEST(Error, CheckNamesPlaceAndCondition) {
  const int rows = 4;
  AIRMOE_CHECK(rows == 4, "never seen");
  try {
    AIRMOE_CHECK(rows > 10, "only {} rows", rows);
    FAIL() << "no error";
  } catch (const Error& error) {
    const std::string what = error.what();
    EXPECT_NE(what.find("only 4 rows"), std::string::npos) << what;
    EXPECT_NE(what.find("error_test.cpp"), std::string::npos) << what;
    EXPECT_NE(what.find("rows > 10"), std::string::npos) << what;
    EXPECT_EQ(error.code(), ExitCode::failure);
  }
}

TEST(Error, CheckIsOneStatement) {
  bool reached = false;
  if (true)
    AIRMOE_CHECK(true, "one statement");
  else
    reached = true;
  EXPECT_FALSE(reached);
}

TEST(Error, AssertChecksDebugBuildsOnly) {
#ifdef NDEBUG
  AIRMOE_ASSERT(false);
#else
  EXPECT_THROW(AIRMOE_ASSERT(false), Error);
#endif
}

}  // namespace
}  // namespace airmoe
