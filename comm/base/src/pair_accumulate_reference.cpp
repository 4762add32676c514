#include <cmath>

#include "comm/base/pair_accumulate.hpp"

namespace airmoe::reference {

void pair_accumulate(const PairGrouping& grouping, const int32_t* candidates,
                     const float* coefficient, int64_t units, ConstMatrix x, double quantum,
                     MatrixView<double> gradient) {
  const double constant = rounding_constant(quantum);
  for (int64_t g = 0; g < grouping.groups(); ++g) {
    const int32_t position = grouping.position(g);
    const int64_t row = candidates == nullptr ? position : candidates[position];
    for (int64_t i = grouping.begin(g); i < grouping.end(g); ++i) {
      const int64_t pair = grouping.pair(i) - grouping.first_pair();
      for (int64_t j = 0; j < units; ++j) {
        const double c = untied(coefficient[pair * units + j]);
        for (int64_t k = 0; k < x.cols; ++k) {
          const auto value = static_cast<double>(x(grouping.token(i), k));
          gradient(row * units + j, k) += std::fma(c, value, constant) - constant;
        }
      }
    }
  }
}

}  // namespace airmoe::reference
