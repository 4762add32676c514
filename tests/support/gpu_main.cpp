// main() of tests on one GPU. Without a device it prints why and exits 77, which CTest calls
// skipped.

#include <cstdio>
#include <string>

#include <gtest/gtest.h>

#include "comm/base/blas.hpp"
#include "comm/base/cuda/device.hpp"

int main(int argc, char** argv) {
  airmoe::blas::prepare_process(argv);
  ::testing::InitGoogleTest(&argc, argv);
  std::string reason;
  if (airmoe::cuda::device_count(&reason) == 0) {
    std::printf("skipped: %s\n", reason.c_str());
    return 77;
  }
  airmoe::cuda::use_device(0);
  return RUN_ALL_TESTS();
}
