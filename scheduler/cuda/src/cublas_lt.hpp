#pragma once
// cuBLASLt, loaded when the first product needs it: the library has 540 MB, and a program that is
// linked to it spends 65 ms and 190 MB on it at every start, whether it uses a device or not.

#include <cublasLt.h>

namespace airmoe::scheduler::cuda {

/// The functions in use, by their names without "cublasLt".
struct CublasLt {
  decltype(&cublasLtCreate) create;
  decltype(&cublasLtDestroy) destroy;
  decltype(&cublasLtGetStatusString) get_status_string;
  decltype(&cublasLtMatrixLayoutCreate) matrix_layout_create;
  decltype(&cublasLtMatrixLayoutDestroy) matrix_layout_destroy;
  decltype(&cublasLtMatmulDescCreate) matmul_desc_create;
  decltype(&cublasLtMatmulDescDestroy) matmul_desc_destroy;
  decltype(&cublasLtMatmulDescSetAttribute) matmul_desc_set_attribute;
  decltype(&cublasLtMatmulPreferenceCreate) matmul_preference_create;
  decltype(&cublasLtMatmulPreferenceDestroy) matmul_preference_destroy;
  decltype(&cublasLtMatmulPreferenceSetAttribute) matmul_preference_set_attribute;
  decltype(&cublasLtMatmulAlgoGetHeuristic) matmul_algo_get_heuristic;
  decltype(&cublasLtMatmul) matmul;
};

/// Local, thread-safe. The first call loads the library, which stays. Throws
/// Error(ExitCode::config) naming the library where it cannot be loaded.
const CublasLt& cublas_lt();

}  // namespace airmoe::scheduler::cuda
