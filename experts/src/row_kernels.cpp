// One source, compiled once per instruction set by Highway, chosen at run time.

#include "experts/src/row_kernels.hpp"

#include <algorithm>

// Scalable vectors cannot be held in arrays; those processors use their fixed-width fallback.
#define HWY_DISABLED_TARGETS (HWY_SVE | HWY_SVE2 | HWY_SVE_256 | HWY_SVE2_128 | HWY_RVV)
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "experts/src/row_kernels.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

HWY_BEFORE_NAMESPACE();
namespace airmoe::experts {
namespace HWY_NAMESPACE {
namespace {

namespace hn = hwy::HWY_NAMESPACE;
using D = hn::ScalableTag<float>;
constexpr int64_t kLanes = hn::MaxLanes(D());
constexpr int kSources = 4;  // rows handled at a time: one load of the shared row serves all

/// The last, partial vector of a row, filled up with zeros. By way of a buffer: without masked
/// instructions (SSE4, NEON) Highway's MaskedLoad reads a whole aligned vector.
HWY_INLINE hn::Vec<D> load_tail(const float* row, int64_t count) {
  HWY_ALIGN float padded[kLanes] = {};
  std::copy_n(row, count, padded);
  return hn::Load(D(), padded);
}

HWY_INLINE void store_tail(hn::Vec<D> value, float* row, int64_t count) {
  HWY_ALIGN float padded[kLanes];
  hn::Store(value, D(), padded);
  std::copy_n(padded, count, row);
}

/// out[s * stride] = <shared, source[s]> for s < kS.
template <int kS>
HWY_INLINE void dots(const float* HWY_RESTRICT shared, const float* const* source, int64_t count,
                     float* HWY_RESTRICT out, int64_t stride) {
  const D d;
  hn::Vec<D> even[kS], odd[kS];
#pragma GCC unroll 4
  for (int s = 0; s < kS; ++s) even[s] = odd[s] = hn::Zero(d);
  int64_t k = 0;
  for (; k + 2 * kLanes <= count; k += 2 * kLanes) {
    const auto u0 = hn::LoadU(d, shared + k), u1 = hn::LoadU(d, shared + k + kLanes);
#pragma GCC unroll 4
    for (int s = 0; s < kS; ++s) {
      even[s] = hn::MulAdd(u0, hn::LoadU(d, source[s] + k), even[s]);
      odd[s] = hn::MulAdd(u1, hn::LoadU(d, source[s] + k + kLanes), odd[s]);
    }
  }
  for (; k < count; k += kLanes) {
    const bool whole = k + kLanes <= count;
    const auto u = whole ? hn::LoadU(d, shared + k) : load_tail(shared + k, count - k);
#pragma GCC unroll 4
    for (int s = 0; s < kS; ++s) {
      const auto x = whole ? hn::LoadU(d, source[s] + k) : load_tail(source[s] + k, count - k);
      even[s] = hn::MulAdd(u, x, even[s]);
    }
  }
#pragma GCC unroll 4
  for (int s = 0; s < kS; ++s) {
    out[s * stride] = hn::GetLane(hn::SumOfLanes(d, hn::Add(even[s], odd[s])));
  }
}

/// target += sum_s factor[s] * source[s].
template <int kS>
HWY_INLINE void add_scaled(float* HWY_RESTRICT target, const float* factor,
                           const float* const* source, int64_t count) {
  const D d;
  hn::Vec<D> f[kS];
#pragma GCC unroll 4
  for (int s = 0; s < kS; ++s) f[s] = hn::Set(d, factor[s]);
  int64_t k = 0;
  for (; k + kLanes <= count; k += kLanes) {
    auto sum = hn::LoadU(d, target + k);
#pragma GCC unroll 4
    for (int s = 0; s < kS; ++s) sum = hn::MulAdd(f[s], hn::LoadU(d, source[s] + k), sum);
    hn::StoreU(sum, d, target + k);
  }
  if (k == count) return;
  auto sum = load_tail(target + k, count - k);
#pragma GCC unroll 4
  for (int s = 0; s < kS; ++s) {
    sum = hn::MulAdd(f[s], load_tail(source[s] + k, count - k), sum);
  }
  store_tail(sum, target + k, count - k);
}

/// Runs body<4>(begin) for every full group of four and body<1>(begin) for the rest.
template <class Body>
HWY_INLINE void in_fours(int64_t count, Body body) {
  int64_t i = 0;
  for (; i + kSources <= count; i += kSources) body.template run<kSources>(i);
  for (; i < count; ++i) body.template run<1>(i);
}

struct ScoreTokens {
  ConstMatrix rows;
  TokenRows<const float> tokens;
  float* out;
  int64_t stride;
  template <int kS>
  HWY_INLINE void run(int64_t i) const {
    const float* source[kS];
    for (int s = 0; s < kS; ++s) source[s] = tokens.x.row(tokens.token[i + s]);
    for (int64_t j = 0; j < rows.rows; ++j) {
      dots<kS>(rows.row(j), source, rows.cols, out + i * stride + j, stride);
    }
  }
};

struct CombineRows {
  ConstMatrix rows;
  const float* coefficient;  // of the token at hand
  float* y;
  template <int kS>
  HWY_INLINE void run(int64_t j) const {
    const float* source[kS];
    for (int s = 0; s < kS; ++s) source[s] = rows.row(j + s);
    add_scaled<kS>(y, coefficient + j, source, rows.cols);
  }
};

void scores(const ConstMatrix& rows, const TokenRows<const float>& tokens, float* out,
            int64_t stride) {
  in_fours(tokens.count, ScoreTokens{rows, tokens, out, stride});
}

void combine(const ConstMatrix& rows, const float* coefficient, int64_t stride,
             const TokenRows<float>& y) {
  for (int64_t i = 0; i < y.count; ++i) {
    in_fours(rows.rows, CombineRows{rows, coefficient + i * stride, y.x.row(y.token[i])});
  }
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace airmoe::experts
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace airmoe::experts {

HWY_EXPORT(scores);
HWY_EXPORT(combine);

void row_scores(ConstMatrix rows, TokenRows<const float> tokens, float* out, int64_t stride) {
  HWY_DYNAMIC_DISPATCH(scores)(rows, tokens, out, stride);
}
void row_combine(ConstMatrix rows, const float* coefficient, int64_t stride, TokenRows<float> y) {
  HWY_DYNAMIC_DISPATCH(combine)(rows, coefficient, stride, y);
}

}  // namespace airmoe::experts
#endif  // HWY_ONCE
