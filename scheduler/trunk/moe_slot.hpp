#pragma once
// What the trunk asks of the layer that stands in place of a dense FFN.

#include "comm/base/matrix_view.hpp"

namespace airmoe::scheduler {

/// Both calls are collective: every rank makes them in the same order, also with zero tokens.
class MoeSlot {
 public:
  virtual ~MoeSlot() = default;
  /// out = sum over selected experts, before the LayerNorm.  hidden, out: [n, d], n local tokens.
  virtual void forward(ConstMatrix hidden, Matrix out) = 0;
  /// Gradient of the last forward (training mode). d_hidden is overwritten. Shapes: [n, d].
  virtual void backward(ConstMatrix d_out, Matrix d_hidden) = 0;
};

}  // namespace airmoe::scheduler
