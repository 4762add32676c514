#include <algorithm>

#include "comm/base/cuda/pair_accumulate.hpp"
#include "comm/base/cuda/src/pair_accumulate_kernels.cuh"
#include "comm/base/cuda/src/pair_accumulate_units.cuh"

namespace airmoe::cuda {
namespace {

/// Rows with pairs hold sums now.
__global__ void __launch_bounds__(256) mark_written_kernel(PairGroups groups, WrittenRows written) {
  const int row = static_cast<int>(blockIdx.x * 256 + threadIdx.x);
  if (row < groups.rows && groups.offset[row] < groups.offset[row + 1]) {
    written.number[row] = written.now;
  }
}

template <class T>
class Launcher {
 public:
  Launcher(const PairGroups& groups, const WrittenRows& written, int64_t d,
           AccumulateWorkspace& workspace, cudaStream_t stream)
      : groups_(groups), written_(written), d_(d), workspace_(workspace), stream_(stream) {}

  /// Jobs job[0..first) with source `a`, then `second` of them with source `b`.
  void run(const AccumulateJob* job, int first, const T* a, int second, const T* b) {
    switch (second * 4 + first) {
      case 1:
        return launch<1, 0>(job, a, b);
      case 2:
        return launch<2, 0>(job, a, b);
      case 3:
        return launch<3, 0>(job, a, b);
      case 4:
        return launch<4, 0>(job, a, b);
      case 5:
        return launch<1, 1>(job, a, b);
      case 6:
        return launch<2, 1>(job, a, b);
      case 7:
        return launch<3, 1>(job, a, b);
      default:
        fail(ExitCode::failure, "accumulate_pairs: {} and {} jobs", first, second);
    }
  }

 private:
  template <int kFirst, int kSecond>
  void launch(const AccumulateJob* job, const T* a, const T* b) {
    AccumulateJobs<T, kFirst, kSecond> jobs{{a, b}, {}};
    for (int i = 0; i < kFirst + kSecond; ++i) jobs.job[i] = job[i];
    if (d_ <= 128) {
      launch_columns<kFirst, kSecond, 4>(jobs);
    } else {
      launch_columns<kFirst, kSecond, 8>(jobs);
    }
  }

  template <int kFirst, int kSecond, int kColumns>
  void launch_columns(const AccumulateJobs<T, kFirst, kSecond>& jobs) {
    const int64_t segments = (groups_.pairs + kSegment - 1) / kSegment;
    workspace_.partial.ensure(segments * (kFirst + kSecond) * d_);
    const dim3 grid(static_cast<unsigned>((segments + kWarpsPerBlock - 1) / kWarpsPerBlock),
                    static_cast<unsigned>((d_ + 32 * kColumns - 1) / (32 * kColumns)));
    accumulate_kernel<T, kFirst, kSecond, kColumns><<<grid, kWarpsPerBlock * 32, 0, stream_>>>(
        groups_, jobs, written_, static_cast<int>(segments), static_cast<int>(d_),
        workspace_.partial.data());
    AIRMOE_CUDA_LAUNCHED();
    add_parts_kernel<T, kFirst, kSecond><<<static_cast<unsigned>(segments), 128, 0, stream_>>>(
        groups_, jobs, written_, static_cast<int>(d_), workspace_.partial.data());
    AIRMOE_CUDA_LAUNCHED();
  }

