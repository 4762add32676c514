#include "comm/src/ucx_barrier.hpp"

namespace airmoe::comm {

void UcxBarrier::start() {
  distance_ = 1;
  post_round();
}

void UcxBarrier::post_round() {
  operations_.clear();
  const int size = worker_.size();
  if (distance_ >= size) return;
  operations_.recv((worker_.rank() - distance_ + size) % size, kBarrierChannel, {&in_, 1});
  operations_.send((worker_.rank() + distance_) % size, kBarrierChannel, {&out_, 1});
}

bool UcxBarrier::advance() {
  while (operations_.ended()) {
    if (distance_ >= worker_.size()) return true;
    distance_ *= 2;
    post_round();
  }
  return false;
}

}  // namespace airmoe::comm
