// add_jitter: Philox4x32-10 over several counters at once, then the inverse normal by table.

#include <algorithm>
#include <bit>
#include <cmath>
#include <numbers>
#include <span>

#include "comm/base/random.hpp"

#ifndef AIRMOE_JITTER_ONCE  // this file is included once per instruction set
#define AIRMOE_JITTER_ONCE
namespace airmoe {
constexpr int64_t kDrawBlock = 256;  // ids that one call of draw() handles
}
#endif

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "comm/base/src/jitter.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>
// After highway.h
#include "comm/base/src/philox_vectors.hpp"

HWY_BEFORE_NAMESPACE();
namespace airmoe {
namespace HWY_NAMESPACE {
namespace {

namespace hn = hwy::HWY_NAMESPACE;
using philox::D;
using philox::kInterleave;
using philox::V;
using philox::Words;

// Replaces ids by their draws, in the low 16 bits. `count` may be rounded up to kDrawBlock.
void draw(uint64_t* id_to_draw, int64_t count, std::array<uint32_t, 2> key, uint32_t b,
          uint32_t c) {
  const D d;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  for (int64_t i = 0; i < count; i += kInterleave * lanes) {
    V ids[kInterleave];
    Words w;
#pragma GCC unroll 2
    for (int v = 0; v < kInterleave; ++v) {
      ids[v] = hn::Load(d, id_to_draw + i + v * lanes);
      w.x0[v] = hn::ShiftRight<3>(ids[v]);
      w.x1[v] = hn::Set(d, b);
      w.x2[v] = hn::Set(d, c);
      w.x3[v] = hn::Zero(d);
    }
    philox::encrypt(w, key[0], key[1]);
#pragma GCC unroll 2
    for (int v = 0; v < kInterleave; ++v) {
      // Draw j of a block is half j % 2 of word j / 2.
      const auto bit0 = hn::Ne(hn::And(ids[v], hn::Set(d, 1)), hn::Zero(d));
      const auto bit1 = hn::Ne(hn::And(ids[v], hn::Set(d, 2)), hn::Zero(d));
      const auto bit2 = hn::Ne(hn::And(ids[v], hn::Set(d, 4)), hn::Zero(d));
      const V word = hn::IfThenElse(bit2, hn::IfThenElse(bit1, w.x3[v], w.x2[v]),
                                    hn::IfThenElse(bit1, w.x1[v], w.x0[v]));
      hn::Store(hn::IfThenElse(bit0, hn::ShiftRight<16>(word), word), d,
                id_to_draw + i + v * lanes);
    }
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

const NormalTable& normal_table() {
  static const NormalTable table;
  return table;
}

}  // namespace

std::span<const float> jitter_quantiles() {
  return normal_table().quantile;
}

void add_jitter(float* x, const int32_t* id, int64_t count, float stddev,
                const RandomStream& stream, uint32_t b, uint32_t c) {
  const NormalTable& table = normal_table();
  alignas(64) uint64_t draws[kDrawBlock] = {};
  for (int64_t begin = 0; begin < count; begin += kDrawBlock) {
    const int64_t n = std::min(kDrawBlock, count - begin);
    for (int64_t i = 0; i < n; ++i) draws[i] = static_cast<uint32_t>(id[begin + i]);
    HWY_DYNAMIC_DISPATCH(draw)(draws, n, stream.key(), b, c);
    for (int64_t i = 0; i < n; ++i) {
      // The upper bit of a draw is the sign; no branch, which would be mispredicted every other
      // time.
      const uint32_t draw = static_cast<uint16_t>(draws[i]);
      const uint32_t sign = draw >> 15 << 31;
      const float magnitude = table.quantile[draw & (kHalfCells - 1)];
      x[begin + i] += stddev * std::bit_cast<float>(std::bit_cast<uint32_t>(magnitude) ^ sign);
    }
  }
}

}  // namespace airmoe
#endif  // HWY_ONCE
