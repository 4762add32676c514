// add_jitter: Philox4x32-10 over several counters at once, then the inverse normal by table.

#include <algorithm>
#include <cmath>
#include <numbers>

#include "comm/base/random.hpp"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "comm/base/src/jitter.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

HWY_BEFORE_NAMESPACE();
namespace airmoe {
namespace HWY_NAMESPACE {
namespace {

namespace hn = hwy::HWY_NAMESPACE;
using D = hn::CappedTag<uint64_t, 8>;
using V = hn::Vec<D>;

// a * b of the low halves.
HWY_INLINE V multiply(V a, V b) {
#if HWY_TARGET == HWY_SCALAR  // one lane, which holds a single word
  constexpr uint64_t kLow = 0xFFFFFFFFu;
  return hn::Set(D(), (hn::GetLane(a) & kLow) * (hn::GetLane(b) & kLow));
#else
  const hn::Repartition<uint32_t, D> words;
  return hn::MulEven(hn::BitCast(words, a), hn::BitCast(words, b));
#endif
}

// The 16-bit draws of `count` ids. The four words of a Philox counter live in the low halves of
// 64-bit lanes; the high halves hold garbage until the end, because each step reads low halves
// only.
void draw(const int32_t* id, int64_t count, std::array<uint32_t, 2> key, uint32_t b, uint32_t c,
          uint16_t* out) {
  const D d;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  const V multiplier0 = hn::Set(d, 0xD2511F53u);
  const V multiplier1 = hn::Set(d, 0xCD9E8D57u);
  for (int64_t i = 0; i < count; i += lanes) {
    const int64_t n = std::min(lanes, count - i);
    HWY_ALIGN uint64_t lane_id[8] = {};
    for (int64_t l = 0; l < n; ++l) lane_id[l] = static_cast<uint32_t>(id[i + l]);
    const V ids = hn::Load(d, lane_id);
    V x0 = hn::ShiftRight<3>(ids);
    V x1 = hn::Set(d, b);
    V x2 = hn::Set(d, c);
    V x3 = hn::Zero(d);
    uint32_t key0 = key[0];
    uint32_t key1 = key[1];
    for (int round = 0; round < 10; ++round) {
      const V product0 = multiply(x0, multiplier0);
      const V product1 = multiply(x2, multiplier1);
      x0 = hn::Xor(hn::Xor(hn::ShiftRight<32>(product1), x1), hn::Set(d, key0));
      x2 = hn::Xor(hn::Xor(hn::ShiftRight<32>(product0), x3), hn::Set(d, key1));
      x1 = product1;
      x3 = product0;
      key0 += 0x9E3779B9u;
      key1 += 0xBB67AE85u;
    }
    // Draw j of a block is half j % 2 of word j / 2.
    const auto bit = [&](uint64_t mask) HWY_ATTR {
      return hn::Eq(hn::And(ids, hn::Set(d, mask)), hn::Set(d, mask));
    };
    const V word =
        hn::IfThenElse(bit(4), hn::IfThenElse(bit(2), x3, x2), hn::IfThenElse(bit(2), x1, x0));
    HWY_ALIGN uint64_t drawn[8];
    hn::Store(hn::IfThenElse(bit(1), hn::ShiftRight<16>(word), word), d, drawn);
    for (int64_t l = 0; l < n; ++l) out[i + l] = static_cast<uint16_t>(drawn[l]);
  }
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace airmoe
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace airmoe {

HWY_EXPORT(draw);

namespace {

constexpr int kHalfCells = 1 << 15;

// The normal quantile at the middles of the upper 32,768 of 65,536 equal-probability cells; the
// lower ones are their negatives.
struct NormalTable {
  float quantile[kHalfCells];

  NormalTable() {
    // Newton's method on the upper tail, each cell from the quantile before it. The tail is convex
    // and the start lies to the left of the root, so the steps never pass it.
    double z = 0;
    for (int cell = 0; cell < kHalfCells; ++cell) {
      const double tail = 0.5 - (cell + 0.5) / (2 * kHalfCells);
      for (int step = 0; step < 20; ++step) {
        const double excess = 0.5 * std::erfc(z / std::numbers::sqrt2) - tail;
        const double density = std::exp(-0.5 * z * z) / std::sqrt(2 * std::numbers::pi);
        z += excess / density;
        if (std::abs(excess) < 1e-12 * tail) break;
      }
      quantile[cell] = static_cast<float>(z);
    }
  }
};

}  // namespace

void add_jitter(float* x, const int32_t* id, int64_t count, float stddev,
                const RandomStream& stream, uint32_t b, uint32_t c) {
  static const NormalTable table;
  constexpr int64_t kBlock = 256;
  uint16_t drawn[kBlock];
  for (int64_t begin = 0; begin < count; begin += kBlock) {
    const int64_t n = std::min(kBlock, count - begin);
    HWY_DYNAMIC_DISPATCH(draw)(id + begin, n, stream.key(), b, c, drawn);
    for (int64_t i = 0; i < n; ++i) {
      const float magnitude = table.quantile[drawn[i] & (kHalfCells - 1)];
      x[begin + i] += stddev * ((drawn[i] & kHalfCells) != 0 ? -magnitude : magnitude);
    }
  }
}

}  // namespace airmoe
#endif  // HWY_ONCE
