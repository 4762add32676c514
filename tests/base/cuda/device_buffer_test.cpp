#include "comm/base/cuda/device_buffer.hpp"

#include <numeric>
#include <vector>

#include <gtest/gtest.h>

#include "comm/base/cuda/stream.hpp"

namespace airmoe::cuda {
namespace {

TEST(DeviceBuffer, GrowsOnlyAndCountsItsBytes) {
  const int64_t before = device_bytes();
  {
    DeviceBuffer<int32_t> buffer;
    buffer.ensure(100);
    const int32_t* data = buffer.data();
    buffer.ensure(10);
    EXPECT_EQ(buffer.data(), data);
    EXPECT_EQ(buffer.size(), 10);
    EXPECT_EQ(device_bytes() - before, 400);
    buffer.ensure(1000);
    EXPECT_EQ(device_bytes() - before, 4000);
  }
  EXPECT_EQ(device_bytes(), before);
  EXPECT_GE(device_bytes_peak(), before + 4000);
}

TEST(DeviceBuffer, CarriesDataThereAndBack) {
  const Stream stream;
  std::vector<int32_t> out(1000), in(1000, -1);
  std::iota(out.begin(), out.end(), 5);
  DeviceBuffer<int32_t> buffer;
  buffer.upload(out, stream);
  buffer.download(in, stream);
  stream.synchronize();
  EXPECT_EQ(in, out);
  buffer.zero(stream);
  buffer.download(in, stream);
  stream.synchronize();
  EXPECT_EQ(in, std::vector<int32_t>(1000, 0));
}

TEST(DeviceBuffer, SaysHowMuchWasAskedWhenMemoryRunsOut) {
  DeviceBuffer<float> buffer;
  try {
    buffer.ensure(int64_t{1} << 50);
    FAIL() << "allocated 2^52 bytes";
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find("out of device memory"), std::string::npos);
  }
  EXPECT_EQ(buffer.size(), 0);
}

TEST(Event, MeasuresTimeBetweenTwoPoints) {
  const Stream stream;
  Event start(true), end(true);
  start.record(stream);
  end.record(stream);
  end.synchronize();
  EXPECT_GE(end.milliseconds_since(start), 0.0f);
}

}  // namespace
}  // namespace airmoe::cuda
