// One source, compiled once per instruction set by Highway and chosen at run time.

#include "router/src/top_k_kernels.hpp"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>

#define HWY_DISABLED_TARGETS (HWY_SVE | HWY_SVE2 | HWY_SVE_256 | HWY_SVE2_128 | HWY_RVV)
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "router/src/top_k_kernels.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

HWY_BEFORE_NAMESPACE();
namespace airmoe::router::detail {
namespace HWY_NAMESPACE {
namespace {

namespace hn = hwy::HWY_NAMESPACE;
using D = hn::CappedTag<float, 16>;
using DI = hn::RebindToSigned<D>;
using V = hn::Vec<D>;
using Mask = hn::Mask<D>;
constexpr int64_t kLanes = hn::MaxLanes(D());
constexpr float kInfinity = std::numeric_limits<float>::infinity();

// Floats in the order of their values as integers; neighbours are neighbours.
int32_t ordered(float x) {
  const int32_t bits = std::bit_cast<int32_t>(x);
  return bits < 0 ? bits ^ 0x7fffffff : bits;
}
float from_ordered(int32_t i) {
  return std::bit_cast<float>(i < 0 ? i ^ 0x7fffffff : i);
}

// ---------------------------------------------------------------------------- k-th largest

// The last, partial vector of an array, filled up with NaN: no comparison counts the filling.
V load_tail(const float* x, int64_t count) {
  const D d;
  HWY_ALIGN float padded[kLanes];
  for (int64_t i = 0; i < kLanes; ++i) {
    padded[i] = i < count ? x[i] : std::numeric_limits<float>::quiet_NaN();
  }
  return hn::Load(d, padded);
}

int64_t count_at_least(const float* HWY_RESTRICT x, int64_t count, float pivot) {
  const D d;
  const V p = hn::Set(d, pivot);
  const auto ones = [&](V v)
                        HWY_ATTR { return static_cast<int64_t>(hn::CountTrue(d, hn::Ge(v, p))); };
  int64_t i = 0, c0 = 0, c1 = 0, c2 = 0, c3 = 0;
  for (; i + 4 * kLanes <= count; i += 4 * kLanes) {
    c0 += ones(hn::LoadU(d, x + i));
    c1 += ones(hn::LoadU(d, x + i + kLanes));
    c2 += ones(hn::LoadU(d, x + i + 2 * kLanes));
    c3 += ones(hn::LoadU(d, x + i + 3 * kLanes));
  }
  for (; i + kLanes <= count; i += kLanes) c0 += ones(hn::LoadU(d, x + i));
  if (i < count) c0 += ones(load_tail(x + i, count - i));
  return c0 + c1 + c2 + c3;
}

struct Range {
  float min, max;
  int64_t numbers;  // entries that are not NaN
};

Range range_of(const float* HWY_RESTRICT x, int64_t count) {
  const D d;
  V low = hn::Set(d, kInfinity), high = hn::Set(d, -kInfinity);
  int64_t numbers = 0;
  const auto add = [&](V v) HWY_ATTR {
    const Mask number = hn::Eq(v, v);
    low = hn::Min(low, hn::IfThenElse(number, v, low));
    high = hn::Max(high, hn::IfThenElse(number, v, high));
    numbers += static_cast<int64_t>(hn::CountTrue(d, number));
  };
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) add(hn::LoadU(d, x + i));
  if (i < count) add(load_tail(x + i, count - i));
  // Adding zero turns -0 into +0.
  return {hn::GetLane(hn::MinOfLanes(d, low)) + 0.0f, hn::GetLane(hn::MaxOfLanes(d, high)) + 0.0f,
          numbers};
}

constexpr int64_t kFew = 64;  // candidates left to the quadratic search

// The r-th largest of the entries in [low, high), at most kFew of them; `above` counts the greater.
KthLargest kth_of_few(const float* HWY_RESTRICT x, int64_t count, float low, float high,
                      int64_t r) {
  const D d;
  HWY_ALIGN float few[kFew + 2 * kLanes];
  int64_t found = 0;
  const V lo = hn::Set(d, low), hi = hn::Set(d, high);
  const auto collect = [&](V v) HWY_ATTR {
    const Mask inside = hn::And(hn::Ge(v, lo), hn::Not(hn::Ge(v, hi)));
    if (hn::AllFalse(d, inside)) return;
    hn::StoreU(hn::Compress(v, inside), d, few + found);
    found += static_cast<int64_t>(hn::CountTrue(d, inside));
  };
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) collect(hn::LoadU(d, x + i));
  if (i < count) collect(load_tail(x + i, count - i));
  hn::StoreU(hn::Set(d, std::numeric_limits<float>::quiet_NaN()), d, few + found);
  for (int64_t j = 0; j < found; ++j) {
    const V pivot = hn::Set(d, few[j]);
    int64_t greater = 0, equal = 0;
    for (int64_t l = 0; l < found; l += kLanes) {
      const V v = hn::Load(d, few + l);
      greater += static_cast<int64_t>(hn::CountTrue(d, hn::Gt(v, pivot)));
      equal += static_cast<int64_t>(hn::CountTrue(d, hn::Eq(v, pivot)));
    }
    if (greater < r && r <= greater + equal) return {few[j], greater, equal};
  }
  return {low, found, 0};  // not reached: r <= found
}

KthLargest kth(const float* x, int64_t count, int64_t k) {
  const Range range = range_of(x, count);
  if (range.numbers < k) {  // the k-th largest is a NaN, which counts as minus infinity
    const int64_t lowest = count_at_least(x, count, std::numeric_limits<float>::lowest());
    return {-kInfinity, lowest, count - lowest};
  }
  // count(x >= low) >= k > count(x >= high), as ordered integers
  int32_t low = ordered(range.min), high = ordered(range.max) + 1;
  int64_t at_low = range.numbers, at_high = 0;
  for (int pass = 0; at_low - at_high > kFew && high - 1 != low; ++pass) {
    int32_t middle = static_cast<int32_t>((int64_t{low} + high) >> 1);
    if (pass < 12) {  // halving values is faster than halving bits unless there are outliers
      const float a = from_ordered(low), b = from_ordered(high - 1);
      const int32_t value = ordered(0.5f * a + 0.5f * b + 0.0f);
      if (low < value && value < high) middle = value;
    }
    const int64_t at_middle = count_at_least(x, count, from_ordered(middle));
    if (at_middle >= k) {
      low = middle;
      at_low = at_middle;
    } else {
      high = middle;
      at_high = at_middle;
    }
  }
  if (high - 1 == low) return {from_ordered(low) + 0.0f, at_high, at_low - at_high};
  const KthLargest last = kth_of_few(x, count, from_ordered(low), from_ordered(high), k - at_high);
  return {last.threshold + 0.0f, at_high + last.above, last.equal};
}

// ---------------------------------------------------------------------------- compress

// The first n true lanes of a mask.
Mask first_true(Mask mask, int64_t n) {
  const DI d;
  HWY_ALIGN int32_t lanes[kLanes];
  hn::Store(hn::VecFromMask(d, hn::RebindMask(d, mask)), d, lanes);
  for (int64_t i = 0; i < kLanes; ++i) {
    if (lanes[i] != 0 && n-- <= 0) lanes[i] = 0;
  }
  return hn::RebindMask(D(), hn::MaskFromVec(hn::Load(d, lanes)));
}

int64_t compress_entries(const Entries& in, float threshold, int64_t& ties_left, float* score_out,
                         int32_t* id_out, int64_t capacity) {
  const D d;
  const DI di;
  const V bound = hn::Set(d, threshold);
  const bool at_bottom = threshold == -kInfinity;  // then whatever is not above it, equals it
  int64_t ties = ties_left, out = 0;
  auto next_id = hn::Iota(di, in.first_id);
  const auto step = hn::Set(di, static_cast<int32_t>(kLanes));
  const auto put = [&](V score, hn::Vec<DI> id, Mask valid) HWY_ATTR {
    Mask take = hn::And(valid, hn::Gt(score, bound));
    if (ties > 0) {
      const Mask equal = at_bottom ? hn::AndNot(take, valid) : hn::And(valid, hn::Eq(score, bound));
      const int64_t found = static_cast<int64_t>(hn::CountTrue(d, equal));
      if (found > 0) {
        take = hn::Or(take, found <= ties ? equal : first_true(equal, ties));
        ties -= std::min(found, ties);
      }
    }
    const int64_t taken = static_cast<int64_t>(hn::CountTrue(d, take));
    if (taken == 0) return;
    if (out + kLanes <= capacity) {  // else no store may touch the lanes beyond
      hn::StoreU(hn::Compress(score, take), d, score_out + out);
      hn::StoreU(hn::Compress(id, hn::RebindMask(di, take)), di, id_out + out);
    } else {
      HWY_ALIGN float scores[kLanes];
      HWY_ALIGN int32_t ids[kLanes];
      hn::Store(hn::Compress(score, take), d, scores);
      hn::Store(hn::Compress(id, hn::RebindMask(di, take)), di, ids);
      std::copy_n(scores, taken, score_out + out);
      std::copy_n(ids, taken, id_out + out);
    }
    out += taken;
  };
  const Mask all = hn::FirstN(d, static_cast<size_t>(kLanes));
  int64_t i = 0;
  for (; i + kLanes <= in.count; i += kLanes) {
    put(hn::LoadU(d, in.score + i), in.id ? hn::LoadU(di, in.id + i) : next_id, all);
    next_id = hn::Add(next_id, step);
  }
  if (i < in.count) {
    auto id = next_id;
    if (in.id) {
      HWY_ALIGN int32_t padded[kLanes] = {};
      std::copy_n(in.id + i, in.count - i, padded);
      id = hn::Load(di, padded);
    }
    put(load_tail(in.score + i, in.count - i), id,
        hn::FirstN(d, static_cast<size_t>(in.count - i)));
  }
  ties_left = ties;
  return out;
}

// ---------------------------------------------------------------------------- transpose

void transpose(const float* HWY_RESTRICT tile, int64_t ld, int64_t count,
               float* HWY_RESTRICT columns, int64_t stride) {
  int64_t i = 0;
#if HWY_TARGET != HWY_SCALAR  // four rows of four tokens at a time
  const hn::CappedTag<float, 4> d4;
  const hn::Repartition<double, decltype(d4)> d2;
  const auto pairs = [&](auto v) HWY_ATTR { return hn::BitCast(d2, v); };
  for (; i + 4 <= count; i += 4) {
    const float* HWY_RESTRICT in = tile + i * ld;
    for (int64_t t = 0; t < 16; t += 4) {
      const auto r0 = hn::Load(d4, in + t), r1 = hn::Load(d4, in + ld + t);
      const auto r2 = hn::Load(d4, in + 2 * ld + t), r3 = hn::Load(d4, in + 3 * ld + t);
      const auto low01 = pairs(hn::InterleaveLower(d4, r0, r1));
      const auto low23 = pairs(hn::InterleaveLower(d4, r2, r3));
      const auto high01 = pairs(hn::InterleaveUpper(d4, r0, r1));
      const auto high23 = pairs(hn::InterleaveUpper(d4, r2, r3));
      float* HWY_RESTRICT out = columns + t * stride + i;
      hn::StoreU(hn::BitCast(d4, hn::InterleaveLower(d2, low01, low23)), d4, out);
      hn::StoreU(hn::BitCast(d4, hn::InterleaveUpper(d2, low01, low23)), d4, out + stride);
      hn::StoreU(hn::BitCast(d4, hn::InterleaveLower(d2, high01, high23)), d4, out + 2 * stride);
      hn::StoreU(hn::BitCast(d4, hn::InterleaveUpper(d2, high01, high23)), d4, out + 3 * stride);
    }
  }
#endif
  for (; i < count; ++i) {
    for (int64_t t = 0; t < 16; ++t) columns[t * stride + i] = tile[i * ld + t];
  }
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace airmoe::router::detail
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace airmoe::router::detail {

HWY_EXPORT(kth);
HWY_EXPORT(compress_entries);
HWY_EXPORT(transpose);

KthLargest kth_largest(const float* x, int64_t count, int64_t k) {
  return HWY_DYNAMIC_DISPATCH(kth)(x, count, k);
}

int64_t compress(const Entries& entries, float threshold, int64_t& ties, float* score_out,
                 int32_t* id_out, int64_t capacity) {
  return HWY_DYNAMIC_DISPATCH(compress_entries)(entries, threshold, ties, score_out, id_out,
                                                capacity);
}

void transpose_lanes(const float* tile, int64_t ld, int64_t count, float* columns, int64_t stride) {
  HWY_DYNAMIC_DISPATCH(transpose)(tile, ld, count, columns, stride);
}

}  // namespace airmoe::router::detail
#endif  // HWY_ONCE
