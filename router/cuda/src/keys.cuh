#pragma once
// Sortable integers that stand for scores: a larger score has a larger key, 0 is below all of them.

#include <cstdint>

#include "router/cuda/src/order_key.cuh"

namespace airmoe::router::cuda {

/// Scores of one token in `step`s: key = 16,384 + score / step. Two keys share a word, 15 bits
/// each, so that both are compared by one instruction.
struct FixedKeys {
  using Sum = float;
  /// Of a block of 32 positions; word i holds positions i and 16 + i.
  static constexpr int kBlockWords = 16;
  static constexpr uint32_t kEnd = 32768;  ///< above all keys

  float step, per_unit;  ///< per_unit = 1 / step; both 0 for a token whose scores are all 0

  /// For a token with |score| <= bound.
  __device__ static FixedKeys of_bound(float bound) {
    const bool usable = bound > 1e-30f && bound < 1e30f;
    return {usable ? bound * (1.0f / 16383.0f) : 0.0f, usable ? __fdividef(16383.0f, bound) : 0.0f};
  }
  /// The key of a score is in the low 16 bits; the others hold something else. NaN has key 1.
  __device__ static uint32_t low_half(float score, float half_per_bound) {
    constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: the integer ends up in the low bits
    return __float_as_uint(
        fmaf(__saturatef(fmaf(score, half_per_bound, 0.5f)), 32766.0f, kRound + 1.0f));
  }
  /// What low_half() wants.
  __device__ float half_per_bound() const { return per_unit * (0.5f / 16383.0f); }
  __device__ float value(uint32_t key) const {
    return static_cast<float>(static_cast<int>(key) - 16384) * step;
  }
  __device__ uint32_t moved(uint32_t key, float by) const {
    const int moved = static_cast<int>(key) + __float2int_rn(by * per_unit);
    return static_cast<uint32_t>(min(max(moved, 1), 32767));
  }
  /// A key at or below (above) every key moved by at most `by` from here or above (below).
  __device__ uint32_t lower(uint32_t key, float by) const {
    return static_cast<uint32_t>(max(static_cast<int>(key) - __float2int_ru(by * per_unit) - 1, 1));
  }
  __device__ uint32_t higher(uint32_t key, float by) const {
    return min(key + static_cast<uint32_t>(__float2int_ru(by * per_unit)) + 1u, kEnd);
  }
  __device__ uint32_t between(uint32_t low, uint32_t high, float fraction) const {
    return low + static_cast<uint32_t>(static_cast<float>(high - low) * fraction);
  }
  __device__ static float exponential(float x) { return __expf(x); }
  __device__ static Sum term(float e) { return e; }

  /// What at_least() wants for a threshold in [1, kEnd].
  __device__ static uint32_t prepared(uint32_t threshold) {
    return ((1u - threshold) & 0xFFFFu) * 0x10001u;
  }
  /// Bits 0 and 16: whether the word's keys are at least the threshold.
  __device__ static uint32_t at_least(uint32_t word, uint32_t prepared_threshold) {
    return __viaddmin_s16x2_relu(word, prepared_threshold, 0x00010001u);
  }
  __device__ static int fold(uint32_t count) {
    return static_cast<int>((count & 0xFFFFu) + (count >> 16));
  }
  __device__ static uint32_t largest(uint32_t a, uint32_t b) { return __vmaxu2(a, b); }
  __device__ static uint32_t fold_largest(uint32_t a) { return max(a & 0xFFFFu, a >> 16); }
  __device__ static uint32_t smallest(uint32_t a, uint32_t b) { return __vminu2(a, b); }
  __device__ static uint32_t fold_smallest(uint32_t a) { return min(a & 0xFFFFu, a >> 16); }

  __device__ static uint32_t get(const uint32_t* words, int position) {
    return reinterpret_cast<const uint16_t*>(words)[half_of(position)];
  }
  __device__ static void set(uint32_t* words, int position, uint32_t key) {
    reinterpret_cast<uint16_t*>(words)[half_of(position)] = static_cast<uint16_t>(key);
  }

 private:
  __device__ static int half_of(int position) {
    return (position & ~31) + 2 * (position & 15) + ((position >> 4) & 1);
  }
};

/// The bits of a float, so that they sort; nothing is lost but the sign of zero. NaN is minus
/// infinity.
struct FloatKeys {
  using Sum = double;
  static constexpr int kBlockWords = 32;
  static constexpr uint32_t kLowest = 0x007FFFFFu;   ///< minus infinity
  static constexpr uint32_t kHighest = 0xFF800000u;  ///< infinity
  static constexpr uint32_t kEnd = kHighest + 1;

  __device__ static uint32_t key(float score) { return order_key(score); }
  __device__ static float value(uint32_t key) {
    return score_of_key(min(max(key, kLowest), kHighest));
  }
  __device__ static uint32_t moved(uint32_t at, float by) { return key(__fadd_rn(value(at), by)); }
  __device__ static uint32_t lower(uint32_t at, float by) {
    if (at <= kLowest) return 1;
    const float x = value(at);
    return key(x - by - fabsf(x) * 1e-6f);
  }
  __device__ static uint32_t higher(uint32_t at, float by) {
    if (at >= kHighest) return kEnd;
    const float x = value(at);
    return key(x + by + fabsf(x) * 1e-6f) + 1;
  }
  __device__ static uint32_t between(uint32_t low, uint32_t high, float fraction) {
    const float a = value(low), b = value(high);
    const float x = a + (b - a) * fraction;  // not finite where a or b is not
    return isfinite(x) ? key(x) : low + (high - low) / 2;
  }
  __device__ static float exponential(float x) { return expf(x); }
  /// A multiple of 2^-40: sums of up to 8,192 terms below 1 are exact in any order.
  __device__ static Sum term(float e) {
    constexpr double kRounding = 0x1p-40 * 6755399441055744.0;
    return (static_cast<double>(e) + kRounding) - kRounding;
  }

  __device__ static uint32_t prepared(uint32_t threshold) { return threshold; }
  __device__ static uint32_t at_least(uint32_t word, uint32_t threshold) {
    return word >= threshold ? 1u : 0u;
  }
  __device__ static int fold(uint32_t count) { return static_cast<int>(count); }
  __device__ static uint32_t largest(uint32_t a, uint32_t b) { return max(a, b); }
  __device__ static uint32_t fold_largest(uint32_t a) { return a; }
  __device__ static uint32_t smallest(uint32_t a, uint32_t b) { return min(a, b); }
  __device__ static uint32_t fold_smallest(uint32_t a) { return a; }

  __device__ static uint32_t get(const uint32_t* words, int position) { return words[position]; }
  __device__ static void set(uint32_t* words, int position, uint32_t key) { words[position] = key; }
};

}  // namespace airmoe::router::cuda
