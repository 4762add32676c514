#include <algorithm>

#include "comm/base/cuda/device.hpp"
#include "comm/cuda/src/pack_rows.hpp"

namespace airmoe::comm::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarp = 32;
constexpr int64_t kMaxBlocks = 132 * 16;

// Few words: a thread per word would divide, a warp per row would idle; so a group of `lanes`
// threads, a power of two up to a warp, takes a row.
template <class Word>
__global__ void pack_kernel(const Word* table, const int32_t* rows, int64_t count, int64_t words,
                            int lanes, Word* packed, OwnRange own) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * (kThreads / lanes);
  const int lane = static_cast<int>(threadIdx.x) & (lanes - 1);
  int64_t row = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) / lanes;
  for (; row < count; row += step) {
    const bool is_own = row >= own.begin && row < own.end;
    Word* to =
        is_own ? reinterpret_cast<Word*>(own.to) + (row - own.begin) * words : packed + row * words;
    const Word* from = table + rows[row] * words;
    for (int64_t word = lane; word < words; word += lanes) to[word] = from[word];
  }
}

template <class Word>
void launch(const std::byte* table, const int32_t* rows, int64_t count, int64_t row_bytes,
            std::byte* packed, const OwnRange& own, cudaStream_t stream) {
  const int64_t words = row_bytes / static_cast<int64_t>(sizeof(Word));
  int lanes = 1;
  while (lanes < words && lanes < kWarp) lanes *= 2;
  const int64_t blocks = std::min(kMaxBlocks, (count * lanes + kThreads - 1) / kThreads);
  pack_kernel<<<static_cast<unsigned>(blocks), kThreads, 0, stream>>>(
      reinterpret_cast<const Word*>(table), rows, count, words, lanes,
      reinterpret_cast<Word*>(packed), own);
  AIRMOE_CUDA_LAUNCHED();
}

}  // namespace

void pack_rows(const std::byte* table, const int32_t* rows, int64_t count, int64_t row_bytes,
               std::byte* packed, const OwnRange& own, cudaStream_t stream) {
  if (count * row_bytes == 0) return;
  const auto fits = [&](uintptr_t size) {
    return (reinterpret_cast<uintptr_t>(table) | reinterpret_cast<uintptr_t>(packed) |
            reinterpret_cast<uintptr_t>(own.to) | static_cast<uintptr_t>(row_bytes)) %
               size ==
           0;
  };
  const auto run = [&](auto word) {
    launch<decltype(word)>(table, rows, count, row_bytes, packed, own, stream);
  };
  if (fits(16)) return run(uint4{});
  if (fits(4)) return run(uint32_t{});
  if (fits(2)) return run(uint16_t{});
  run(uint8_t{});
}

}  // namespace airmoe::comm::cuda
