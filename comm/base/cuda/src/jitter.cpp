#include "comm/base/cuda/jitter.hpp"

namespace airmoe::cuda {

JitterTable::JitterTable(cudaStream_t stream) {
  quantile_.upload(jitter_quantiles(), stream);
}

JitterKey JitterTable::key(const RandomStream& stream, float stddev, int64_t first_token) const {
  return {stream.key()[0], stream.key()[1], stddev, static_cast<uint32_t>(first_token),
          quantile_.data()};
}

}  // namespace airmoe::cuda
