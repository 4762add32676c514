#include "scheduler/cuda/gemm.hpp"

#include <algorithm>
#include <map>
#include <tuple>

#include <cuda_bf16.h>

#include "comm/base/cuda/device_buffer.hpp"
#include "scheduler/cuda/src/cublas_lt.hpp"

namespace airmoe::scheduler::cuda {
namespace {

constexpr int64_t kWorkspaceBytes = int64_t{32} << 20;
constexpr uint32_t kBestAlignment = 256;

void check(cublasStatus_t status, const char* call) {
  if (status == CUBLAS_STATUS_SUCCESS) return;
  fail(ExitCode::failure, "{} failed: {}", call, cublas_lt().get_status_string(status));
}
#define AIRMOE_CUBLAS(call) check((call), #call)

template <class T>
constexpr cudaDataType_t kType = std::is_same_v<T, float> ? CUDA_R_32F : CUDA_R_16BF;

/// Owner of a cuBLASLt descriptor.
template <class Handle, cublasStatus_t (*CublasLt::*kDestroy)(Handle)>
class Descriptor {
 public:
  Descriptor() = default;
  Descriptor(Descriptor&& other) noexcept : handle_(std::exchange(other.handle_, nullptr)) {}
  Descriptor& operator=(Descriptor&& other) noexcept {
    std::swap(handle_, other.handle_);
    return *this;
  }
  ~Descriptor() {
    if (handle_ != nullptr) (cublas_lt().*kDestroy)(handle_);
  }
  Handle* address() { return &handle_; }
  Handle get() const { return handle_; }

 private:
  Handle handle_ = nullptr;
};

using Layout = Descriptor<cublasLtMatrixLayout_t, &CublasLt::matrix_layout_destroy>;
using Operation = Descriptor<cublasLtMatmulDesc_t, &CublasLt::matmul_desc_destroy>;
using Preference = Descriptor<cublasLtMatmulPreference_t, &CublasLt::matmul_preference_destroy>;

/// A row-major matrix is the transpose of the column-major one with the same bytes, so that
/// C = A B is computed as C^T = B^T A^T: cuBLASLt's first factor is our b, its second our a.
struct Plan {
  Operation operation;
  Layout first, second, result;
  cublasLtMatmulAlgo_t algorithm{};
};

/// Column-major layout of a row-major matrix [rows, columns].
Layout layout_of(cudaDataType_t type, int64_t rows, int64_t columns, int64_t ld) {
  Layout layout;
  AIRMOE_CUBLAS(cublas_lt().matrix_layout_create(
      layout.address(), type, static_cast<uint64_t>(columns), static_cast<uint64_t>(rows), ld));
  return layout;
}

cublasOperation_t cublas_op(Op op) {
  return op == Op::none ? CUBLAS_OP_N : CUBLAS_OP_T;
}

uint32_t alignment_of(const void* pointer) {
  const auto address = reinterpret_cast<uintptr_t>(pointer);
  return std::min(kBestAlignment, static_cast<uint32_t>(address & (~address + 1)));
}

}  // namespace

struct Gemm::Plans {
  // Shape, types, alignment of a, b, c.
  using Key = std::tuple<GemmShape, cudaDataType_t, cudaDataType_t, uint32_t, uint32_t, uint32_t>;

  Plans() { AIRMOE_CUBLAS(lt.create(&handle)); }
  ~Plans() { lt.destroy(handle); }

  const Plan& find(const Key& key) {
    const auto found = plans.find(key);
    return found != plans.end() ? found->second : plans.emplace(key, make(key)).first->second;
  }

