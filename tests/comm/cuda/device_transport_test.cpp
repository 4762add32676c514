#include <gtest/gtest.h>

#include "comm/base/error.hpp"
#include "comm/cuda/device_communicator.hpp"

namespace airmoe::comm::cuda {
namespace {

TEST(DeviceTransport, IsNamed) {
  EXPECT_EQ(parse_device_transport("auto"), DeviceTransport::automatic);
  EXPECT_EQ(parse_device_transport("nccl"), DeviceTransport::nccl);
  EXPECT_EQ(parse_device_transport("staged"), DeviceTransport::staged);
  EXPECT_EQ(parse_device_transport("direct"), DeviceTransport::direct);
  EXPECT_THROW(parse_device_transport("mpi"), Error);
}

}  // namespace
}  // namespace airmoe::comm::cuda
