#include "scheduler/train/gradient_sync.hpp"

#include <algorithm>

namespace airmoe::scheduler {

void GradientSync::all_reduce(ParameterSet& parameters) {
  const comm::ScopedPhase phase(comm_, "gradients");
  if (comm_.size() == 1) return;
  pieces_.clear();
  int64_t used = 0;
  bucket_.ensure(kBucket);
  const auto flush = [&] {
    if (used == 0) return;
    float* at = bucket_.data();
    for (const Piece& p : pieces_) at = std::copy_n(p.data, p.count, at);
    comm_.all_reduce(bucket_.span().first(used), comm::Reduction::sum);
    at = bucket_.data();
    for (const Piece& p : pieces_) {
      std::copy_n(at, p.count, p.data);
      at += p.count;
    }
    pieces_.clear();
    used = 0;
  };
  for (auto& parameter : parameters.all()) {
    if (parameter->sharding != Sharding::replicated) continue;
    float* data = parameter->gradient.data();
    int64_t left = parameter->local_size();
    while (left > 0) {
      const int64_t count = std::min(left, kBucket - used);
      pieces_.push_back({data, count});
      used += count;
      data += count;
      left -= count;
      if (used == kBucket) flush();
    }
  }
  flush();
}

}  // namespace airmoe::scheduler
