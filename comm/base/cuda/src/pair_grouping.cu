#include "comm/base/cuda/pair_grouping.hpp"
#include "comm/base/cuda/src/pair_sorting.cuh"

namespace airmoe::cuda {

void DevicePairGrouping::build(const CodewordTokens& tokens, const DeviceLists& lists,
                               const uint16_t* position, int64_t active, int64_t rows,
                               cudaStream_t stream, int64_t slice) {
  check_pair_count(tokens, active, rows);
  const int64_t pairs = tokens.tokens * active;
  const int64_t slice_pairs = std::max<int64_t>(1, (slice > 0 ? slice : tokens.tokens) * active);
  const int64_t count = std::max<int64_t>(1, (pairs + slice_pairs - 1) / slice_pairs);
  for (int i = 0; i < 2; ++i) {
    row_[i].ensure(pairs);
    pair_[i].ensure(pairs);
  }
  offset_.ensure(count * (rows + 1));
  if (pairs > 0) {
    const dim3 grid(static_cast<unsigned>(tokens.tile_limit), 4);
    pair_keys_kernel<<<grid, kSortingThreads, 0, stream>>>(tokens, lists, position,
                                                           static_cast<int>(active), nullptr,
                                                           row_[0].data(), pair_[0].data());
    AIRMOE_CUDA_LAUNCHED();
  }
  slices_.clear();
  for (int64_t s = 0; s < count; ++s) {
    const int64_t begin = s * slice_pairs;
    const int64_t size = std::min(slice_pairs, pairs - begin);
    cub::DoubleBuffer<uint32_t> keys(row_[0].data() + begin, row_[1].data() + begin);
    cub::DoubleBuffer<int32_t> values(pair_[0].data() + begin, pair_[1].data() + begin);
    if (size > 0) sort_by_key(keys, values, size, 0, rows, scratch_, stream);
    const auto* sorted = reinterpret_cast<const int32_t*>(keys.Current());
    int32_t* const offset = offset_.data() + s * (rows + 1);
    group_offsets_kernel<<<static_cast<unsigned>(rows / kSortingThreads + 1), kSortingThreads, 0,
                           stream>>>(sorted, static_cast<int>(size), 0, static_cast<int>(rows),
                                     offset);
    AIRMOE_CUDA_LAUNCHED();
    slices_.push_back({rows, size, active, values.Current(), sorted, offset, tokens.token});
  }
}

}  // namespace airmoe::cuda
