#include "comm/base/cuda/stream.hpp"

namespace airmoe::cuda {

Stream::Stream(bool high_priority) {
  int least = 0, greatest = 0;
  AIRMOE_CUDA(cudaDeviceGetStreamPriorityRange(&least, &greatest));
  AIRMOE_CUDA(cudaStreamCreateWithPriority(&stream_, cudaStreamNonBlocking,
                                           high_priority ? greatest : least));
}
Stream::~Stream() {
  cudaStreamDestroy(stream_);
}

Event::Event(bool timed) {
  AIRMOE_CUDA(cudaEventCreateWithFlags(&event_, timed ? cudaEventDefault : cudaEventDisableTiming));
}
Event::~Event() {
  cudaEventDestroy(event_);
}

float Event::milliseconds_since(const Event& start) const {
  float milliseconds = 0;
  AIRMOE_CUDA(cudaEventElapsedTime(&milliseconds, start.event_, event_));
  return milliseconds;
}

}  // namespace airmoe::cuda
