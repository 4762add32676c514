// Checks, the choice of the kind of keys, and the passes.

#include <algorithm>
#include <type_traits>

#include "router/cuda/select.hpp"
#include "router/cuda/src/keys.cuh"
#include "router/cuda/src/select_pass.cuh"

namespace airmoe::router::cuda {
namespace {

constexpr int64_t kWorkspaceBytes = int64_t{128} << 20;

// Calls visit(pass) for all passes.
template <class Visit>
void each_pass(const SelectRequest& request, int block_words, SelectWorkspace& workspace,
               Visit visit) {
  const int64_t n = request.tokens.tokens;
  const int64_t words = (request.lists.length + 1023) / 1024 * 32 * block_words;
  const int64_t places = std::min(n, std::max<int64_t>(kWorkspaceBytes / (4 * words), 32));
  workspace.keys.ensure(places * words);
  workspace.codeword.ensure(places);
  workspace.bound.ensure(places);
  for (int64_t first = 0; first < n; first += places) {
    visit(SelectPass{static_cast<int>(first), static_cast<int>(std::min(first + places, n)), words,
                     workspace.keys.data(), workspace.codeword.data(), workspace.bound.data()});
  }
}

}  // namespace

template <class T>
void select_experts(const T* hidden, int64_t d, const airmoe::cuda::CodewordTokens& tokens,
                    const airmoe::cuda::DeviceLists& lists, const T* unit, int64_t active,
                    const airmoe::cuda::JitterKey* jitter, const SelectOutput& out,
                    SelectWorkspace& workspace, cudaStream_t stream) {
  if (d < 8 || d % 8 != 0) {
    fail(ExitCode::usage, "--dim {}: kernels on a device need a multiple of 8", d);
  }
  if (lists.length < 1 || lists.length > 65536) {
    fail(ExitCode::usage, "--shortlist {}: a device takes 1 to 65536 candidates", lists.length);
  }
  if (active < 1 || active > lists.length) {
    fail(ExitCode::usage, "--active {}: must be between 1 and the {} of --shortlist", active,
         lists.length);
  }
  if (tokens.tokens == 0) return;
  const SelectRequest request{tokens,
                              lists,
                              static_cast<int>(d),
                              static_cast<int>(active),
                              jitter != nullptr && jitter->stddev != 0.0f,
                              jitter != nullptr ? *jitter : airmoe::cuda::JitterKey{},
                              out};
  if constexpr (std::is_same_v<T, __nv_bfloat16>) {
    const bool streams = can_score_stream(d);
    if (streams || can_score_fixed(d)) {
      each_pass(request, FixedKeys::kBlockWords, workspace, [&](const SelectPass& pass) {
        (streams ? score_stream : score_fixed)(request, hidden, unit, pass, stream);
        select_rows<FixedKeys>(request, pass, stream);
      });
      return;
    }
  }
  each_pass(request, FloatKeys::kBlockWords, workspace, [&](const SelectPass& pass) {
    score_exact(request, hidden, unit, pass, stream);
    select_rows<FloatKeys>(request, pass, stream);
  });
}

template void select_experts(const float*, int64_t, const airmoe::cuda::CodewordTokens&,
                             const airmoe::cuda::DeviceLists&, const float*, int64_t,
                             const airmoe::cuda::JitterKey*, const SelectOutput&, SelectWorkspace&,
                             cudaStream_t);
template void select_experts(const __nv_bfloat16*, int64_t, const airmoe::cuda::CodewordTokens&,
                             const airmoe::cuda::DeviceLists&, const __nv_bfloat16*, int64_t,
                             const airmoe::cuda::JitterKey*, const SelectOutput&, SelectWorkspace&,
                             cudaStream_t);

}  // namespace airmoe::router::cuda
