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

/// Codewords that wait for a list, in device memory. A row is a place among them.
struct ListRows {
  int32_t* rows;      ///< [1] in use
  int32_t* codeword;  ///< [chunk] of a row
  int32_t* samples;   ///< [chunk] scores of a row's sample
  int32_t* count;     ///< [chunk] candidates of a row
};

/// Integers of a chunk in device memory.
struct ListWork {
  int32_t* second;      ///< [1] lists that needed a second threshold since they exist
  int32_t* exhaustive;  ///< [1] lists searched exhaustively since they exist
  ListRows all;         ///< the chunk; without samples
  ListRows cold;        ///< codewords of the chunk without a threshold; without candidates
  ListRows again;       ///< codewords of the chunk whose threshold was useless

  static constexpr int64_t size(int64_t chunk) { return 8 + 7 * chunk; }
  ListWork(int32_t* data, int64_t chunk)
      : second(data),
        exhaustive(data + 1),
        all{data + 2, data + 8, nullptr, data + 8 + chunk},
        cold{data + 3, data + 8 + 2 * chunk, data + 8 + 3 * chunk, nullptr},
        again{data + 4, data + 8 + 4 * chunk, data + 8 + 5 * chunk, data + 8 + 6 * chunk} {}
};

/// Rows of scores, and where those at or above the threshold go.
template <class T>
struct ScoreTask {
  const T* codebook = nullptr;
  const T* unit = nullptr;
  int64_t dim = 0, experts = 0;
  /// Experts in blocks of eight: index i is expert (i / 8) * 8 * stride + offset + i % 8, i <
  /// indices; offset is a multiple of eight.
  int64_t indices = 0, stride = 1, offset = 0;
  const int32_t* codeword = nullptr;  ///< of a row
  /// Not negative: rows are as many codewords from this one on as append_scores() is told.
  int64_t first_codeword = -1;
  const int32_t* rows = nullptr;     ///< [1]
  const float* threshold = nullptr;  ///< of a codeword; nullptr: everything but NaN is appended
  Candidate* candidates = nullptr;   ///< row r begins at r * row_elements
  int64_t row_elements = 0;
  int64_t capacity = 0;      ///< of a row; what does not fit is counted only
  int32_t* count = nullptr;  ///< [rows] zero before
  bool jittered = false;
  airmoe::cuda::JitterKey jitter;
};

/// At most `row_limit` rows, tokens of codewords against experts; list_scores_*.cu.
void append_scores(const ScoreTask<float>& task, int64_t row_limit, cudaStream_t stream);
void append_scores(const ScoreTask<__nv_bfloat16>& task, int64_t row_limit, cudaStream_t stream);

/// The same with warp-group products, where airmoe::cuda::has_wgmma(): all of a multiple of 32
/// experts, consecutive codewords that have thresholds.
void append_scores_wgmma(const ScoreTask<__nv_bfloat16>& task, int64_t rows, cudaStream_t stream);

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
/// Thresholds of rows from their samples: the rank-th largest. `row_limit`: at most so many rows.
void pick_thresholds(const ListRows& rows, int64_t row_limit, const Candidate* samples,
                     int64_t row_elements, int64_t rank, float* threshold, cudaStream_t stream);
/// Lists from the candidates that `task` has appended for `rows`, ids ascending. Where these are
/// too few or too many the codeword is added to work.again and its threshold forgotten; if `last`,
/// the list is taken from all scores. Thresholds move to where they should have let `target`
/// through.
template <class T>
void select_lists(const ListWork& work, const ListRows& rows, bool last, int64_t row_limit,
                  const ListShape& shape, const ScoreTask<T>& task, float* threshold,
                  int32_t* lists, cudaStream_t stream);

}  // namespace airmoe::router::cuda
