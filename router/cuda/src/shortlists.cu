#include <algorithm>
#include <cmath>

#include <cuda_bf16.h>

#include "router/cuda/shortlists.hpp"
#include "router/cuda/src/list_kernels.hpp"

namespace airmoe::router::cuda {
namespace {

constexpr int64_t kTile = 128;  // rows and columns of the score kernels
constexpr int64_t kLongestRow = 8192;
constexpr int64_t kCandidateBytes = int64_t{128} << 20;
constexpr int64_t kLeastSample = 2048;
constexpr int64_t kLeastRoom = 4096;

// A threshold should let 1.3 M candidates through, more of short lists; there is room for 2.5 M. A
// guess from a sample aims at the middle between these, in the ratio to both.
int64_t room(int64_t length) {
  return std::max(kLeastRoom, length * 5 / 2 + 512);
}
int64_t warm_target(int64_t length) {
  const auto spread = static_cast<int64_t>(8 * std::sqrt(static_cast<double>(length)));
  return length + std::max(length * 3 / 10 + 16, spread);
}
int64_t cold_target(int64_t length, int64_t room) {
  return static_cast<int64_t>(std::sqrt(static_cast<double>(length) * static_cast<double>(room)));
}
/// Scores of a sample that should reach the threshold: so many that the guess is almost five
/// standard deviations from a list that is too short or too long.
double sample_rank(int64_t length, int64_t target) {
  const double ratio = std::log(static_cast<double>(target) / static_cast<double>(length));
  return std::max(16.0, 23.0 / (ratio * ratio));
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
    const int64_t target = cold_target(length, capacity_);
    const double share = sample_rank(length, target) / static_cast<double>(target);
    sample_ = round_up(
        std::max(kLeastSample, static_cast<int64_t>(share * static_cast<double>(experts))), kTile);
    if (sample_ > experts / 2) sample_ = experts / 8 * 8;
    row_elements_ = std::max(capacity_, sample_);
  }
  const int64_t most = kCandidateBytes / (row_elements_ * int64_t{sizeof(Candidate)});
  chunk_ = std::min(codewords, std::max(kTile, most / (2 * kTile) * (2 * kTile)));

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

  // Thresholds of rows that have none, from a sample that begins at an expert.
  const int64_t sample_stride =
      sample_ > 0 ? std::max<int64_t>(1, experts_ / 8 / (sample_ / 8)) : 1;
  const int64_t rank = (cold_target(length_, capacity_) * sample_ + experts_ - 1) / experts_;
  const auto look_for_thresholds = [&](const ListRows& rows, int64_t limit, int64_t begin) {
    task.first_codeword = -1;
    task.indices = sample_;
    task.stride = sample_stride;
    task.offset = begin;
    task.codeword = rows.codeword;
    task.rows = rows.rows;
    task.threshold = nullptr;
    task.capacity = sample_;
    task.count = rows.samples;
    append_scores(task, limit, stream);
    pick_thresholds(rows, limit, candidates, row_elements_, rank, threshold_.data(), stream);
  };
  const auto look_for_candidates = [&](const ListRows& rows, int64_t limit, int64_t first) {
    task.first_codeword = first;
    task.indices = experts_;
    task.stride = 1;
    task.offset = 0;
    task.codeword = rows.codeword;
    task.rows = rows.rows;
    task.threshold = threshold_.data();
    task.capacity = capacity_;
    task.count = rows.count;
    append_scores(task, limit, stream);
  };

  const bool all = which.id == nullptr;
  const bool sampled = sample_ > 0 && !(all && warm_ && !forgot_);
  for (int64_t first = 0; first < codewords_; first += chunk_) {
    const int64_t rows = std::min(chunk_, codewords_ - first);
    prepare_rows(work, first, rows, codewords_, which, sampled, threshold_.data(), stream);
    if (sampled) look_for_thresholds(work.cold, rows, 0);
    look_for_candidates(work.all, rows, all ? first : -1);
    select_lists(work, work.all, sample_ == 0, rows, shape, task, threshold_.data(), lists_.data(),
                 stream);
    if (sample_ == 0) continue;
    look_for_thresholds(work.again, rows, sample_stride / 2 * 8);
    look_for_candidates(work.again, rows, -1);
    select_lists(work, work.again, true, rows, shape, task, threshold_.data(), lists_.data(),
                 stream);
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
ListSearches DeviceShortlists<T>::searches(cudaStream_t stream) const {
  int32_t total[2] = {};
  const ListWork work(const_cast<int32_t*>(work_.data()), chunk_);
  AIRMOE_CUDA(cudaMemcpyAsync(total, work.second, sizeof(total), cudaMemcpyDeviceToHost, stream));
  AIRMOE_CUDA(cudaStreamSynchronize(stream));
  return {total[0], total[1]};
}

template class DeviceShortlists<float>;
template class DeviceShortlists<__nv_bfloat16>;

}  // namespace airmoe::router::cuda
