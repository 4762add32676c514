// main() of single-process tests.

#include <gtest/gtest.h>

#include "comm/base/blas.hpp"

int main(int argc, char** argv) {
  airmoe::blas::prepare_process(argv);
  ::testing::InitGoogleTest(&argc, argv);
  return RUN_ALL_TESTS();
}
