#include "scheduler/cuda/src/cublas_lt.hpp"

#include <string>
#include <type_traits>

#include <dlfcn.h>

#include "comm/base/error.hpp"

namespace airmoe::scheduler::cuda {
namespace {

#define AIRMOE_TEXT_OF(x) #x
#define AIRMOE_TEXT(x) AIRMOE_TEXT_OF(x)
/// Of the major version that cublasLt.h belongs to.
constexpr const char* kName = "libcublasLt.so." AIRMOE_TEXT(CUBLAS_VER_MAJOR);
constexpr const char* kPathAtBuild =
    AIRMOE_CUBLASLT_FOLDER "/libcublasLt.so." AIRMOE_TEXT(CUBLAS_VER_MAJOR);

/// Where the system looks for libraries, else where this one was at build time.
void* open_library() {
  if (void* library = ::dlopen(kName, RTLD_NOW | RTLD_LOCAL)) return library;
  const std::string reason = ::dlerror();
  if (void* library = ::dlopen(kPathAtBuild, RTLD_NOW | RTLD_LOCAL)) return library;
  fail(ExitCode::config,
       "cuBLASLt, which products on devices need, cannot be loaded: {}; install CUDA {}'s cuBLAS, "
       "or add the folder of {} to LD_LIBRARY_PATH",
       reason, CUBLAS_VER_MAJOR, kName);
}

CublasLt load() {
  void* library = open_library();
  const auto find = [library](auto& function, const char* name) {
    function =
        reinterpret_cast<std::remove_reference_t<decltype(function)>>(::dlsym(library, name));
    if (function == nullptr) fail(ExitCode::config, "{} lacks {}", kName, name);
  };
  CublasLt lt = {};
  find(lt.create, "cublasLtCreate");
  find(lt.destroy, "cublasLtDestroy");
  find(lt.get_status_string, "cublasLtGetStatusString");
  find(lt.matrix_layout_create, "cublasLtMatrixLayoutCreate");
  find(lt.matrix_layout_destroy, "cublasLtMatrixLayoutDestroy");
  find(lt.matmul_desc_create, "cublasLtMatmulDescCreate");
  find(lt.matmul_desc_destroy, "cublasLtMatmulDescDestroy");
  find(lt.matmul_desc_set_attribute, "cublasLtMatmulDescSetAttribute");
  find(lt.matmul_preference_create, "cublasLtMatmulPreferenceCreate");
  find(lt.matmul_preference_destroy, "cublasLtMatmulPreferenceDestroy");
  find(lt.matmul_preference_set_attribute, "cublasLtMatmulPreferenceSetAttribute");
  find(lt.matmul_algo_get_heuristic, "cublasLtMatmulAlgoGetHeuristic");
  find(lt.matmul, "cublasLtMatmul");
  return lt;
}

}  // namespace

const CublasLt& cublas_lt() {
  static const CublasLt functions = load();
  return functions;
}

}  // namespace airmoe::scheduler::cuda
