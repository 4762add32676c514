#include "scheduler/store/src/crc32c.hpp"

#include <algorithm>

#include <isa-l/crc.h>

namespace airmoe::scheduler {

namespace {

constexpr uint32_t kPolynomial = 0x82f63b78u;  // bit-reversed 0x1edc6f41; bit 31 is x^0
constexpr uint32_t kOne = 0x80000000u;
constexpr uint32_t kX = 0x40000000u;

// a * b modulo the polynomial over GF(2).
uint32_t multiply(uint32_t a, uint32_t b) {
  uint32_t product = 0;
  for (uint32_t mask = kOne; mask != 0; mask >>= 1) {
    if ((a & mask) != 0) product ^= b;
    b = (b & 1u) != 0 ? (b >> 1) ^ kPolynomial : b >> 1;
  }
  return product;
}

// x^(8 * bytes) modulo the polynomial, by squaring.
uint32_t shift_by_bytes(int64_t bytes) {
  uint32_t result = kOne;
  uint32_t square = kX;
  for (int i = 0; i < 3; ++i) square = multiply(square, square);
  for (auto n = static_cast<uint64_t>(bytes); n != 0; n >>= 1) {
    if ((n & 1u) != 0) result = multiply(result, square);
    square = multiply(square, square);
  }
  return result;
}

}  // namespace

uint32_t crc32c(uint32_t crc, const void* data, int64_t size) {
  constexpr int64_t kPiece = int64_t{1} << 30;                         // the library counts in int
  auto* bytes = static_cast<unsigned char*>(const_cast<void*>(data));  // it does not write
  uint32_t state = ~crc;
  for (int64_t done = 0; done < size; done += kPiece) {
    state = crc32_iscsi(bytes + done, static_cast<int>(std::min(kPiece, size - done)), state);
  }
  return ~state;
}

uint32_t crc32c_combine(uint32_t first, uint32_t second, int64_t second_bytes) {
  return multiply(shift_by_bytes(second_bytes), first) ^ second;
}

}  // namespace airmoe::scheduler
