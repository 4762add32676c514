#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "scheduler/store/src/crc32c.hpp"

namespace airmoe::scheduler {
namespace {

// Bit by bit, from the definition.
uint32_t plain_crc32c(const std::vector<unsigned char>& bytes) {
  uint32_t state = 0xffffffffu;
  for (const unsigned char byte : bytes) {
    state ^= byte;
    for (int bit = 0; bit < 8; ++bit)
      state = (state & 1u) != 0 ? (state >> 1) ^ 0x82f63b78u : state >> 1;
  }
  return ~state;
}

std::vector<unsigned char> pattern(std::size_t size, unsigned seed) {
  std::vector<unsigned char> bytes(size);
  unsigned x = seed;
  for (auto& b : bytes) {
    x = x * 1664525u + 1013904223u;
    b = static_cast<unsigned char>(x >> 24);
  }
  return bytes;
}

TEST(Crc32c, CheckValue) {
  const std::string text = "123456789";
  EXPECT_EQ(crc32c(0, text.data(), 9), 0xe3069283u);  // the published check value
  EXPECT_EQ(crc32c(0, text.data(), 0), 0u);
}

TEST(Crc32c, MatchesDefinitionInAnyPieces) {
  for (const std::size_t size : {1u, 7u, 64u, 1000u, 4099u}) {
    const auto bytes = pattern(size, 1);
    const uint32_t expected = plain_crc32c(bytes);
    for (const std::size_t cut : {std::size_t{0}, size / 3, size}) {
      const uint32_t first = crc32c(0, bytes.data(), static_cast<int64_t>(cut));
      EXPECT_EQ(crc32c(first, bytes.data() + cut, static_cast<int64_t>(size - cut)), expected);
    }
  }
}

TEST(Crc32c, CombineEqualsDirect) {
  for (const std::size_t a : {0u, 1u, 100u, 4097u}) {
    for (const std::size_t b : {0u, 1u, 3u, 255u, 256u, 70001u}) {
      const auto first = pattern(a, 2);
      const auto second = pattern(b, 3);
      auto both = first;
      both.insert(both.end(), second.begin(), second.end());
      EXPECT_EQ(crc32c_combine(plain_crc32c(first), plain_crc32c(second), static_cast<int64_t>(b)),
                plain_crc32c(both))
          << a << " " << b;
    }
  }
}

TEST(Crc32c, CombineOfLengthsBeyond32Bits) {
  // 2^33 + 5 zero bytes after "1": shifting in two steps and in one must agree.
  const uint32_t one = crc32c(0, "1", 1);
  const std::vector<char> zeros(1 << 20);
  uint32_t zero_crc = crc32c(0, zeros.data(), std::ssize(zeros));  // 2^20 zeros
  for (int doubling = 20; doubling < 33; ++doubling) {
    zero_crc = crc32c_combine(zero_crc, zero_crc, int64_t{1} << doubling);
  }
  const uint32_t five = crc32c(0, zeros.data(), 5);
  const uint32_t tail = crc32c_combine(zero_crc, five, 5);
  EXPECT_EQ(crc32c_combine(one, tail, (int64_t{1} << 33) + 5),
            crc32c_combine(crc32c_combine(one, zero_crc, int64_t{1} << 33), five, 5));
}

}  // namespace
}  // namespace airmoe::scheduler
