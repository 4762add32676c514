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

}  // namespace airmoe::scheduler::cuda
