#pragma once
// Expert-centric execution on a device: tokens meet the hidden units of one expert after the other,
// which reads an expert's rows once per 64 of its tokens and each token once per pair. The right
// path for experts of many hidden units that few tokens of a codeword share; sums over a token's
// pairs stay with combine_pairs. Same contracts as experts/cuda/dense_path.hpp, and in fp32 the
// same bits.

#include "comm/base/cuda/pair_grouping.hpp"
#include "experts/cuda/dense_path.hpp"

namespace airmoe::experts::cuda {

/// @param groups  of the same selection as `tiles`
template <class T>
void forward_grouped(const DeviceExpertTable<T>& table, const T* hidden, int64_t d,
                     const airmoe::cuda::PairTiles& tiles, const airmoe::cuda::PairGroups& groups,
                     const float* gate, float* y, float* saved, ExpertWorkspace& workspace,
                     cudaStream_t stream);

template <class T>
void backward_pairs_grouped(const DeviceExpertTable<T>& table, const airmoe::cuda::PairTiles& tiles,
                            const airmoe::cuda::PairGroups& groups, const float* gate,
                            const float* saved, const T* d_y, int64_t d,
                            const PairGradients& gradients, cudaStream_t stream);

}  // namespace airmoe::experts::cuda
