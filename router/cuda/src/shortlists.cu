#include <algorithm>
#include <vector>

#include <cuda_bf16.h>

#include "router/cuda/shortlists.hpp"
#include "router/cuda/src/list_kernels.hpp"

namespace airmoe::router::cuda {
namespace {

constexpr int64_t kTile = 128;  // rows and columns of the score kernels
constexpr int64_t kLongestRow = 8192;
constexpr int64_t kCandidateBytes = int64_t{128} << 20;
constexpr int64_t kSampleRank = 32;  // entries of a list that a sample should hold, or so
constexpr int64_t kLeastSample = 2048;

// A threshold should let 1.3 M candidates through, a guess from a sample 1.6 M; there is room for
// 2.5 M.
int64_t warm_target(int64_t length) {
  return length + length * 3 / 10 + 16;
}
int64_t cold_target(int64_t length) {
  return length + length * 6 / 10 + 16;
}
int64_t room(int64_t length) {
  return length * 5 / 2 + 512;
}

int64_t round_up(int64_t x, int64_t to) {
  return (x + to - 1) / to * to;
}

__global__ void forget_thresholds(DeviceCodewords which, float* threshold) {
  for (int i = threadIdx.x; i < *which.count; i += blockDim.x) threshold[which.id[i]] = NAN;
}

}  // namespace

template <class T>
DeviceShortlists<T>::DeviceShortlists(int64_t codewords, int64_t experts, int64_t length,
                                      int64_t dim)
    : codewords_(codewords), experts_(experts), length_(length), dim_(dim) {
  if (dim < 8 || dim % 8 != 0 || dim > kLongestRow) {
    fail(ExitCode::config, "--dim {}: on a device it must be a multiple of 8, at most {}", dim,
         kLongestRow);
  }
  AIRMOE_CHECK(codewords >= 1 && length >= 1 && length <= experts && length <= 65536,
               "shortlists of {} codewords, {} of {} experts", codewords, length, experts);
  AIRMOE_CHECK(experts <= 65535 * kTile, "shortlists over {} experts: at most {}", experts,
               65535 * kTile);
  capacity_ = std::min(room(length), experts);
  row_elements_ = capacity_;
  if (capacity_ < experts) {
    sample_ = round_up(std::max(kLeastSample, kSampleRank * experts / length), kTile);
    if (sample_ > experts / 2) sample_ = experts / 8 * 8;
    row_elements_ = std::max(capacity_, sample_);
  }
  const int64_t most = kCandidateBytes / (row_elements_ * int64_t{sizeof(Candidate)});
  chunk_ = std::min(codewords, std::max(kTile, most / kTile * kTile));

  static_assert(sizeof(Candidate) == sizeof(uint64_t));
  lists_.ensure(codewords * length);
  threshold_.ensure(codewords);
  candidates_.ensure(chunk_ * row_elements_);
  work_.ensure(ListWork::size(chunk_));
  // All bytes set is NaN.
  AIRMOE_CUDA(cudaMemset(threshold_.data(), 0xFF, threshold_.bytes()));
  AIRMOE_CUDA(cudaMemset(work_.data(), 0, work_.bytes()));
  AIRMOE_CUDA(cudaMemset(lists_.data(), 0, lists_.bytes()));
  AIRMOE_CUDA(cudaDeviceSynchronize());
}

template <class T>
void DeviceShortlists<T>::rebuild(const T* codebook, const T* unit,
                                  const std::optional<airmoe::cuda::JitterKey>& jitter,
                                  cudaStream_t stream) {
  rebuild_rows(codebook, unit, jitter, {}, stream);
}

template <class T>
void DeviceShortlists<T>::rebuild(const T* codebook, const T* unit,
                                  const std::optional<airmoe::cuda::JitterKey>& jitter,
                                  const DeviceCodewords& which, cudaStream_t stream) {
  AIRMOE_CHECK(which.id != nullptr && which.count != nullptr, "rebuild of lists without ids");
  rebuild_rows(codebook, unit, jitter, which, stream);
}

template <class T>
void DeviceShortlists<T>::rebuild_rows(const T* codebook, const T* unit,
                                       const std::optional<airmoe::cuda::JitterKey>& jitter,
                                       const DeviceCodewords& which, cudaStream_t stream) {
  const ListWork work(work_.data(), chunk_);
  auto* candidates = reinterpret_cast<Candidate*>(candidates_.data());
  const ListShape shape{experts_, length_, std::min(warm_target(length_), capacity_)};
  ScoreTask<T> task;
  task.codebook = codebook;
  task.unit = unit;
  task.dim = dim_;
  task.experts = experts_;
  task.candidates = candidates;
  task.row_elements = row_elements_;
  task.jittered = jitter.has_value() && jitter->stddev != 0.0f;
  if (task.jittered) task.jitter = *jitter;

  const bool all = which.id == nullptr;
  const bool sampled = sample_ > 0 && !(all && warm_ && !forgot_);
  for (int64_t first = 0; first < codewords_; first += chunk_) {
    const int64_t rows = std::min(chunk_, codewords_ - first);
    prepare_rows(work, first, rows, codewords_, which, sampled, threshold_.data(), stream);
    if (sampled) {
      task.indices = sample_;
      task.stride = std::max<int64_t>(1, experts_ / 8 / (sample_ / 8));
      task.codeword = work.cold;
      task.rows = work.cold_rows;
      task.threshold = nullptr;
      task.capacity = sample_;
      task.count = work.sample_count;
      append_scores(task, rows, stream);
      const int64_t rank = (cold_target(length_) * sample_ + experts_ - 1) / experts_;
      pick_thresholds(work, rows, candidates, row_elements_, rank, threshold_.data(), stream);
    }
    task.indices = experts_;
    task.stride = 1;
    task.codeword = work.codeword;
    task.rows = work.rows;
    task.threshold = threshold_.data();
    task.capacity = capacity_;
    task.count = work.count;
    append_scores(task, rows, stream);
    select_lists(work, rows, shape, task, threshold_.data(), lists_.data(), stream);
  }
  warm_ = warm_ || all;
  if (all) forgot_ = false;
}

template <class T>
void DeviceShortlists<T>::forget(const DeviceCodewords& which, cudaStream_t stream) {
  forget_thresholds<<<1, 256, 0, stream>>>(which, threshold_.data());
  AIRMOE_CUDA_LAUNCHED();
  forgot_ = true;
}

template <class T>
int64_t DeviceShortlists<T>::exhaustive_searches(cudaStream_t stream) const {
  int32_t total = 0;
  const ListWork work(const_cast<int32_t*>(work_.data()), chunk_);
  AIRMOE_CUDA(
      cudaMemcpyAsync(&total, work.exhaustive, sizeof(total), cudaMemcpyDeviceToHost, stream));
  AIRMOE_CUDA(cudaStreamSynchronize(stream));
  return total;
}

template class DeviceShortlists<float>;
template class DeviceShortlists<__nv_bfloat16>;

}  // namespace airmoe::router::cuda
