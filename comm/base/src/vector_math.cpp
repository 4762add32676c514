// Elementwise functions, compiled once per instruction set by Highway, chosen at run time. Arrays
// that are no multiple of the vector length end in a padded copy, so every element goes through the
// same instructions.

#include "comm/base/vector_math.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

#define HWY_DISABLED_TARGETS (HWY_SVE | HWY_SVE2 | HWY_SVE_256 | HWY_SVE2_128 | HWY_RVV)
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "comm/base/src/vector_math.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>
// After highway.h
#include <hwy/contrib/math/math-inl.h>

HWY_BEFORE_NAMESPACE();
namespace airmoe {
namespace HWY_NAMESPACE {
namespace {

namespace hn = hwy::HWY_NAMESPACE;
using D = hn::ScalableTag<float>;
using V = hn::Vec<D>;
constexpr int64_t kLanes = hn::MaxLanes(D());

// e^x for every x: Highway's Exp gives 0 for NaN and is not valid above 104.
HWY_INLINE V exp_of(V x) {
  const D d;
  const V kMax = hn::Set(d, 88.7228394f);  // the largest float whose exponential is finite
  const V inf = hn::Set(d, std::numeric_limits<float>::infinity());
  const V y = hn::Exp(d, hn::Min(x, kMax));
  return hn::IfThenElse(hn::IsNaN(x), x, hn::IfThenElse(hn::Gt(x, kMax), inf, y));
}

struct ValueAndSlope {
  V value, slope;
};

// x * Phi(x), Phi the normal distribution function. With u = |x|, Phi(-u) = exp(-u^2 / 2) * R(u)
// and R(u) = erfcx(u / sqrt(2)) / 2 = p((u - 3) / (u + 3)) / (1 + u); p is a minimax fit on [0, 15]
// of relative error 6e-9. Nothing cancels for negative x, so the relative error stays small there.
HWY_INLINE ValueAndSlope gelu(V x) {
  const D d;
  constexpr int kDegree = 10;
  static constexpr float kCoefficients[kDegree + 1] = {
      0.486055796f,     -0.0965267821f,  -0.0164323806f, 0.04516461f,
      -0.0227264262f,   0.00115541597f,  0.0029903806f,  -0.000341583567f,
      -0.000469215574f, 1.36957943e-05f, 4.72050755e-05f};
  const V one = hn::Set(d, 1.0f);
  const V half = hn::Set(d, 0.5f);
  const V three = hn::Set(d, 3.0f);
  const V u = hn::Min(hn::Abs(x), hn::Set(d, 20.0f));
  const V t = hn::Div(hn::Sub(u, three), hn::Add(u, three));
  V p = hn::Set(d, kCoefficients[kDegree]);
#pragma GCC unroll 16
  for (int i = kDegree - 1; i >= 0; --i) p = hn::MulAdd(p, t, hn::Set(d, kCoefficients[i]));
  const V ratio = hn::Div(p, hn::Add(one, u));
  // exp(-u^2 / 2) with the rounding error of u^2 put back.
  const V square = hn::Mul(u, u);
  const V rest = hn::MulSub(u, u, square);
  const V e = exp_of(hn::Neg(hn::Mul(half, square)));
  const V density = hn::NegMulAdd(hn::Mul(half, rest), e, e);
  const V lower = hn::Mul(density, ratio);
  V phi = hn::IfThenElse(hn::Lt(x, hn::Zero(d)), lower, hn::Sub(one, lower));
  phi = hn::IfThenElse(hn::IsNaN(x), x, phi);
  const V kInverseRootTwoPi = hn::Set(d, 0.398942280401432678f);
  return {hn::Mul(x, phi), hn::MulAdd(hn::Mul(x, kInverseRootTwoPi), density, phi)};
}

// x * s with s = 1 / (1 + e^-x); slope s * (1 + x * (1 - s)).
HWY_INLINE ValueAndSlope silu(V x) {
  const D d;
  const V one = hn::Set(d, 1.0f);
  const V e = exp_of(hn::Neg(hn::Abs(x)));
  const V larger = hn::Div(one, hn::Add(one, e));
  const V smaller = hn::Mul(e, larger);
  const auto negative = hn::Lt(x, hn::Zero(d));
  const V s = hn::IfThenElse(negative, smaller, larger);
  const V complement = hn::IfThenElse(negative, larger, smaller);
  return {hn::Mul(x, s), hn::MulAdd(hn::Mul(x, s), complement, s)};
}

HWY_INLINE ValueAndSlope relu(V x) {
  const D d;
  const auto off = hn::Le(x, hn::Zero(d));  // false for NaN, which passes through
  return {hn::IfThenZeroElse(off, x), hn::IfThenZeroElse(off, hn::Set(d, 1.0f))};
}

// Calls f(vector) -> ValueAndSlope for all of x; slope may be null.
template <class F>
HWY_INLINE void for_each_vector(const float* x, float* value, float* slope, int64_t count, F f) {
  const D d;
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    const ValueAndSlope y = f(hn::LoadU(d, x + i));
    hn::StoreU(y.value, d, value + i);
    if (slope != nullptr) hn::StoreU(y.slope, d, slope + i);
  }
  if (i == count) return;
  HWY_ALIGN float padded[kLanes] = {};
  std::copy(x + i, x + count, padded);
  const ValueAndSlope y = f(hn::Load(d, padded));
  hn::Store(y.value, d, padded);
  std::copy(padded, padded + (count - i), value + i);
  if (slope == nullptr) return;
  hn::Store(y.slope, d, padded);
  std::copy(padded, padded + (count - i), slope + i);
}

void exp_all(const float* x, float shift, float* out, int64_t count) {
  for_each_vector(x, out, nullptr, count, [shift](V v) HWY_ATTR {
    const D d;
    const V y = exp_of(hn::Sub(v, hn::Set(d, shift)));
    return ValueAndSlope{y, y};
  });
}

void activate(Activation f, const float* x, float* value, float* slope, int64_t count) {
  switch (f) {
    case Activation::gelu:
      return for_each_vector(x, value, slope, count, [](V v) HWY_ATTR { return gelu(v); });
    case Activation::silu:
      return for_each_vector(x, value, slope, count, [](V v) HWY_ATTR { return silu(v); });
    case Activation::relu:
      return for_each_vector(x, value, slope, count, [](V v) HWY_ATTR { return relu(v); });
  }
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace airmoe
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace airmoe {

HWY_EXPORT(exp_all);
HWY_EXPORT(activate);

void vector_exp(const float* x, float shift, float* out, int64_t count) {
  HWY_DYNAMIC_DISPATCH(exp_all)(x, shift, out, count);
}

void activation_forward(Activation f, const float* x, float* out, int64_t count) {
  HWY_DYNAMIC_DISPATCH(activate)(f, x, out, nullptr, count);
}

void activation_with_slope(Activation f, const float* x, float* value, float* slope,
                           int64_t count) {
  HWY_DYNAMIC_DISPATCH(activate)(f, x, value, slope, count);
}

}  // namespace airmoe
#endif  // HWY_ONCE
