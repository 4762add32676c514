#pragma once

#include <cstdint>

namespace airmoe::router::cuda {

/// Some codewords, named in device memory: the host does not know how many.
struct DeviceCodewords {
  const int32_t* id = nullptr;     ///< ascending. Shape: [*count]
  const int32_t* count = nullptr;  ///< Shape: [1]
};

}  // namespace airmoe::router::cuda
