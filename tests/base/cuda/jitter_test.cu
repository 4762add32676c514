// Jitter on a device against add_jitter(), bit for bit.

#include <bit>
#include <vector>

#include <gtest/gtest.h>

#include "comm/base/cuda/jitter.cuh"
#include "comm/base/cuda/stream.hpp"

namespace airmoe::cuda {
namespace {

__global__ void add(JitterKey key, const int32_t* id, int64_t count, uint32_t b, uint32_t c,
                    float* x) {
  const int64_t i = blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x;
  if (i < count) x[i] = __fadd_rn(x[i], jitter(key, static_cast<uint32_t>(id[i]), b, c));
}

__global__ void block(uint4* out, uint4 counter, uint2 key) {
  *out = philox(counter.x, counter.y, counter.z, counter.w, key.x, key.y);
}

TEST(DeviceJitter, SameBitsAsOnTheHost) {
  const Stream stream;
  const JitterTable table(stream);
  for (const int64_t count : {1, 7, 1000, 200000}) {
    std::vector<int32_t> id(count);
    std::vector<float> x(count);
    for (int64_t i = 0; i < count; ++i) {
      id[i] = static_cast<int32_t>((i * 2654435761u) % 0x7fffffffu);
      x[i] = static_cast<float>(i % 97) * 0.0371f - 1.0f;
    }
    const RandomStream random(7, Purpose::jitter_score, 5, 3, 2);
    const float stddev = 0.01f;
    const uint32_t b = 123456, c = 511;
    DeviceBuffer<int32_t> ids;
    DeviceBuffer<float> scores;
    ids.upload(id, stream);
    scores.upload(x, stream);
    add<<<static_cast<unsigned>((count + 255) / 256), 256, 0, stream>>>(
        table.key(random, stddev), ids.data(), count, b, c, scores.data());
    AIRMOE_CUDA_LAUNCHED();
    std::vector<float> found(count);
    scores.download(found, stream);
    stream.synchronize();
    add_jitter(x.data(), id.data(), count, stddev, random, b, c);
    for (int64_t i = 0; i < count; ++i) {
      ASSERT_EQ(std::bit_cast<uint32_t>(found[i]), std::bit_cast<uint32_t>(x[i])) << i;
    }
  }
}

TEST(DevicePhilox, SameBlocksAsRandomStream) {
  const Stream stream;
  const RandomStream random(99, Purpose::test_data);
  DeviceBuffer<uint4> out(1);
  for (uint32_t i = 0; i < 20; ++i) {
    const uint4 counter{i * 77777u, ~i, i << 20, 0x7065726du};
    block<<<1, 1, 0, stream>>>(out.data(), counter, {random.key()[0], random.key()[1]});
    AIRMOE_CUDA_LAUNCHED();
    uint4 found{};
    out.download({&found, 1}, stream);
    stream.synchronize();
    const auto expected = random.block(counter.x, counter.y, counter.z, counter.w);
    EXPECT_EQ(found.x, expected[0]);
    EXPECT_EQ(found.y, expected[1]);
    EXPECT_EQ(found.z, expected[2]);
    EXPECT_EQ(found.w, expected[3]);
  }
}

TEST(DeviceJitter, KeyCarriesTheStreamAndTheFirstToken) {
  const Stream stream;
  const JitterTable table(stream);
  const RandomStream random(1, Purpose::jitter_score);
  const JitterKey key = table.key(random, 0.5f, 4096);
  EXPECT_EQ(key.key0, random.key()[0]);
  EXPECT_EQ(key.key1, random.key()[1]);
  EXPECT_EQ(key.stddev, 0.5f);
  EXPECT_EQ(key.first_token, 4096u);
}

}  // namespace
}  // namespace airmoe::cuda
