// RandomStream::fill_normal: Philox over vectors of counters, then Box-Muller in double precision.
//
// Only operations that IEEE 754 rounds correctly, and no fused ones, so that every instruction set
// gives the same bits. Logarithm, sine and cosine are those of fdlibm (Sun Microsystems 1993), a
// few units in the last place from the true values: of 10^9 results rounded to float, none differed
// from what glibc's functions give.

#include <algorithm>
#include <numbers>

#include "comm/base/random.hpp"
#include "comm/base/src/random_blocks.hpp"

#define HWY_DISABLED_TARGETS (HWY_SVE | HWY_SVE2 | HWY_SVE_256 | HWY_SVE2_128 | HWY_RVV)
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "comm/base/src/normal.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>
// After highway.h
#include "comm/base/src/philox_vectors.hpp"

HWY_BEFORE_NAMESPACE();
namespace airmoe {
namespace HWY_NAMESPACE {
namespace {

namespace hn = hwy::HWY_NAMESPACE;
using philox::kInterleave;
using Integers = philox::V;
using DI = philox::D;
using DF = hn::Rebind<double, DI>;
using Doubles = hn::Vec<DF>;
using Singles = hn::Rebind<float, DI>;

constexpr int64_t kLanes = hn::MaxLanes(DI());
constexpr int64_t kFloats = 2 * kLanes * kInterleave;  // that one call of draw() makes

HWY_INLINE Doubles constant(double x) {
  return hn::Set(DF(), x);
}
HWY_INLINE Doubles multiply_add(Doubles a, Doubles b, Doubles c) {
  return hn::Add(hn::Mul(a, b), c);  // two roundings on purpose
}

// Of integers below 2^52.
HWY_INLINE Doubles to_double(Integers x) {
  const Integers exponent = hn::Set(DI(), 0x4330000000000000u);  // of 2^52
  return hn::Sub(hn::BitCast(DF(), hn::Or(x, exponent)), constant(0x1p52));
}

// 53 bits of the low halves of two vectors, in [0, 1). Every step is exact.
HWY_INLINE Doubles unit_interval(Integers a, Integers b) {
  const Integers low_half = hn::Set(DI(), 0xFFFFFFFFu);
  const Doubles upper = hn::Mul(to_double(hn::And(a, low_half)), constant(0x1p-32));
  const Integers rest = hn::ShiftRight<11>(hn::And(b, low_half));
  return hn::Add(upper, hn::Mul(to_double(rest), constant(0x1p-53)));
}

// Of 2^-53 <= x <= 1. x = 2^k (1 + f) with 1 + f in [sqrt(1/2), sqrt(2)].
HWY_INLINE Doubles log_of(Doubles x) {
  const DI di;
  const Integers kRootHalf = hn::Set(di, 0x3FE6A09E00000000u);
  const Integers kOneBits = hn::Set(di, 0x3FF0000000000000u);
  const Integers shifted = hn::Add(hn::BitCast(di, x), hn::Sub(kOneBits, kRootHalf));
  const Doubles k = hn::Sub(to_double(hn::ShiftRight<52>(shifted)), constant(1023.0));
  const Integers mantissa = hn::And(shifted, hn::Set(di, 0x000FFFFFFFFFFFFFu));
  const Doubles f = hn::Sub(hn::BitCast(DF(), hn::Add(mantissa, kRootHalf)), constant(1.0));
  const Doubles half_square = hn::Mul(constant(0.5), hn::Mul(f, f));
  const Doubles s = hn::Div(f, hn::Add(constant(2.0), f));
  const Doubles z = hn::Mul(s, s);
  const Doubles w = hn::Mul(z, z);
  Doubles even =
      multiply_add(w, constant(1.531383769920937332e-01), constant(2.222219843214978396e-01));
  even = hn::Mul(w, multiply_add(w, even, constant(3.999999999940941908e-01)));
  Doubles odd =
      multiply_add(w, constant(1.479819860511658591e-01), constant(1.818357216161805012e-01));
  odd = multiply_add(w, odd, constant(2.857142874366239149e-01));
  odd = hn::Mul(z, multiply_add(w, odd, constant(6.666666666666735130e-01)));
  const Doubles tail = hn::Mul(s, hn::Add(half_square, hn::Add(even, odd)));
  const Doubles low = multiply_add(k, constant(1.90821492927058770002e-10), tail);
  return multiply_add(k, constant(6.93147180369123816490e-01),
                      hn::Sub(f, hn::Sub(half_square, low)));
}

struct SinCos {
  Doubles sin, cos;
};

// Of 0 <= x <= 2 pi. Multiples of pi / 2 are subtracted in two parts, the first of 33 bits.
HWY_INLINE SinCos sin_cos(Doubles x) {
  const DI di;
  const Doubles kRound = constant(0x1.8p52);
  const Doubles shifted = multiply_add(x, constant(2.0 / std::numbers::pi), kRound);
  const Integers quadrant = hn::BitCast(di, shifted);  // in the lowest bits
  const Doubles q = hn::Sub(shifted, kRound);
  const Doubles y = hn::Sub(hn::Sub(x, hn::Mul(q, constant(1.57079632673412561417e+00))),
                            hn::Mul(q, constant(6.07710050650619224932e-11)));
  const Doubles z = hn::Mul(y, y);
  Doubles p =
      multiply_add(z, constant(1.58969099521155010221e-10), constant(-2.50507602534068634195e-08));
  p = multiply_add(z, p, constant(2.75573137070700676789e-06));
  p = multiply_add(z, p, constant(-1.98412698298579493134e-04));
  p = multiply_add(z, p, constant(8.33333333332248946124e-03));
  p = multiply_add(z, p, constant(-1.66666666666666324348e-01));
  const Doubles sin = multiply_add(hn::Mul(z, y), p, y);
  Doubles r =
      multiply_add(z, constant(-1.13596475577881948265e-11), constant(2.08757232129817482790e-09));
  r = multiply_add(z, r, constant(-2.75573143513906633035e-07));
  r = multiply_add(z, r, constant(2.48015872894767294178e-05));
  r = multiply_add(z, r, constant(-1.38888888888741095749e-03));
  r = multiply_add(z, r, constant(4.16666666666666019037e-02));
  // 1 - z / 2 with its rounding error put back.
  const Doubles half = hn::Mul(constant(0.5), z);
  const Doubles rounded = hn::Sub(constant(1.0), half);
  const Doubles error = hn::Sub(hn::Sub(constant(1.0), rounded), half);
  const Doubles cos = hn::Add(rounded, multiply_add(hn::Mul(z, z), r, error));
  // Odd quadrants swap the two; the sine is negative in quadrants 2 and 3, the cosine in 1 and 2.
  const Integers one = hn::Set(di, 1u);
  const auto even = hn::MaskFromVec(hn::BitCast(
      DF(), hn::Sub(hn::And(quadrant, one), one)));  // all bits where the quadrant is even
  const auto sign = [&](Integers of) HWY_ATTR {
    return hn::BitCast(DF(), hn::ShiftLeft<63>(hn::ShiftRight<1>(of)));
  };
  return {hn::Xor(hn::IfThenElse(even, sin, cos), sign(quadrant)),
          hn::Xor(hn::IfThenElse(even, cos, sin), sign(hn::Add(quadrant, one)))};
}

// The normals of pairs pair, pair + 1, ... : kFloats of them.
HWY_NOINLINE void draw(uint64_t pair, std::array<uint32_t, 2> key, double scale, float* out) {
  const DI di;
  philox::Words w;
#pragma GCC unroll 2
  for (int v = 0; v < kInterleave; ++v) {
    w.x0[v] = hn::Iota(di, pair + static_cast<uint64_t>(v * kLanes));
    w.x1[v] = hn::ShiftRight<32>(w.x0[v]);
    w.x2[v] = hn::Zero(di);
    w.x3[v] = hn::Set(di, kNormalBlocks);
  }
  philox::encrypt(w, key[0], key[1]);
#pragma GCC unroll 2
  for (int v = 0; v < kInterleave; ++v) {
    const Doubles u = hn::Sub(constant(1.0), unit_interval(w.x0[v], w.x1[v]));
    const Doubles radius = hn::Sqrt(hn::Mul(constant(-2.0), log_of(u)));
    const SinCos turn =
        sin_cos(hn::Mul(constant(2.0 * std::numbers::pi), unit_interval(w.x2[v], w.x3[v])));
    const Doubles size = constant(scale);
    const Singles singles;
    const auto even = hn::DemoteTo(singles, hn::Mul(size, hn::Mul(radius, turn.cos)));
    const auto odd = hn::DemoteTo(singles, hn::Mul(size, hn::Mul(radius, turn.sin)));
    hn::StoreInterleaved2(even, odd, singles, out + v * 2 * kLanes);
  }
}

void fill_normals(float* out, int64_t count, uint64_t begin, double scale,
                  std::array<uint32_t, 2> key) {
  int64_t k = 0;
  float block[kFloats];
  const auto skip = static_cast<int64_t>(begin % 2);  // the first index is the second of its pair
  while (k < count) {
    const uint64_t index = begin + static_cast<uint64_t>(k);
    const int64_t first = k == 0 ? skip : 0;
    if (first == 0 && count - k >= kFloats) {
      draw(index / 2, key, scale, out + k);
      k += kFloats;
      continue;
    }
    draw(index / 2, key, scale, block);
    const int64_t n = std::min(count - k, kFloats - first);
    std::copy_n(block + first, n, out + k);
    k += n;
  }
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace airmoe
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace airmoe {

HWY_EXPORT(fill_normals);

void RandomStream::fill_normal(float* out, int64_t count, uint64_t begin, float stddev) const {
  HWY_DYNAMIC_DISPATCH(fill_normals)(out, count, begin, stddev, key_);
}

}  // namespace airmoe
#endif  // HWY_ONCE
