#pragma once
// What the host reads of an MoE layer on a device once per optimizer step.

#include <cstdint>

#include <cuda_runtime_api.h>

namespace airmoe::scheduler::cuda {

/// Since the last reset.
struct StepNumbers {
  double balance = 0;   ///< balance loss, weighted like the LM loss
  int64_t revived = 0;  ///< codewords restarted
};

/// Asynchronous: numbers->revived += *count; both in device memory.
void add_revived(const int32_t* count, StepNumbers* numbers, cudaStream_t stream);

/// Asynchronous: counts as floats and back, exact below 2^24; device memory. Shapes: [n]
void counts_to_float(const int32_t* count, int64_t n, float* out, cudaStream_t stream);
void counts_from_float(const float* in, int64_t n, int32_t* count, cudaStream_t stream);

}  // namespace airmoe::scheduler::cuda
