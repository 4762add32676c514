// The K largest keys of every place of a pass: a warp per place.

#include <algorithm>
#include <type_traits>

#include "comm/base/cuda/device.hpp"
#include "router/cuda/src/select_pass.cuh"
#include "router/cuda/src/warp_select.cuh"

namespace airmoe::router::cuda {
namespace {

constexpr int kMostWarps = 8;
constexpr int kGap = 4;  // words, see RowLayout

// With kShared a warp works on a copy of its keys in shared memory.
template <class Keys, bool kShared>
__global__ void __launch_bounds__(32 * kMostWarps, 4)
    select_rows_kernel(const SelectRequest a, const SelectPass pass, const RowLayout layout) {
  extern __shared__ __align__(16) char shared[];
  const int lane = static_cast<int>(threadIdx.x) & 31, warp = static_cast<int>(threadIdx.x) >> 5;
  const int warps = static_cast<int>(blockDim.x) >> 5;
  const int64_t index = int64_t{blockIdx.x} * warps + warp;
  const int64_t place = pass.first + index;
  if (place >= pass.end) return;
  const int codeword = pass.codeword[index];
  uint32_t* const row = pass.keys + index * pass.words;
  const int written = (layout.length + 31) / 32 * Keys::kBlockWords;
  const int words = kShared ? layout.words(Keys::kBlockWords) : 0;
  uint32_t* const mine = reinterpret_cast<uint32_t*>(shared) + warp * words;
#pragma unroll 8
  for (int i = 4 * lane; i < static_cast<int>(pass.words); i += 128) {
    uint4 v = make_uint4(0, 0, 0, 0);
    if constexpr (kShared) {
      if (i < written) v = *reinterpret_cast<const uint4*>(row + i);
      const int owner = layout.lane_of(i / Keys::kBlockWords * 32);
      *reinterpret_cast<uint4*>(mine + i + owner * layout.gap) = v;
    } else {
      if (i >= written) *reinterpret_cast<uint4*>(row + i) = v;
    }
  }
  __syncwarp();
  Keys keys;
  if constexpr (std::is_same_v<Keys, FixedKeys>) keys = FixedKeys::of_bound(pass.bound[index]);
  const Selection selection{a.active,
                            a.lists.id + codeword * a.lists.length,
                            airmoe::cuda::jitter_id(a.jitter, a.tokens.token[place]),
                            static_cast<uint32_t>(codeword),
                            a.out.position + place * a.active,
                            a.out.gate + place * a.active,
                            a.out.log_sum_exp == nullptr ? nullptr : a.out.log_sum_exp + place};
  const int capacity = list_capacity(a.active);
  uint16_t* const list =
      reinterpret_cast<uint16_t*>(shared + int64_t{4} * warps * words) + warp * capacity;
  const airmoe::cuda::JitterKey* jitter = a.jittered ? &a.jitter : nullptr;
  if constexpr (kShared) {
    WarpSelect<Keys>(keys, layout, mine, list, capacity).run(selection, jitter);
  } else {
    WarpSelect<Keys>(keys, layout, row, list, capacity).run(selection, jitter);
  }
}

template <class Keys, bool kShared>
void launch(const SelectRequest& request, const SelectPass& pass, int warps, int64_t warp_bytes,
            cudaStream_t stream) {
  const int64_t bytes = warps * warp_bytes;
  AIRMOE_CUDA(cudaFuncSetAttribute(select_rows_kernel<Keys, kShared>,
                                   cudaFuncAttributeMaxDynamicSharedMemorySize,
                                   static_cast<int>(bytes)));
  const RowLayout layout = RowLayout::of(request.lists.length, kShared ? kGap : 0);
  const auto blocks = static_cast<unsigned>((pass.end - pass.first + warps - 1) / warps);
  select_rows_kernel<Keys, kShared>
      <<<blocks, static_cast<unsigned>(32 * warps), static_cast<unsigned>(bytes), stream>>>(
          request, pass, layout);
  AIRMOE_CUDA_LAUNCHED();
}

}  // namespace

template <class Keys>
void select_rows(const SelectRequest& request, const SelectPass& pass, cudaStream_t stream) {
  const int64_t list_bytes = int64_t{2} * list_capacity(request.active);
  const RowLayout layout = RowLayout::of(request.lists.length, kGap);
  const int64_t warp_bytes = 4 * layout.words(Keys::kBlockWords) + list_bytes;
  const int64_t room = airmoe::cuda::device_properties().shared_bytes_per_block;
  // Two blocks on a multiprocessor where that leaves four warps to each.
  const int64_t half = room / 2 / warp_bytes;
  const int64_t warps =
      std::min<int64_t>(kMostWarps, half >= kMostWarps / 2 ? half : room / warp_bytes);
  if (warps > 0) {
    launch<Keys, true>(request, pass, static_cast<int>(warps), warp_bytes, stream);
  } else {
    launch<Keys, false>(request, pass, kMostWarps, list_bytes, stream);
  }
}

template void select_rows<FixedKeys>(const SelectRequest&, const SelectPass&, cudaStream_t);
template void select_rows<FloatKeys>(const SelectRequest&, const SelectPass&, cudaStream_t);

}  // namespace airmoe::router::cuda