  const PairGroups& groups_;
  WrittenRows written_;
  int64_t d_;
  AccumulateWorkspace& workspace_;
  cudaStream_t stream_;
};

/// From so many products per row on, and so many units, one product on tensor cores beats reading
/// the tokens once per four units.
constexpr int64_t kTensorUnits = 16, kTensorProducts = 512;

void accumulate_units(const PairGroups& groups, const AccumulateTerm<__nv_bfloat16>& term,
                      const WrittenRows& written, int64_t d, cudaStream_t stream) {
  using Shape = AccumulateShape;
  AIRMOE_CUDA(cudaFuncSetAttribute(
      accumulate_units_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, Shape::kSharedBytes));
  const int64_t slabs = (d + Shape::kColumns - 1) / Shape::kColumns;
  const int64_t parts = (term.units + Shape::kUnits - 1) / Shape::kUnits;
  AIRMOE_CHECK(slabs * parts < 65536, "experts of {} hidden units and width {} are too large",
               term.units, d);
  const dim3 grid(static_cast<unsigned>(groups.rows), static_cast<unsigned>(slabs * parts));
  accumulate_units_kernel<<<grid, Shape::kThreads, Shape::kSharedBytes, stream>>>(
      groups, term.coefficient, term.source, term.gradient, written, static_cast<int>(term.units),
      static_cast<int>(d), static_cast<int>(slabs));
  AIRMOE_CUDA_LAUNCHED();
}

template <class T>
bool on_tensor_cores(const PairGroups& groups, const AccumulateTerm<T>& term) {
  return std::is_same_v<T, __nv_bfloat16> && term.units >= kTensorUnits &&
         groups.pairs * term.units >= kTensorProducts * groups.rows;
}

template <class T>
AccumulateJob job_of(const AccumulateTerm<T>& term, int64_t unit, int64_t d) {
  return {term.coefficient + unit, term.gradient + unit * d, term.units};
}

template <class T>
void accumulate_terms(const PairGroups& groups, std::span<const AccumulateTerm<T>> terms, int64_t d,
                      AccumulateWorkspace& workspace, cudaStream_t stream,
                      const WrittenRows& written) {
  Launcher<T> launcher(groups, written, d, workspace, stream);
  constexpr int kMost = 4;
  AccumulateJob jobs[kMost];

  // The usual case, one pass over both sources: up to three jobs of one and one of the other.
  int64_t total = 0;
  for (const auto& term : terms) total += term.units;
  const auto& last = terms.back();
  if (total <= kMost && last.units == 1) {
    bool one_pass = true;
    for (const auto& term : terms.first(terms.size() - 1)) {
      one_pass = one_pass && term.source == terms[0].source && term.source != last.source;
    }
    if (one_pass && terms.size() > 1) {
      int count = 0;
      for (const auto& term : terms) {
        for (int64_t unit = 0; unit < term.units; ++unit) jobs[count++] = job_of(term, unit, d);
      }
      return launcher.run(jobs, count - 1, terms[0].source, 1, last.source);
    }
  }

  if constexpr (std::is_same_v<T, __nv_bfloat16>) {
    for (const auto& term : terms) {
      if (on_tensor_cores(groups, term)) accumulate_units(groups, term, written, d, stream);
    }
  }
  // Else one source after the other, up to four jobs at a time.
  for (std::size_t i = 0; i < terms.size(); ++i) {
    bool done = false;
    for (std::size_t before = 0; before < i; ++before) {
      done = done ||
             (terms[before].source == terms[i].source && !on_tensor_cores(groups, terms[before]));
    }
    if (done || on_tensor_cores(groups, terms[i])) continue;
    int count = 0;
    for (std::size_t k = i; k < terms.size(); ++k) {
      if (terms[k].source != terms[i].source || on_tensor_cores(groups, terms[k])) continue;
      for (int64_t unit = 0; unit < terms[k].units; ++unit) {
        jobs[count++] = job_of(terms[k], unit, d);
        if (count < kMost) continue;
        launcher.run(jobs, count, terms[i].source, 0, nullptr);
        count = 0;
      }
    }
    if (count > 0) launcher.run(jobs, count, terms[i].source, 0, nullptr);
  }
}

}  // namespace

template <class T>
void accumulate_pairs(const PairGroups& groups, std::span<const AccumulateTerm<T>> terms, int64_t d,
                      AccumulateWorkspace& workspace, cudaStream_t stream,
                      const WrittenRows& written) {
  if (d <= 0 || d % 8 != 0) {
    fail(ExitCode::config, "--dim {}: a device needs a multiple of 8", d);
  }
  if (groups.pairs == 0 || terms.empty()) return;
  accumulate_terms(groups, terms, d, workspace, stream, written);
  if (written.number == nullptr) return;
  mark_written_kernel<<<static_cast<unsigned>((groups.rows + 255) / 256), 256, 0, stream>>>(
      groups, written);
  AIRMOE_CUDA_LAUNCHED();
}

template <class T>
int64_t accumulate_slice(int64_t tokens, int64_t d) {
  constexpr int64_t kBytes = 16 << 20;
  const int64_t columns = std::min<int64_t>(d, 256);
  const int64_t most = kBytes / (2 * columns * static_cast<int64_t>(sizeof(T)));
  if (tokens < most + most / 2) return 0;
  const int64_t slices = (tokens + most - 1) / most;
  return (tokens + slices - 1) / slices;
}

template int64_t accumulate_slice<float>(int64_t, int64_t);
template int64_t accumulate_slice<__nv_bfloat16>(int64_t, int64_t);
template void accumulate_pairs<float>(const PairGroups&, std::span<const AccumulateTerm<float>>,
                                      int64_t, AccumulateWorkspace&, cudaStream_t,
                                      const WrittenRows&);
template void accumulate_pairs<__nv_bfloat16>(const PairGroups&,
                                              std::span<const AccumulateTerm<__nv_bfloat16>>,
                                              int64_t, AccumulateWorkspace&, cudaStream_t,
                                              const WrittenRows&);

}  // namespace airmoe::cuda
