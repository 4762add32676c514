#include "experts/reference.hpp"

#include <cmath>
#include <numbers>

namespace airmoe::experts::reference {
namespace {

double sigmoid(double x) {
  return 1.0 / (1.0 + std::exp(-x));
}
double normal_cdf(double x) {
  return 0.5 * std::erfc(-x / std::numbers::sqrt2);
}
double normal_density(double x) {
  return std::exp(-0.5 * x * x) * std::numbers::inv_sqrtpi / std::numbers::sqrt2;
}

double dot(const double* a, const double* b, int64_t count) {
  double sum = 0;
  for (int64_t k = 0; k < count; ++k) sum += a[k] * b[k];
  return sum;
}

void add_scaled(double* target, double factor, const double* source, int64_t count) {
  for (int64_t k = 0; k < count; ++k) target[k] += factor * source[k];
}

}  // namespace

double activation_value(ExpertActivation activation, double x) {
  switch (activation) {
    case ExpertActivation::gelu:
      return x * normal_cdf(x);
    case ExpertActivation::relu:
      return x > 0 ? x : 0;
    case ExpertActivation::silu:
    case ExpertActivation::swiglu:
      return x * sigmoid(x);
  }
  return 0;
}

double activation_slope(ExpertActivation activation, double x) {
  switch (activation) {
    case ExpertActivation::gelu:
      return normal_cdf(x) + x * normal_density(x);
    case ExpertActivation::relu:
      return x > 0 ? 1 : 0;
    case ExpertActivation::silu:
    case ExpertActivation::swiglu:
      return sigmoid(x) * (1 + x * (1 - sigmoid(x)));
  }
  return 0;
}

std::vector<double> forward(const Table& table, ConstMatrix64 hidden, SelectionView selection,
                            const double* gate) {
  const int64_t d = table.up.cols;
  std::vector<double> y(static_cast<std::size_t>(hidden.rows * d), 0.0);
  for (int64_t t = 0; t < selection.tokens; ++t) {
    const double* h = hidden.row(t);
    for (int64_t p = selection.offset[t]; p < selection.offset[t + 1]; ++p) {
      for (int64_t j = 0; j < table.expert_dim; ++j) {
        const int64_t row = selection.position[p] * table.expert_dim + j;
        double unit = dot(h, table.up.row(row), d);
        if (table.activation == ExpertActivation::swiglu) {
          unit *= activation_value(table.activation, dot(h, table.gate_proj.row(row), d));
        } else {
          unit = activation_value(table.activation, unit);
        }
        add_scaled(y.data() + t * d, gate[p] * unit, table.down.row(row), d);
      }
    }
  }
  return y;
}

Gradients backward(const Table& table, ConstMatrix64 hidden, SelectionView selection,
                   const double* gate, ConstMatrix64 d_y) {
  const int64_t d = table.up.cols;
  const bool gated = table.activation == ExpertActivation::swiglu;
  const auto zeros = [](int64_t count) {
    return std::vector<double>(static_cast<std::size_t>(count), 0.0);
  };
  const int64_t first_pair = selection.tokens > 0 ? selection.offset[0] : 0;
  const int64_t pairs = selection.tokens > 0 ? selection.offset[selection.tokens] - first_pair : 0;
  Gradients out{.up = zeros(table.up.rows * d),
                .down = zeros(table.up.rows * d),
                .gate_proj = zeros(gated ? table.up.rows * d : 0),
                .hidden = zeros(hidden.rows * d),
                .gate = zeros(pairs)};
  for (int64_t t = 0; t < selection.tokens; ++t) {
    const double* h = hidden.row(t);
    for (int64_t p = selection.offset[t]; p < selection.offset[t + 1]; ++p) {
      for (int64_t j = 0; j < table.expert_dim; ++j) {
        const int64_t row = selection.position[p] * table.expert_dim + j;
        const double linear = dot(h, table.up.row(row), d);
        const double inner = gated ? dot(h, table.gate_proj.row(row), d) : linear;
        const double value = activation_value(table.activation, inner);
        const double slope = activation_slope(table.activation, inner);
        const double unit = gated ? value * linear : value;
        const double d_unit = dot(d_y.row(t), table.down.row(row), d);
        out.gate[static_cast<std::size_t>(p - first_pair)] += unit * d_unit;
        add_scaled(out.down.data() + row * d, gate[p] * unit, d_y.row(t), d);
        const double d_linear = gate[p] * d_unit * (gated ? value : slope);
        add_scaled(out.up.data() + row * d, d_linear, h, d);
        add_scaled(out.hidden.data() + t * d, d_linear, table.up.row(row), d);
        if (gated) {
          const double d_inner = gate[p] * d_unit * linear * slope;
          add_scaled(out.gate_proj.data() + row * d, d_inner, h, d);
          add_scaled(out.hidden.data() + t * d, d_inner, table.gate_proj.row(row), d);
        }
      }
    }
  }
  return out;
}

}  // namespace airmoe::experts::reference
