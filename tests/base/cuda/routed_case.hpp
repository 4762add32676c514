#pragma once
// Made-up routings, on the host for oracles and on the device for kernels.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numeric>
#include <random>
#include <vector>

#include <cuda_bf16.h>

#include "comm/base/cuda/device_buffer.hpp"
#include "comm/base/cuda/pair_tiles.hpp"
#include "comm/base/cuda/routed.hpp"
#include "comm/base/cuda/stream.hpp"

namespace airmoe::cuda::testing {

template <class T>
std::vector<T> from_device(const DeviceBuffer<T>& buffer, cudaStream_t stream) {
  std::vector<T> host(static_cast<std::size_t>(buffer.size()));
  buffer.download(host, stream);
  AIRMOE_CUDA(cudaStreamSynchronize(stream));
  return host;
}
template <class T>
std::vector<T> from_device(const T* data, int64_t count, cudaStream_t stream) {
  std::vector<T> host(static_cast<std::size_t>(count));
  if (count > 0) {
    AIRMOE_CUDA(cudaMemcpyAsync(host.data(), data, host.size() * sizeof(T), cudaMemcpyDeviceToHost,
                                stream));
  }
  AIRMOE_CUDA(cudaStreamSynchronize(stream));
  return host;
}

/// Host floats as T on the device.
template <class T>
void upload_as(DeviceBuffer<T>& buffer, const std::vector<float>& host, cudaStream_t stream) {
  std::vector<T> converted(host.begin(), host.end());
  buffer.upload(converted, stream);
  AIRMOE_CUDA(cudaStreamSynchronize(stream));
}

/// What T keeps of a float.
template <class T>
float rounded(float x) {
  return static_cast<float>(static_cast<T>(x));
}

struct RoutedShape {
  int64_t tokens = 0, codewords = 1, length = 1, active = 1, rows = 1;
  bool one_codeword = false;  ///< all tokens have the last one
  bool narrow = false;        ///< tokens select among the first 2 K candidates only
};

/// Tokens spread unevenly over codewords, random lists and selections.
struct RoutedCase {
  RoutedShape shape;
  std::vector<int32_t> token, begin, tiles, tile_codeword, tile_begin, tile_end;
  std::vector<int32_t> list_row;   // [G, M]
  std::vector<uint16_t> position;  // [n, K] by place
  std::vector<int32_t> place_codeword;

  explicit RoutedCase(const RoutedShape& s, uint32_t seed = 1) : shape(s) {
    std::mt19937 random(seed);
    std::uniform_real_distribution<double> uniform(0, 1);
    std::vector<int32_t> codeword(static_cast<std::size_t>(s.tokens));
    for (int32_t& g : codeword) {
      g = static_cast<int32_t>(s.codewords - 1);
      if (!s.one_codeword) {
        g = static_cast<int32_t>(static_cast<double>(s.codewords) * std::pow(uniform(random), 3.0));
      }
    }
    token.resize(codeword.size());
    std::iota(token.begin(), token.end(), 0);
    std::stable_sort(token.begin(), token.end(),
                     [&](int32_t a, int32_t b) { return codeword[a] < codeword[b]; });
    for (int32_t t : token) place_codeword.push_back(codeword[t]);
    for (int32_t g = 0; g <= s.codewords; ++g) {
      begin.push_back(
          static_cast<int32_t>(std::lower_bound(place_codeword.begin(), place_codeword.end(), g) -
                               place_codeword.begin()));
    }
    for (int32_t g = 0; g < s.codewords; ++g) {
      for (int32_t p = begin[g]; p < begin[g + 1]; p += kTileTokens) {
        tile_codeword.push_back(g);
        tile_begin.push_back(p);
        tile_end.push_back(std::min(p + kTileTokens, begin[g + 1]));
      }
    }
    tiles = {static_cast<int32_t>(tile_begin.size())};

    const auto sample = [&](int64_t from, int64_t count, auto& to) {
      std::vector<int32_t> all(static_cast<std::size_t>(from)), chosen;
      std::iota(all.begin(), all.end(), 0);
      std::sample(all.begin(), all.end(), std::back_inserter(chosen), count, random);
      for (int32_t i : chosen) {
        to.push_back(static_cast<typename std::decay_t<decltype(to)>::value_type>(i));
      }
    };
    for (int64_t g = 0; g < s.codewords; ++g) sample(s.rows, s.length, list_row);
    const int64_t from = s.narrow ? std::min(s.length, 2 * s.active) : s.length;
    for (int64_t p = 0; p < s.tokens; ++p) sample(from, s.active, position);
  }

  int64_t pairs() const { return shape.tokens * shape.active; }
  int32_t row(int64_t pair) const {
    const int32_t g = place_codeword[static_cast<std::size_t>(pair / shape.active)];
    return list_row[static_cast<std::size_t>(g * shape.length + position[pair])];
  }
  int32_t token_of(int64_t pair) const {
    return token[static_cast<std::size_t>(pair / shape.active)];
  }
};

/// The case on the device.
class DeviceCase {
 public:
  DeviceCase(const RoutedCase& c, cudaStream_t stream) : shape_(c.shape) {
    const int64_t limit = max_tiles(shape_.tokens, shape_.codewords);
    const auto padded = [&](std::vector<int32_t> x) {
      x.resize(static_cast<std::size_t>(limit), -1);
      return x;
    };
    token_.upload(c.token, stream);
    begin_.upload(c.begin, stream);
    tiles_.upload(c.tiles, stream);
    tile_codeword_.upload(padded(c.tile_codeword), stream);
    tile_begin_.upload(padded(c.tile_begin), stream);
    tile_end_.upload(padded(c.tile_end), stream);
    list_row_.upload(c.list_row, stream);
    position_.upload(c.position, stream);
    AIRMOE_CUDA(cudaStreamSynchronize(stream));
  }

  CodewordTokens tokens() const {
    return {shape_.tokens,         shape_.codewords,   max_tiles(shape_.tokens, shape_.codewords),
            token_.data(),         begin_.data(),      tiles_.data(),
            tile_codeword_.data(), tile_begin_.data(), tile_end_.data()};
  }
  DeviceLists lists() const { return {shape_.length, list_row_.data(), list_row_.data()}; }
  const uint16_t* position() const { return position_.data(); }

 private:
  RoutedShape shape_;
  DeviceBuffer<int32_t> token_, begin_, tiles_, tile_codeword_, tile_begin_, tile_end_, list_row_;
  DeviceBuffer<uint16_t> position_;
};

/// Integers from -most to most.
inline std::vector<float> random_integers(int64_t count, int most, uint32_t seed) {
  std::mt19937 random(seed);
  std::uniform_int_distribution<int> uniform(-most, most);
  std::vector<float> x(static_cast<std::size_t>(count));
  for (float& value : x) value = static_cast<float>(uniform(random));
  return x;
}
inline std::vector<float> random_floats(int64_t count, float scale, uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0.0f, scale);
  std::vector<float> x(static_cast<std::size_t>(count));
  for (float& value : x) value = normal(random);
  return x;
}

}  // namespace airmoe::cuda::testing
