#include "comm/base/random.hpp"

#include <bit>

#include <Random123/philox.h>

#include "comm/base/error.hpp"
#include "comm/base/src/random_blocks.hpp"

namespace airmoe {

namespace {

constexpr int kFeistelRounds = 8;

std::array<uint32_t, 4> philox(const std::array<uint32_t, 4>& counter,
                               const std::array<uint32_t, 2>& key) {
  const r123::Philox4x32::ctr_type in = {{counter[0], counter[1], counter[2], counter[3]}};
  const r123::Philox4x32::key_type with = {{key[0], key[1]}};
  const auto out = r123::Philox4x32()(in, with);
  return {out[0], out[1], out[2], out[3]};
}

uint32_t low(uint64_t x) {
  return static_cast<uint32_t>(x);
}
uint32_t high(uint64_t x) {
  return static_cast<uint32_t>(x >> 32);
}

// 53 bits of two words, in [0, 1).
double unit_interval(uint32_t a, uint32_t b) {
  return static_cast<double>((uint64_t{a} << 21) ^ (uint64_t{b} >> 11)) * 0x1p-53;
}

}  // namespace

RandomStream::RandomStream(uint64_t seed, Purpose purpose, uint32_t step, uint32_t micro_batch,
                           uint32_t layer) {
  const auto words =
      philox({static_cast<uint32_t>(purpose), step, micro_batch, layer}, {low(seed), high(seed)});
  key_ = {words[0], words[1]};
}

std::array<uint32_t, 4> RandomStream::block(uint32_t a, uint32_t b, uint32_t c, uint32_t d) const {
  return philox({a, b, c, d}, key_);
}

double RandomStream::uniform(uint64_t i) const {
  const auto words = block(low(i), high(i), 0, kUniformBlocks);
  return unit_interval(words[0], words[1]);
}

RandomPermutation::RandomPermutation(const RandomStream& stream, uint64_t size)
    : key_(stream.key()), size_(size) {
  // The network permutes [0, 2^(2 * half_bits)), less than four times `size` for size > 1.
  const uint32_t bits = size > 1 ? static_cast<uint32_t>(std::bit_width(size - 1)) : 1;
  half_bits_ = (bits + 1) / 2;
}

uint64_t RandomPermutation::operator()(uint64_t i) const {
  AIRMOE_CHECK(i < size_, "element {} of a permutation of {}", i, size_);
  const uint32_t mask = low((uint64_t{1} << half_bits_) - 1);
  do {
    uint32_t left = low(i >> half_bits_);
    uint32_t right = low(i) & mask;
    for (uint32_t round = 0; round < kFeistelRounds; ++round) {
      const uint32_t mixed = philox({right, round, half_bits_, kPermutationBlocks}, key_)[0];
      const uint32_t next = (left ^ mixed) & mask;
      left = right;
      right = next;
    }
    i = (uint64_t{left} << half_bits_) | right;
  } while (i >= size_);  // walk the cycle until it is back in range
  return i;
}

}  // namespace airmoe
