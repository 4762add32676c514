// Philox4x32-10 of Random123 over vectors of counters. Included once per instruction set, by files
// that Highway compiles so, after hwy/highway.h: hence no #pragma once.

#if defined(AIRMOE_PHILOX_VECTORS) == defined(HWY_TARGET_TOGGLE)
#ifdef AIRMOE_PHILOX_VECTORS
#undef AIRMOE_PHILOX_VECTORS
#else
#define AIRMOE_PHILOX_VECTORS
#endif

#include <cstdint>

HWY_BEFORE_NAMESPACE();
namespace airmoe {
namespace HWY_NAMESPACE {
namespace philox {

namespace hn = hwy::HWY_NAMESPACE;
using D = hn::CappedTag<uint64_t, 8>;
using V = hn::Vec<D>;

#if HWY_TARGET == HWY_SCALAR  // one lane, which cannot be seen as two words
HWY_INLINE V multiply(V a, V b) {
  constexpr uint64_t kLow = 0xFFFFFFFFu;
  return hn::Set(D(), (hn::GetLane(a) & kLow) * (hn::GetLane(b) & kLow));
}
HWY_INLINE V high_half(V a) {
  return hn::ShiftRight<32>(a);
}
#else
// a * b of the low halves.
HWY_INLINE V multiply(V a, V b) {
  const hn::Repartition<uint32_t, D> words;
  return hn::MulEven(hn::BitCast(words, a), hn::BitCast(words, b));
}
// The high half in the low half. A swap of halves; shifts compete with multiplications for a port.
HWY_INLINE V high_half(V a) {
  const hn::Repartition<uint32_t, D> words;
  return hn::BitCast(D(), hn::Shuffle2301(hn::BitCast(words, a)));
}
#endif

// The four words of `kInterleave` vectors of Philox counters. Words live in the low halves of
// 64-bit lanes; the high halves hold garbage, because each step reads low halves only. Several
// vectors at once hide the latency of the multiplications.
constexpr int kInterleave = 2;
struct Words {
  V x0[kInterleave], x1[kInterleave], x2[kInterleave], x3[kInterleave];
};

// Replaces counters by their blocks.
HWY_INLINE void encrypt(Words& w, uint32_t key0, uint32_t key1) {
  const D d;
  const V multiplier0 = hn::Set(d, 0xD2511F53u);
  const V multiplier1 = hn::Set(d, 0xCD9E8D57u);
  for (int round = 0; round < 10; ++round) {
    const V k0 = hn::Set(d, key0);
    const V k1 = hn::Set(d, key1);
#pragma GCC unroll 2
    for (int v = 0; v < kInterleave; ++v) {
      const V product0 = multiply(w.x0[v], multiplier0);
      const V product1 = multiply(w.x2[v], multiplier1);
      w.x0[v] = hn::Xor(hn::Xor(high_half(product1), w.x1[v]), k0);
      w.x2[v] = hn::Xor(hn::Xor(high_half(product0), w.x3[v]), k1);
      w.x1[v] = product1;
      w.x3[v] = product0;
    }
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
}

}  // namespace philox
}  // namespace HWY_NAMESPACE
}  // namespace airmoe
HWY_AFTER_NAMESPACE();

#endif
