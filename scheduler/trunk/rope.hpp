#pragma once
// Rotary position embedding on interleaved pairs: (x[2i], x[2i+1]) of every head turns by the angle
// position * base^(-2i / head_dim).

#include <cstdint>

#include "comm/base/buffer.hpp"
#include "comm/base/matrix_view.hpp"

namespace airmoe::scheduler {

class RopeTable {
 public:
  /// Angles in double, stored as fp32 cosines and sines. head_dim is even.
  RopeTable(int64_t context, int64_t head_dim, float base);

  /// Turns row t of x by position t, in place. Shape of x: [context, heads * head_dim]
  void rotate(Matrix x) const { turn(x, 1.0f); }
  /// The inverse, which is also the gradient of rotate().
  void rotate_back(Matrix x) const { turn(x, -1.0f); }

 private:
  void turn(Matrix x, float direction) const;
  int64_t context_, head_dim_;
  Buffer<float> cosine_, sine_;  ///< every entry twice, for the pair. Shape: [context, head_dim]
};

}  // namespace airmoe::scheduler
