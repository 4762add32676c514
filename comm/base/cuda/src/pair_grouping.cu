#include "comm/base/cuda/pair_grouping.hpp"
#include "comm/base/cuda/src/pair_sorting.cuh"

namespace airmoe::cuda {

void DevicePairGrouping::build(const CodewordTokens& tokens, const DeviceLists& lists,
                               const uint16_t* position, int64_t active, int64_t rows,
                               cudaStream_t stream, int64_t slice) {
  check_pair_count(tokens, active, rows);
  make_keys(tokens, lists, position, active, nullptr, row_, pair_, stream);
  slices_.clear();
  sort_slices(tokens, active, slice, 0, rows, rows, row_, pair_, offset_, scratch_, stream,
              [&](int64_t size, const int32_t* pair, const int32_t* row, const int32_t* offset) {
                slices_.push_back({rows, size, active, pair, row, offset, tokens.token});
              });
}

}  // namespace airmoe::cuda
