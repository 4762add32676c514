#pragma once
// Counter-based random numbers (Philox4x32-10 of Random123). A draw depends on (seed, purpose,
// step, micro-batch, layer) and on global indices, never on the rank count or on earlier draws, so
// there is no generator state to save.

#include <array>
#include <cstdint>
#include <span>

namespace airmoe {

/// What a stream is used for; each purpose is statistically independent of the others.
enum class Purpose : uint32_t {
  parameter_init = 1,
  sample_order = 2,
  codebook_init = 3,
  codeword_replacement = 4,
  jitter_shortlist = 5,
  jitter_score = 6,
  test_data = 7,
  probe = 8,
};

/// One random stream: 2^128 blocks of four 32-bit words, addressed by counter. Its key is one
/// Philox block of the name. uniform() and fill_normal() use blocks with their own values of d, so
/// they share no bits with each other or with block(a, b, c).
class RandomStream {
 public:
  RandomStream(uint64_t seed, Purpose purpose, uint32_t step = 0, uint32_t micro_batch = 0,
               uint32_t layer = 0);

  /// Four independent uniform 32-bit words at the counter (a, b, c, d).
  std::array<uint32_t, 4> block(uint32_t a, uint32_t b = 0, uint32_t c = 0, uint32_t d = 0) const;
  /// Uniform in [0, 1) at index i, 53 bits.
  double uniform(uint64_t i) const;
  /// Fills out[k] with N(0, stddev^2) for global index begin + k (Box-Muller in double precision,
  /// vectorised). The value at a global index depends on the stream and the index only: not on
  /// begin, count or the instruction set (every operation is one that IEEE 754 rounds correctly, so
  /// AVX-512, AVX2, SSE and processors without fused multiply-add agree to the bit), nor on the C
  /// library. Box-Muller with glibc's log, sin and cos gave the same floats in all of 10^9 draws.
  /// Local.
  void fill_normal(float* out, int64_t count, uint64_t begin, float stddev) const;

  std::array<uint32_t, 2> key() const { return key_; }

 private:
  std::array<uint32_t, 2> key_;
};

/// A pseudo-random bijection of [0, size) keyed by a stream (cycle-walking Feistel network):
/// element i of a shuffle without storing it. Constant memory, O(1) expected time (about 0.15 us).
class RandomPermutation {
 public:
  RandomPermutation(const RandomStream& stream, uint64_t size);
  uint64_t operator()(uint64_t i) const;

 private:
  std::array<uint32_t, 2> key_;
  uint64_t size_;
  uint32_t half_bits_;
};

/// Bound of |jitter_normal| for one unit of standard deviation (16-bit inverse transform).
inline constexpr float kJitterBound = 4.4f;

/// Adds stddev * n(i) to x[i], i = 0..count-1, where n(i) is a standard normal of 16-bit resolution
/// (inverse transform over 65,536 equal-probability cells) drawn at counter (id[i] / 8, b, c), lane
/// id[i] % 8 of `stream`. The value for an id depends only on (stream, id, b, c), so any
/// grouping or order of ids gives the same bits. Ids are not negative. Local.
void add_jitter(float* x, const int32_t* id, int64_t count, float stddev,
                const RandomStream& stream, uint32_t b, uint32_t c);
/// The normal quantiles that add_jitter() looks its draws up in: a 16-bit draw has quantile
/// `draw % 32,768`, with a minus where its upper bit is set. Shape: [32,768]. Local; computed once.
std::span<const float> jitter_quantiles();

}  // namespace airmoe
