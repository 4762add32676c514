#pragma once
// The steps of a rebuild of shortlists, for one chunk of codewords. All asynchronous.

#include <cstdint>

#include <cuda_bf16.h>
#include <cuda_runtime_api.h>

#include "comm/base/cuda/jitter.hpp"
#include "router/cuda/device_codewords.hpp"

namespace airmoe::router::cuda {

/// A score that reached the threshold of its codeword.
struct Candidate {
  float score;
  int32_t id;  ///< expert
};

/// Integers of a chunk in device memory. A row is a codeword of the chunk.
struct ListWork {
  int32_t* rows;          ///< [1] rows in use
  int32_t* cold_rows;     ///< [1] of them without a threshold
  int32_t* exhaustive;    ///< [1] lists searched exhaustively since they exist
  int32_t* codeword;      ///< [chunk] of a row
  int32_t* cold;          ///< [chunk] codewords
  int32_t* count;         ///< [chunk] candidates of a row
  int32_t* sample_count;  ///< [chunk] candidates of a cold row

  static constexpr int64_t size(int64_t chunk) { return 4 + 4 * chunk; }
  ListWork(int32_t* data, int64_t chunk)
      : rows(data),
        cold_rows(data + 1),
        exhaustive(data + 2),
        codeword(data + 4),
        cold(codeword + chunk),
        count(cold + chunk),
        sample_count(count + chunk) {}
};

/// Rows of scores, and where those at or above the threshold go.
template <class T>
struct ScoreTask {
  const T* codebook = nullptr;
  const T* unit = nullptr;
  int64_t dim = 0, experts = 0;
  /// Experts in blocks of eight: index i is expert (i / 8) * 8 * stride + i % 8, i < indices.
  int64_t indices = 0, stride = 1;
  const int32_t* codeword = nullptr;  ///< of a row
  const int32_t* rows = nullptr;      ///< [1]
  const float* threshold = nullptr;   ///< of a codeword; nullptr: everything but NaN is appended
  Candidate* candidates = nullptr;    ///< row r begins at r * row_elements
  int64_t row_elements = 0;
  int64_t capacity = 0;      ///< of a row; what does not fit is counted only
  int32_t* count = nullptr;  ///< [rows] zero before
  bool jittered = false;
  airmoe::cuda::JitterKey jitter;
};

/// At most `row_limit` rows, tokens of codewords against experts; list_scores_*.cu.
void append_scores(const ScoreTask<float>& task, int64_t row_limit, cudaStream_t stream);
void append_scores(const ScoreTask<__nv_bfloat16>& task, int64_t row_limit, cudaStream_t stream);

/// How a list is chosen from its candidates.
struct ListShape {
  int64_t experts, length;
  int64_t target;  ///< candidates that a threshold should let through, >= length
};

/// Fills `work` for codewords first .. first + chunk - 1, or for these places of `which`, whose
/// thresholds are forgotten. Without sampling a cold row's threshold lets everything through.
void prepare_rows(const ListWork& work, int64_t first, int64_t chunk, int64_t codewords,
                  const DeviceCodewords& which, bool sampled, float* threshold,
                  cudaStream_t stream);
/// Thresholds of the cold rows from their samples: the rank-th largest.
void pick_thresholds(const ListWork& work, int64_t chunk, const Candidate* samples,
                     int64_t row_elements, int64_t rank, float* threshold, cudaStream_t stream);
/// Lists from the candidates that `task` has appended, ids ascending; where these are too few or
/// too many, from all scores. Thresholds move to where they should have let `target` through.
template <class T>
void select_lists(const ListWork& work, int64_t chunk, const ListShape& shape,
                  const ScoreTask<T>& task, float* threshold, int32_t* lists, cudaStream_t stream);

}  // namespace airmoe::router::cuda
