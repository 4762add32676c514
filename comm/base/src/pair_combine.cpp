#include "comm/base/pair_combine.hpp"

#include <algorithm>
#include <cmath>

#include "comm/base/error.hpp"

#define HWY_DISABLED_TARGETS (HWY_SVE | HWY_SVE2 | HWY_SVE_256 | HWY_SVE2_128 | HWY_RVV)
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "comm/base/src/pair_combine.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

HWY_BEFORE_NAMESPACE();
namespace airmoe {
namespace HWY_NAMESPACE {
namespace {

namespace hn = hwy::HWY_NAMESPACE;
using D = hn::CappedTag<double, 8>;
using Half = hn::Rebind<float, D>;
constexpr int64_t kLanes = hn::MaxLanes(D());
constexpr int kVectors = 8;  // sums of a column block, held in registers
constexpr int64_t kBlock = kVectors * kLanes;

// Columns [k, k + V vectors) of one token. The sums start at the rounding constant: every addition
// to it rounds the product to a multiple of the quantum and nothing else.
template <int V>
HWY_INLINE void combine_columns(const float* HWY_RESTRICT table, int64_t ld,
                                const int32_t* HWY_RESTRICT candidates,
                                const int32_t* HWY_RESTRICT position,
                                const float* HWY_RESTRICT coefficient, int64_t pairs, int64_t units,
                                double constant, double* HWY_RESTRICT y) {
  const D d;
  const Half half;
  const auto rounding = hn::Set(d, constant);
  hn::Vec<D> sum[V];
  for (int v = 0; v < V; ++v) sum[v] = rounding;
  for (int64_t p = 0; p < pairs; ++p) {
    const int64_t row = candidates == nullptr ? position[p] : candidates[position[p]];
    const float* HWY_RESTRICT from = table + row * units * ld;
    for (int64_t j = 0; j < units; ++j, from += ld) {
      const auto c = hn::Set(d, untied(coefficient[p * units + j]));
      for (int v = 0; v < V; ++v) {
        const auto row_v = hn::PromoteTo(d, hn::LoadU(half, from + v * kLanes));
        sum[v] = hn::MulAdd(c, row_v, sum[v]);
      }
    }
  }
  for (int v = 0; v < V; ++v) {
    const auto total = hn::Sub(sum[v], rounding);
    hn::StoreU(hn::Add(hn::LoadU(d, y + v * kLanes), total), d, y + v * kLanes);
  }
}

// Column blocks outside, tokens inside: a block of all candidates' rows stays in the cache.
void combine(ConstMatrix table, const int32_t* HWY_RESTRICT candidates,
             const SelectionView& selection, const float* HWY_RESTRICT coefficient, int64_t units,
             const double* HWY_RESTRICT quantum, MatrixView<double> y) {
  const int64_t first = selection.offset[0];
  const auto for_tokens = [&](auto&& body) HWY_ATTR {
    for (int64_t t = 0; t < selection.tokens; ++t) {
      const int64_t begin = selection.offset[t];
      body(t, selection.position + begin, coefficient + (begin - first) * units,
           selection.offset[t + 1] - begin);
    }
  };
  int64_t k = 0;
  for (; k + kBlock <= table.cols; k += kBlock) {
    for_tokens([&](int64_t t, const int32_t* position, const float* c, int64_t pairs) HWY_ATTR {
      combine_columns<kVectors>(table.data + k, table.ld, candidates, position, c, pairs, units,
                                rounding_constant(quantum[t]), y.row(t) + k);
    });
  }
  for (; k + kLanes <= table.cols; k += kLanes) {
    for_tokens([&](int64_t t, const int32_t* position, const float* c, int64_t pairs) HWY_ATTR {
      combine_columns<1>(table.data + k, table.ld, candidates, position, c, pairs, units,
                         rounding_constant(quantum[t]), y.row(t) + k);
    });
  }
  for (; k < table.cols; ++k) {
    for_tokens([&](int64_t t, const int32_t* position, const float* c, int64_t pairs) {
      const double rounding = rounding_constant(quantum[t]);
      double sum = rounding;
      for (int64_t p = 0; p < pairs; ++p) {
        const int64_t row = candidates == nullptr ? position[p] : candidates[position[p]];
        for (int64_t j = 0; j < units; ++j) {
          sum = std::fma(untied(c[p * units + j]), static_cast<double>(table(row * units + j, k)),
                         sum);
        }
      }
      y(t, k) += sum - rounding;
    });
  }
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace airmoe
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace airmoe {

HWY_EXPORT(combine);

void pair_combine(ConstMatrix table, const int32_t* candidates, const SelectionView& selection,
                  const float* coefficient, int64_t units, const double* quantum,
                  MatrixView<double> y) {
  AIRMOE_CHECK(y.rows == selection.tokens && y.cols == table.cols,
               "pair_combine: y [{}, {}] for {} tokens and rows of {}", y.rows, y.cols,
               selection.tokens, table.cols);
  if (selection.tokens == 0) return;
  HWY_DYNAMIC_DISPATCH(combine)(table, candidates, selection, coefficient, units, quantum, y);
}

}  // namespace airmoe
#endif  // HWY_ONCE
