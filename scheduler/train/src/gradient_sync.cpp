#include "scheduler/train/gradient_sync.hpp"

#include <algorithm>

namespace airmoe::scheduler {

template <class T>
void GradientSync::reduce_pieces(Buffer<T>& bucket, int64_t used) {
  bucket.ensure(used);
  T* at = bucket.data();
  for (const Piece& p : pieces_) {
    for (int64_t i = 0; i < p.count; ++i) at[i] = static_cast<T>(p.sum[i]);
    at += p.count;
  }
  comm_.all_reduce(bucket.span(), comm::Reduction::sum);
  at = bucket.data();
  for (const Piece& p : pieces_) {
    for (int64_t i = 0; i < p.count; ++i) p.gradient[i] = static_cast<float>(at[i]);
    std::fill_n(p.sum, p.count, 0.0);
    at += p.count;
  }
  pieces_.clear();
}

void GradientSync::all_reduce(ParameterSet& parameters) {
  const comm::ScopedPhase phase(comm_, "gradients");
  if (comm_.size() == 1) {
    parameters.unfold_gradients();
    return;
  }
  pieces_.clear();
  int64_t used = 0;
  const auto flush = [&] {
    if (used == 0) return;
    if (precision_ == SumPrecision::f64) {
      reduce_pieces(bucket_f64_, used);
    } else {
      reduce_pieces(bucket_f32_, used);
    }
    used = 0;
  };
  for (auto& parameter : parameters.all()) {
    if (parameter->sharding != Sharding::replicated) continue;
    const int64_t size = parameter->local_size();
    for (int64_t begin = 0; begin < size;) {
      const int64_t count = std::min(size - begin, kBucket - used);
      pieces_.push_back(
          {parameter->gradient_sum.data() + begin, parameter->gradient.data() + begin, count});
      used += count;
      begin += count;
      if (used == kBucket) flush();
    }
  }
  flush();
}

}  // namespace airmoe::scheduler
