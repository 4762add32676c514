#include "comm/base/blas.hpp"

#include <cstdlib>
#include <limits>
#include <string_view>

#include <cblas.h>
#include <unistd.h>

#include "comm/base/error.hpp"

// Present when the library is OpenBLAS or BLIS, null otherwise.
extern "C" {
char* openblas_get_config() __attribute__((weak));
char* openblas_get_corename() __attribute__((weak));
void openblas_set_num_threads(int) __attribute__((weak));
void bli_thread_set_num_threads(long) __attribute__((weak));
}

namespace airmoe::blas {

namespace {

int blas_int(int64_t n) {
  AIRMOE_CHECK(n <= std::numeric_limits<int>::max(), "matrix dimension {} is too large for CBLAS",
               n);
  return static_cast<int>(n);
}

int leading_dimension(const ConstMatrix& m) {
  return blas_int(m.ld > 1 ? m.ld : 1);  // CBLAS refuses 0, which an empty matrix may have
}

std::string shape(const ConstMatrix& m, Op op) {
  return fmt::format("[{}, {}]{}", m.rows, m.cols, op == Op::transpose ? "^T" : "");
}

CBLAS_TRANSPOSE cblas_op(Op op) {
  return op == Op::transpose ? CblasTrans : CblasNoTrans;
}

#if defined(__x86_64__)
// OpenBLAS's name for the best kernels of this processor where `chosen` are kernels for processors
// without AVX; empty if `chosen` will do.
std::string_view better_core(std::string_view chosen) {
  bool outdated = false;
  for (const std::string_view name :
       {"Katmai", "Coppermine", "Northwood", "Prescott", "Banias", "Atom", "Core2", "Penryn",
        "Dunnington", "Nehalem", "Athlon", "Opteron", "Opteron_SSE3", "Barcelona", "Bobcat", "Nano",
        "Generic"}) {
    outdated = outdated || chosen == name;
  }
  if (!outdated) return {};
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512cd") &&
      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl")) {
    return "SKYLAKEX";
  }
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return "HASWELL";
  return {};
}
#else
std::string_view better_core(std::string_view) {
  return {};
}
#endif

}  // namespace

void gemm(Op op_a, Op op_b, float alpha, ConstMatrix a, ConstMatrix b, float beta, Matrix c) {
  const int64_t m = op_a == Op::none ? a.rows : a.cols;
  const int64_t k = op_a == Op::none ? a.cols : a.rows;
  const int64_t k_of_b = op_b == Op::none ? b.rows : b.cols;
  const int64_t n = op_b == Op::none ? b.cols : b.rows;
  AIRMOE_CHECK(k == k_of_b && m == c.rows && n == c.cols, "gemm: {} times {} into {}",
               shape(a, op_a), shape(b, op_b), shape(c, Op::none));
  if (m == 0 || n == 0) return;
  cblas_sgemm(CblasRowMajor, cblas_op(op_a), cblas_op(op_b), blas_int(m), blas_int(n), blas_int(k),
              alpha, a.data, leading_dimension(a), b.data, leading_dimension(b), beta, c.data,
              leading_dimension(c));
}

std::string description() {
  if (openblas_get_config == nullptr) {
    return bli_thread_set_num_threads == nullptr ? "CBLAS" : "BLIS";
  }
  // "OpenBLAS 0.3.21 NO_LAPACKE DYNAMIC_ARCH ...": name and version are the first two words.
  const std::string config = openblas_get_config();
  const std::string name = config.substr(0, config.find(' ', config.find(' ') + 1));
  if (openblas_get_corename == nullptr) return name;
  return fmt::format("{}, {} kernels", name, openblas_get_corename());
}

void prepare_process(char** argv, int threads) {
  if (openblas_set_num_threads != nullptr) openblas_set_num_threads(threads);
  if (bli_thread_set_num_threads != nullptr) bli_thread_set_num_threads(threads);
  // The variable is also what stops the restarted program from starting once more.
  if (openblas_get_corename == nullptr || std::getenv("OPENBLAS_CORETYPE") != nullptr) return;
  const std::string_view core = better_core(openblas_get_corename());
  if (core.empty() || setenv("OPENBLAS_CORETYPE", core.data(), 1) != 0) return;
  char path[4096] = {};  // by its path, or ps and pkill would know the program as "exe"
  if (readlink("/proc/self/exe", path, sizeof path - 1) > 0) execv(path, argv);
  execv("/proc/self/exe", argv);
  // Still here: no /proc. Go on with the slower kernels.
}

}  // namespace airmoe::blas