  Plan make(const Key& key) {
    const auto& [shape, in, out, align_a, align_b, align_c] = key;
    const auto& [op_a, op_b, m, n, k, ld_a, ld_b, ld_c, beta] = shape;
    Plan plan;
    AIRMOE_CUBLAS(lt.matmul_desc_create(plan.operation.address(), CUBLAS_COMPUTE_32F, CUDA_R_32F));
    const cublasOperation_t first = cublas_op(op_b), second = cublas_op(op_a);
    set(plan.operation, CUBLASLT_MATMUL_DESC_TRANSA, first);
    set(plan.operation, CUBLASLT_MATMUL_DESC_TRANSB, second);
    plan.first = op_b == Op::none ? layout_of(in, k, n, ld_b) : layout_of(in, n, k, ld_b);
    plan.second = op_a == Op::none ? layout_of(in, m, k, ld_a) : layout_of(in, k, m, ld_a);
    plan.result = layout_of(out, m, n, ld_c);

    Preference preference;
    AIRMOE_CUBLAS(lt.matmul_preference_create(preference.address()));
    const auto bytes = static_cast<uint64_t>(kWorkspaceBytes);
    set(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, bytes);
    set(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, align_b);
    set(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, align_a);
    set(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, align_c);
    set(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, align_c);
    cublasLtMatmulHeuristicResult_t result{};
    int found = 0;
    AIRMOE_CUBLAS(lt.matmul_algo_get_heuristic(
        handle, plan.operation.get(), plan.first.get(), plan.second.get(), plan.result.get(),
        plan.result.get(), preference.get(), 1, &result, &found));
    if (found == 0) {
      fail(ExitCode::failure, "cuBLASLt has no algorithm for a product [{}, {}] x [{}, {}]", m, k,
           k, n);
    }
    plan.algorithm = result.algo;
    return plan;
  }

  template <class Value>
  void set(Operation& operation, cublasLtMatmulDescAttributes_t name, const Value& value) {
    AIRMOE_CUBLAS(lt.matmul_desc_set_attribute(operation.get(), name, &value, sizeof value));
  }
  template <class Value>
  void set(Preference& preference, cublasLtMatmulPreferenceAttributes_t name, const Value& value) {
    AIRMOE_CUBLAS(lt.matmul_preference_set_attribute(preference.get(), name, &value, sizeof value));
  }

  const CublasLt& lt = cublas_lt();
  cublasLtHandle_t handle = nullptr;
  airmoe::cuda::DeviceBuffer<uint8_t> workspace{kWorkspaceBytes};
  std::map<Key, Plan> plans;
};

Gemm::Gemm() : plans_(std::make_unique<Plans>()) {}
Gemm::~Gemm() = default;

template <class A, class C>
void Gemm::multiply(const GemmShape& shape, const A* a, const A* b, C* c, cudaStream_t stream) {
  if (shape.m == 0 || shape.n == 0) return;
  AIRMOE_CHECK(shape.beta == 0.0f || shape.beta == 1.0f, "beta {} is neither 0 nor 1", shape.beta);
  if (shape.k == 0) {
    AIRMOE_CHECK(shape.beta == 1.0f, "product over nothing into [{}, {}]", shape.m, shape.n);
    return;
  }
  const Plan& plan =
      plans_->find({shape, kType<A>, kType<C>, alignment_of(a), alignment_of(b), alignment_of(c)});
  const float alpha = 1.0f;
  AIRMOE_CUBLAS(plans_->lt.matmul(plans_->handle, plan.operation.get(), &alpha, b, plan.first.get(),
                                  a, plan.second.get(), &shape.beta, c, plan.result.get(), c,
                                  plan.result.get(), &plan.algorithm, plans_->workspace.data(),
                                  plans_->workspace.bytes(), stream));
}

template void Gemm::multiply(const GemmShape&, const float*, const float*, float*, cudaStream_t);
template void Gemm::multiply(const GemmShape&, const __nv_bfloat16*, const __nv_bfloat16*, float*,
                             cudaStream_t);
template void Gemm::multiply(const GemmShape&, const __nv_bfloat16*, const __nv_bfloat16*,
                             __nv_bfloat16*, cudaStream_t);

}  // namespace airmoe::scheduler::cuda
