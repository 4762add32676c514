// main() of tests on one GPU. Without a device it prints why and exits with kSkipped, as it does
// where every test skipped itself.

#include <cstdio>
#include <string>

#include <gtest/gtest.h>

#include "comm/base/blas.hpp"
#include "comm/base/cuda/device.hpp"
#include "tests/support/skipped.hpp"

int main(int argc, char** argv) {
  airmoe::blas::prepare_process(argv);
  ::testing::InitGoogleTest(&argc, argv);
  std::string reason;
  if (airmoe::cuda::device_count(&reason) == 0) {
    std::printf("skipped: %s\n", reason.c_str());
    return airmoe::test::kSkipped;
  }
  airmoe::cuda::use_device(0);
  const int code = RUN_ALL_TESTS();
  return code == 0 && airmoe::test::all_skipped() ? airmoe::test::kSkipped : code;
}
