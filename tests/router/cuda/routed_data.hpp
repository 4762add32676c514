#pragma once
// Routed tokens made on the host and put on a device.

#include <algorithm>
#include <bit>
#include <cstdint>
#include <numeric>
#include <vector>

#include <cuda_bf16.h>

#include "comm/base/cuda/device_buffer.hpp"
#include "comm/base/cuda/routed.hpp"
#include "comm/base/cuda/stream.hpp"
#include "router/data.hpp"

namespace airmoe::router::cuda::test {

using airmoe::cuda::CodewordTokens;
using airmoe::cuda::DeviceBuffer;
using airmoe::cuda::DeviceLists;
using airmoe::cuda::SelectedPairs;
using airmoe::cuda::Stream;

template <class T>
std::vector<T> download(const T* data, int64_t count, cudaStream_t stream) {
  std::vector<T> out(static_cast<std::size_t>(count));
  if (count > 0) {
    AIRMOE_CUDA(
        cudaMemcpyAsync(out.data(), data, out.size() * sizeof(T), cudaMemcpyDeviceToHost, stream));
  }
  AIRMOE_CUDA(cudaStreamSynchronize(stream));
  return out;
}

template <class T>
std::vector<T> rounded(const std::vector<float>& x) {
  std::vector<T> out(x.size());
  std::transform(x.begin(), x.end(), out.begin(), [](float v) { return T(v); });
  return out;
}
/// What is left of x in the type T, as float.
template <class T>
std::vector<float> through(const std::vector<float>& x) {
  std::vector<float> out(x.size());
  std::transform(x.begin(), x.end(), out.begin(), [](float v) { return float(T(v)); });
  return out;
}

inline std::vector<uint32_t> bits(const std::vector<float>& x) {
  std::vector<uint32_t> out(x.size());
  std::transform(x.begin(), x.end(), out.begin(),
                 [](float v) { return std::bit_cast<uint32_t>(v); });
  return out;
}

/// Tokens in the order of their codewords, cut into tiles.
class RoutedTokens {
 public:
  RoutedTokens(const std::vector<int32_t>& codeword, int64_t codewords, cudaStream_t stream) {
    const auto n = static_cast<int64_t>(codeword.size());
    token.resize(codeword.size());
    std::iota(token.begin(), token.end(), 0);
    std::stable_sort(token.begin(), token.end(),
                     [&](int32_t a, int32_t b) { return codeword[a] < codeword[b]; });
    begin.assign(static_cast<std::size_t>(codewords) + 1, 0);
    for (const int32_t g : codeword) ++begin[g + 1];
    std::partial_sum(begin.begin(), begin.end(), begin.begin());
    std::vector<int32_t> of, first, last;
    for (int32_t g = 0; g < codewords; ++g) {
      for (int32_t b = begin[g]; b < begin[g + 1]; b += airmoe::cuda::kTileTokens) {
        of.push_back(g);
        first.push_back(b);
        last.push_back(std::min(b + airmoe::cuda::kTileTokens, begin[g + 1]));
      }
    }
    const std::vector<int32_t> tiles{static_cast<int32_t>(of.size())};
    const int64_t limit = airmoe::cuda::max_tiles(n, codewords);
    for (auto* x : {&of, &first, &last}) x->resize(static_cast<std::size_t>(limit), -1);
    int i = 0;
    for (const std::vector<int32_t>& x : {token, begin, tiles, of, first, last}) {
      device_[i++].upload(x, stream);
    }
    AIRMOE_CUDA(cudaStreamSynchronize(stream));
    view_ = {n,
             codewords,
             limit,
             device_[0].data(),
             device_[1].data(),
             device_[2].data(),
             device_[3].data(),
             device_[4].data(),
             device_[5].data()};
  }

  const CodewordTokens& view() const { return view_; }

  std::vector<int32_t> token, begin;

 private:
  DeviceBuffer<int32_t> device_[6];
  CodewordTokens view_;
};

/// Codewords of n tokens: half of them in codeword 1, the others anywhere, the last codeword empty.
inline std::vector<int32_t> skewed_codewords(airmoe::router::test::Random& random, int64_t n,
                                             int64_t codewords) {
  std::vector<int32_t> codeword(static_cast<std::size_t>(n));
  for (int32_t& g : codeword) {
    g = static_cast<int32_t>(random.integer(0, 1) == 0
                                 ? std::min<int64_t>(1, codewords - 1)
                                 : random.integer(0, std::max<int64_t>(0, codewords - 2)));
  }
  return codeword;
}

}  // namespace airmoe::router::cuda::test
