#include <algorithm>

#include "comm/base/cuda/src/pair_accumulate_bundles.cuh"
#include "comm/base/cuda/wgmma.hpp"
#include "comm/base/error.hpp"

namespace airmoe::cuda {
namespace {

using Bf16 = __nv_bfloat16;
using Terms = std::span<const AccumulateTerm<Bf16>>;

/// Pairs per block: enough that few bundles are cut, few enough that all blocks have one.
constexpr int64_t kMostSegment = 8192, kLeastSegment = 512, kWantedBlocks = 1024;

template <int kFirst>
void launch(const PairBundles& bundles, Terms terms, int64_t d, AccumulateWorkspace& workspace,
            cudaStream_t stream, const WrittenRows& written) {
  using Shape = BundleShape;
  constexpr int kJobs = kFirst + 1;
  AccumulateJobs<Bf16, kFirst, 1> jobs{{terms[0].source, terms[kFirst].source}, {}};
  for (int j = 0; j < kJobs; ++j) jobs.job[j] = {terms[j].coefficient, terms[j].gradient, 1};
  int64_t segment = kMostSegment;
  while (segment > kLeastSegment && bundles.pairs < segment * kWantedBlocks) segment /= 2;
  const int64_t segments = (bundles.pairs + segment - 1) / segment;
  workspace.partial.ensure(segments * kJobs * kBundleRows * d);
  workspace.part_rows.ensure(segments);
  workspace.rows_of_bundle.ensure(bundles.bundles());
  AIRMOE_CUDA(cudaMemsetAsync(workspace.rows_of_bundle.data(), 0,
                              static_cast<std::size_t>(bundles.bundles()) * sizeof(uint32_t),
                              stream));
  constexpr int kShared = Shape::shared_bytes(kJobs);
  const auto kernel = accumulate_bundles_kernel<kFirst, 1>;
  AIRMOE_CUDA(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kShared));
  const dim3 grid(static_cast<unsigned>(segments),
                  static_cast<unsigned>((d + Shape::kColumns - 1) / Shape::kColumns));
  kernel<<<grid, Shape::kThreads, kShared, stream>>>(
      bundles, jobs, written, static_cast<int>(segment), static_cast<int>(d),
      workspace.partial.data(), workspace.part_rows.data(), workspace.rows_of_bundle.data());
  AIRMOE_CUDA_LAUNCHED();
  add_bundle_parts_kernel<kFirst, 1><<<dim3(static_cast<unsigned>(segments), 4), 256, 0, stream>>>(
      bundles, jobs, written, static_cast<int>(segment), static_cast<int>(d),
      workspace.partial.data(), workspace.part_rows.data(), workspace.rows_of_bundle.data());
  AIRMOE_CUDA_LAUNCHED();
}

}  // namespace

void accumulate_bundles(const PairBundles& bundles, Terms terms, int64_t d,
                        AccumulateWorkspace& workspace, cudaStream_t stream,
                        const WrittenRows& written) {
  if (d <= 0 || d % 8 != 0) {
    fail(ExitCode::config, "--dim {}: a device needs a multiple of 8", d);
  }
  AIRMOE_CHECK(
      terms.size() >= 2 && terms.size() <= 4 && terms.front().source != terms.back().source,
      "accumulate_bundles: {} terms", terms.size());
  for (std::size_t i = 0; i < terms.size(); ++i) {
    AIRMOE_CHECK(
        terms[i].units == 1 && (i + 1 == terms.size() || terms[i].source == terms.front().source),
        "accumulate_bundles: term {} has {} units or another source", i, terms[i].units);
  }
  if (bundles.pairs == 0) return;
  switch (terms.size()) {
    case 2:
      launch<1>(bundles, terms, d, workspace, stream, written);
      break;
    case 3:
      launch<2>(bundles, terms, d, workspace, stream, written);
      break;
    default:
      launch<3>(bundles, terms, d, workspace, stream, written);
  }
  if (written.number == nullptr) return;
  mark_bundles_written_kernel<<<static_cast<unsigned>((bundles.rows + 255) / 256), 256, 0,
                                stream>>>(bundles, workspace.rows_of_bundle.data(), written);
  AIRMOE_CUDA_LAUNCHED();
}

}  // namespace airmoe::cuda
