#pragma once
// The trunk's gradients in a few ranges, so that those of the last layers, which are complete
// first, can be summed over the ranks while layers below still run backward.

#include <cstdint>
#include <span>
#include <vector>

namespace airmoe::scheduler::cuda {

/// Elements [begin, end) of the replicated gradients.
struct GradientBucket {
  int64_t layer = 0;  ///< complete when this layer has run backward; -1: at the very end
  int64_t begin = 0, end = 0;
};

/// Local, host: buckets in the order in which they are complete, of a quarter of the elements but
/// no more than 4 Mi each, and whole layers. Together they are [0, size).
/// @param layer_begin  first element of each layer, ascending; what lies before the first one is
///                     complete last, what lies behind the last one first. Shape: [layers]
std::vector<GradientBucket> gradient_buckets(std::span<const int64_t> layer_begin, int64_t size);

}  // namespace airmoe::scheduler::cuda
