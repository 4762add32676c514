#include "comm/base/blas.hpp"

#include <array>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include <gtest/gtest.h>
#include <unistd.h>

#include "comm/base/error.hpp"

namespace airmoe::blas {
namespace {

std::vector<float> integers(int64_t count, int seed) {
  std::vector<float> x(static_cast<size_t>(count));
  for (size_t i = 0; i < x.size(); ++i) {
    x[i] = static_cast<float>(static_cast<int>((i * 7 + static_cast<size_t>(seed) * 13) % 11) - 5);
  }
  return x;
}

TEST(Blas, GemmOfIntegersIsExactForEveryOp) {
  constexpr int64_t m = 5, n = 7, k = 9, ld = 12;
  for (const Op op_a : {Op::none, Op::transpose}) {
    for (const Op op_b : {Op::none, Op::transpose}) {
      const std::vector<float> a = integers(12 * ld, 1), b = integers(12 * ld, 2);
      std::vector<float> c = integers(m * ld, 3);
      const std::vector<float> before = c;
      const ConstMatrix left =
          op_a == Op::none ? ConstMatrix(a.data(), m, k, ld) : ConstMatrix(a.data(), k, m, ld);
      const ConstMatrix right =
          op_b == Op::none ? ConstMatrix(b.data(), k, n, ld) : ConstMatrix(b.data(), n, k, ld);
      gemm(op_a, op_b, 2.0f, left, right, 3.0f, Matrix(c.data(), m, n, ld));
      for (int64_t i = 0; i < m; ++i) {
        for (int64_t j = 0; j < ld; ++j) {
          float expected = before[static_cast<size_t>(i * ld + j)];
          if (j < n) {
            expected *= 3;
            for (int64_t l = 0; l < k; ++l) {
              expected += 2 * (op_a == Op::none ? left(i, l) : left(l, i)) *
                          (op_b == Op::none ? right(l, j) : right(j, l));
            }
          }
          ASSERT_EQ(c[static_cast<size_t>(i * ld + j)], expected) << i << ", " << j;
        }
      }
    }
  }
}

TEST(Blas, EmptyDimensions) {
  std::vector<float> a(6, 1.0f), c(4, 5.0f);
  gemm(Op::none, Op::none, 1, ConstMatrix(a.data(), 0, 3), ConstMatrix(a.data(), 3, 2), 0,
       Matrix(c.data(), 0, 2));
  gemm(Op::none, Op::none, 1, ConstMatrix(a.data(), 2, 3), ConstMatrix(a.data(), 3, 0), 0,
       Matrix(c.data(), 2, 0));
  EXPECT_EQ(c, std::vector<float>(4, 5.0f));
  // An empty sum is zero.
  gemm(Op::none, Op::none, 1, ConstMatrix(a.data(), 2, 0), ConstMatrix(a.data(), 0, 2), 2,
       Matrix(c.data(), 2, 2));
  EXPECT_EQ(c, std::vector<float>(4, 10.0f));
}

TEST(Blas, ShapesThatDisagreeAreNamed) {
  std::vector<float> a(100);
  const ConstMatrix left(a.data(), 2, 3), right(a.data(), 4, 5);
  try {
    gemm(Op::none, Op::transpose, 1, left, right, 0, Matrix(a.data(), 2, 4));
    FAIL() << "no error";
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find("[2, 3] times [4, 5]^T into [2, 4]"),
              std::string::npos)
        << error.what();
  }
  EXPECT_THROW(
      gemm(Op::none, Op::none, 1, ConstMatrix(a.data(), 2, 4), right, 0, Matrix(a.data(), 3, 5)),
      Error);
  EXPECT_THROW(
      gemm(Op::none, Op::none, 1, ConstMatrix(a.data(), 2, 4), right, 0, Matrix(a.data(), 2, 6)),
      Error);
}

TEST(Blas, DescriptionNamesTheLibrary) {
  EXPECT_FALSE(description().empty());
}

// Runs in a child process of the next test: what prepare_process() left behind.
TEST(BlasChild, PrintsItsKernels) {
  if (std::getenv("AIRMOE_BLAS_CHILD") == nullptr) GTEST_SKIP() << "run by Blas.Restarts...";
  std::printf("kernels: %s\n", description().c_str());
  const char* core = std::getenv("OPENBLAS_CORETYPE");
  std::printf("coretype: %s\n", core == nullptr ? "" : core);
}

std::string run_child(const std::string& environment) {
  std::array<char, 4096> path{};
  if (readlink("/proc/self/exe", path.data(), path.size() - 1) < 0) return {};
  const std::string command = "env " + environment + " AIRMOE_BLAS_CHILD=1 '" +
                              std::string(path.data()) + "' --gtest_filter=BlasChild.* 2>&1";
  std::string output;
  std::FILE* pipe = popen(command.c_str(), "r");
  std::array<char, 256> line{};
  while (std::fgets(line.data(), line.size(), pipe) != nullptr) output += line.data();
  EXPECT_EQ(pclose(pipe), 0) << output;
  return output;
}

// The arguments must survive the restart: without the filter no "kernels:" line would be alone.
TEST(Blas, RestartsWithKernelsOfThisProcessor) {
  if (description().find("OpenBLAS") == std::string::npos) GTEST_SKIP() << "not OpenBLAS";
  const std::string output = run_child("-u OPENBLAS_CORETYPE");
  EXPECT_NE(output.find("kernels: OpenBLAS"), std::string::npos) << output;
  EXPECT_NE(output.find("Running 1 test "), std::string::npos) << output;
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
    for (const char* old : {"Prescott", "Core2", "Penryn", "Nehalem", "Atom", "Generic"}) {
      EXPECT_EQ(output.find(old), std::string::npos) << output;
    }
  }
#endif
}

TEST(Blas, AChosenCoreTypeIsLeftAlone) {
  if (description().find("OpenBLAS") == std::string::npos) GTEST_SKIP() << "not OpenBLAS";
  const std::string output = run_child("OPENBLAS_CORETYPE=Nehalem");
  EXPECT_NE(output.find("coretype: Nehalem"), std::string::npos) << output;
}

}  // namespace
}  // namespace airmoe::blas
