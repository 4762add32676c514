#pragma once
// Shortlists on a device: the M experts with the largest <c_g, w_e> + jitter over ALL experts
// (paper, "Forward" 3; router/shortlist.hpp).
//
// A rebuild is one matrix product that keeps no scores: those above a threshold of their codeword
// are appended to a buffer of candidates, of which the best M become the list. The threshold is
// carried over from the last rebuild, or for a codeword without one comes from a sample of the
// experts. Where it was too high or too low the codeword is searched again with one from another
// sample, and where that was of no use either (scores that are equal or no numbers) exhaustively,
// all on the device: lists are exact whatever happens.

#include <cstdint>
#include <optional>

#include "comm/base/cuda/device_buffer.hpp"
#include "comm/base/cuda/jitter.hpp"
#include "comm/base/cuda/routed.hpp"
#include "router/cuda/device_codewords.hpp"

namespace airmoe::router::cuda {

/// Lists that needed more than one search.
struct ListSearches {
  int64_t second = 0;      ///< by another threshold
  int64_t exhaustive = 0;  ///< of them by all scores: slow
};

/// T: type of codewords and unit centroids. With float the lists are those of the host, bit for
/// bit: ties by smaller id, NaN as minus infinity. With __nv_bfloat16 products are summed in fp32
/// in the order of the tensor cores.
template <class T>
class DeviceShortlists {
 public:
  /// Local: allocates and waits for the device. Throws Error naming --dim unless d is a multiple of
  /// 8; M <= min(E, 65,536).
  /// Memory: about 4 G M bytes of lists, and 20 G M (where lists are short: some 100 KB G) of
  /// candidates but about 128 MiB at most.
  DeviceShortlists(int64_t codewords, int64_t experts, int64_t length, int64_t dim);

  /// Local: lists of all codewords. Jitter: id = expert, b = codeword, c = 0 (jitter.cuh).
  /// @param codebook  Shape: [G, d]
  /// @param unit      Shape: [E, d]
  /// Asynchronous. Work: G * E * d; no array of codewords x experts.
  void rebuild(const T* codebook, const T* unit,
               const std::optional<airmoe::cuda::JitterKey>& jitter, cudaStream_t stream);
  /// Local: lists of these codewords only, which are taken for new ones. Asynchronous.
  void rebuild(const T* codebook, const T* unit,
               const std::optional<airmoe::cuda::JitterKey>& jitter, const DeviceCodewords& which,
               cudaStream_t stream);

  /// Local: codewords that are new ones (restarted): the next rebuild of all lists looks for their
  /// thresholds afresh instead of trying the old ones. Asynchronous.
  void forget(const DeviceCodewords& which, cudaStream_t stream);

  /// The lists, ids ascending; rows are the ids. Valid while this object lives.
  airmoe::cuda::DeviceLists view() const { return {length_, lists_.data(), lists_.data()}; }

  /// Local: how many lists needed more than one search so far; waits.
  ListSearches searches(cudaStream_t stream) const;

 private:
  void rebuild_rows(const T* codebook, const T* unit,
                    const std::optional<airmoe::cuda::JitterKey>& jitter,
                    const DeviceCodewords& which, cudaStream_t stream);

  int64_t codewords_, experts_, length_, dim_;
  int64_t capacity_;      // candidates of a codeword
  int64_t sample_ = 0;    // experts that a first threshold is taken from; 0: all are candidates
  int64_t row_elements_;  // elements of candidates_ per codeword
  int64_t chunk_;         // codewords at a time
  bool warm_ = false;     // every codeword has a threshold, but those forgotten
  bool forgot_ = false;
  airmoe::cuda::DeviceBuffer<int32_t> lists_;
  airmoe::cuda::DeviceBuffer<float> threshold_;  // NaN: none yet. Shape: [G]
  airmoe::cuda::DeviceBuffer<uint64_t> candidates_;
  airmoe::cuda::DeviceBuffer<int32_t> work_;  // ListWork of list_kernels.hpp
};

}  // namespace airmoe::router::cuda
