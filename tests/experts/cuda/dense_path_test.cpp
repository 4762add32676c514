// Forward and backward of experts on a device against experts/reference.hpp in double precision, on
// the very numbers that the device sees.

#include <gtest/gtest.h>

#include "base/cuda/routed_case.hpp"
#include "comm/base/cuda/pair_accumulate.hpp"
#include "comm/base/cuda/pair_combine.hpp"
#include "experts/cuda/grouped_path.hpp"
#include "experts/reference.hpp"

namespace airmoe::experts::cuda::testing {
namespace {

using airmoe::cuda::DeviceBuffer;
using airmoe::cuda::Stream;
using namespace airmoe::cuda::testing;

struct Shape {
  RoutedShape routed;
  int64_t d = 64, m = 1;
  ExpertActivation activation = ExpertActivation::gelu;
};

std::vector<double> as_double(const std::vector<float>& x) {
  return {x.begin(), x.end()};
}

/// Largest difference relative to the largest expected value.
template <class Actual>
double error_of(const std::vector<Actual>& actual, const std::vector<double>& expected) {
  EXPECT_EQ(actual.size(), expected.size());
  double largest = 0, difference = 0;
  for (std::size_t i = 0; i < expected.size(); ++i) {
    largest = std::max(largest, std::abs(expected[i]));
    const double here = std::abs(static_cast<double>(actual[i]) - expected[i]);
    difference = here <= difference ? difference : here;  // keeps NaN
  }
  return largest > 0 ? difference / largest : difference;
}

/// Numbers that T can hold, on host and device.
template <class T>
struct Array {
  std::vector<float> host;
  DeviceBuffer<T> device;
  Array(int64_t count, float scale, uint32_t seed, cudaStream_t stream)
      : host(random_floats(count, scale, seed)) {
    for (float& x : host) x = rounded<T>(x);
    upload_as(device, host, stream);
  }
};

enum class Way { dense, grouped };

template <class T>
void expect_reference(const Shape& shape, Way way, double forward_bound, double backward_bound) {
  SCOPED_TRACE(fmt::format("{} tokens, K {} of {}, d {}, m {}, activation {}, {}",
                           shape.routed.tokens, shape.routed.active, shape.routed.length, shape.d,
                           shape.m, static_cast<int>(shape.activation),
                           way == Way::dense ? "dense" : "grouped"));
  const Stream stream;
  const RoutedCase c(shape.routed);
  const DeviceCase device(c, stream);
  const int64_t n = shape.routed.tokens, active = shape.routed.active, d = shape.d, m = shape.m;
  const int64_t rows = shape.routed.rows * m, pairs = c.pairs();
  const float scale = 1.0f / std::sqrt(static_cast<float>(d));
  Array<T> up(rows * d, scale, 1, stream), down(rows * d, scale, 2, stream),
      gate_proj(rows * d, scale, 3, stream), hidden(n * d, 1, 4, stream), d_y(n * d, 1, 5, stream);
  std::vector<float> gate = random_floats(pairs, 1, 6);
  for (float& g : gate) g = std::abs(g) / static_cast<float>(active);
  DeviceBuffer<float> device_gate, saved, y, d_gate, d_pre, d_inner, scaled, d_hidden;
  device_gate.upload(gate, stream);

  DeviceExpertTable<T> table{up.device.data(), down.device.data(), nullptr, m, shape.activation};
  if (table.gated()) table.gate_proj = gate_proj.device.data();
  airmoe::cuda::DevicePairTiles tiles;
  tiles.build(device.tokens(), device.lists(), device.position(), active, stream);
  airmoe::cuda::DevicePairGrouping grouping;
  grouping.build(device.tokens(), device.lists(), device.position(), active, shape.routed.rows,
                 stream);
  ExpertWorkspace workspace;
  const auto run_forward = [&](float* keep) {
    const std::vector<float> nothing(static_cast<std::size_t>(n * d), NAN);
    y.upload(nothing, stream);
    const T* const x = hidden.device.data();
    const float* const weights = device_gate.data();
    if (way == Way::dense) {
      forward<T>(table, x, d, tiles.view(), weights, y.data(), keep, workspace, stream);
    } else {
      forward_grouped<T>(table, x, d, tiles.view(), grouping.view(), weights, y.data(), keep,
                         workspace, stream);
    }
    return from_device(y, stream);
  };
  const std::vector<float> unsaved = run_forward(nullptr);
  saved.ensure(pairs * table.saved_per_pair());
  EXPECT_EQ(run_forward(saved.data()), unsaved);

  d_gate.ensure(pairs);
  for (DeviceBuffer<float>* x : {&d_pre, &d_inner, &scaled}) x->ensure(pairs * m);
  const PairGradients to{d_gate.data(), d_pre.data(), table.gated() ? d_inner.data() : nullptr,
                         scaled.data()};
  if (way == Way::dense) {
    backward_pairs<T>(table, tiles.view(), device_gate.data(), saved.data(), d_y.device.data(), d,
                      to, stream);
  } else {
    backward_pairs_grouped<T>(table, tiles.view(), grouping.view(), device_gate.data(),
                              saved.data(), d_y.device.data(), d, to, stream);
  }
  std::vector<airmoe::cuda::CombineTerm<T>> combine = {{d_pre.data(), table.up, m}};
  if (table.gated()) combine.push_back({d_inner.data(), table.gate_proj, m});
  d_hidden.upload(std::vector<float>(static_cast<std::size_t>(n * d), NAN), stream);
  airmoe::cuda::combine_pairs<T>(tiles.view(), combine, d, d_hidden.data(), stream);
  DeviceBuffer<float> d_up, d_down, d_gate_proj;
  for (DeviceBuffer<float>* x : {&d_up, &d_down, &d_gate_proj}) {
    x->ensure(rows * d);
    x->zero(stream);
  }
  std::vector<airmoe::cuda::AccumulateTerm<T>> accumulate = {
      {d_pre.data(), hidden.device.data(), d_up.data(), m}};
  if (table.gated()) {
    accumulate.push_back({d_inner.data(), hidden.device.data(), d_gate_proj.data(), m});
  }
  accumulate.push_back({scaled.data(), d_y.device.data(), d_down.data(), m});
  airmoe::cuda::AccumulateWorkspace parts;
  airmoe::cuda::accumulate_pairs<T>(grouping.view(), accumulate, d, parts, stream);

  // The reference goes by tokens; pairs of place p are those of token[p].
  std::vector<int64_t> offset;
  std::vector<int32_t> position(static_cast<std::size_t>(pairs));
  std::vector<double> token_gate(static_cast<std::size_t>(pairs));
  std::vector<std::size_t> pair_of(static_cast<std::size_t>(pairs));
  for (int64_t t = 0; t <= n; ++t) offset.push_back(t * active);
  for (int64_t p = 0; p < pairs; ++p) {
    const auto at = static_cast<std::size_t>(c.token_of(p) * active + p % active);
    position[at] = c.row(p);
    token_gate[at] = gate[static_cast<std::size_t>(p)];
    pair_of[at] = static_cast<std::size_t>(p);
  }
  const auto up64 = as_double(up.host), down64 = as_double(down.host),
             gate64 = as_double(gate_proj.host), hidden64 = as_double(hidden.host),
             d_y64 = as_double(d_y.host);
  const reference::Table exact{{up64.data(), rows, d},
                               {down64.data(), rows, d},
                               {gate64.data(), rows, d},
                               m,
                               shape.activation};
  const SelectionView selection{n, offset.data(), position.data(), nullptr};
  EXPECT_LE(error_of(unsaved, reference::forward(exact, {hidden64.data(), n, d}, selection,
                                                 token_gate.data())),
            forward_bound);
  const reference::Gradients g = reference::backward(exact, {hidden64.data(), n, d}, selection,
                                                     token_gate.data(), {d_y64.data(), n, d});
  const auto by_place = from_device(d_gate, stream);
  std::vector<float> by_token;
  for (const std::size_t p : pair_of) by_token.push_back(by_place[p]);
  EXPECT_LE(error_of(by_token, g.gate), backward_bound) << "d_gate";
  EXPECT_LE(error_of(from_device(d_hidden, stream), g.hidden), backward_bound) << "d_hidden";
  EXPECT_LE(error_of(from_device(d_up, stream), g.up), backward_bound) << "d_up";
  EXPECT_LE(error_of(from_device(d_down, stream), g.down), backward_bound) << "d_down";
  if (table.gated()) {
    EXPECT_LE(error_of(from_device(d_gate_proj, stream), g.gate_proj), backward_bound);
  }
}

const std::vector<ExpertActivation> kActivations = {ExpertActivation::gelu, ExpertActivation::silu,
                                                    ExpertActivation::relu,
                                                    ExpertActivation::swiglu};

std::vector<Shape> shapes() {
  std::vector<Shape> all;
  for (const ExpertActivation activation : kActivations) {
    for (const int64_t m : {1, 3}) {
      all.push_back({{.tokens = 75, .codewords = 6, .length = 150, .active = 40, .rows = 400},
                     72,
                     m,
                     activation});
      all.push_back({{.tokens = 41,
                      .codewords = 2,
                      .length = 20,
                      .active = 3,
                      .rows = 30,
                      .one_codeword = true},
                     128,
                     m,
                     activation});
    }
  }
  all.push_back(
      {{.tokens = 130, .codewords = 5, .length = 512, .active = 128, .rows = 900, .narrow = true},
       256,
       1,
       ExpertActivation::gelu});
  all.push_back({{.tokens = 20, .codewords = 5, .length = 40, .active = 8, .rows = 50},
                 1024,
                 1,
                 ExpertActivation::silu});
  all.push_back({{.tokens = 300, .codewords = 4, .length = 20, .active = 4, .rows = 25},
                 200,
                 70,
                 ExpertActivation::gelu});
  all.push_back({{.tokens = 37, .codewords = 5, .length = 6, .active = 2, .rows = 12},
                 64,
                 32,
                 ExpertActivation::swiglu});
  return all;
}

// Sums of fp32 products in fp32: the bounds that the CPU path keeps.
TEST(ExpertsOnDevice, MatchTheReferenceInFp32) {
  for (const Shape& shape : shapes()) expect_reference<float>(shape, Way::dense, 1e-5, 1e-4);
  expect_reference<float>(shapes().back(), Way::grouped, 1e-5, 1e-4);
}

// Inputs are exact in bf16. What differs are the coefficients of sums over pairs, rounded to bf16
// (2^-9 each), in outputs and hidden gradients; sums and everything per pair are in fp32.
TEST(ExpertsOnDevice, MatchTheReferenceInBf16) {
  for (const Shape& shape : shapes()) {
    for (const Way way : {Way::dense, Way::grouped}) {
      expect_reference<__nv_bfloat16>(shape, way, 4e-3, 4e-3);
    }
  }
}

TEST(ExpertsOnDevice, NoTokensNoWork) {
  expect_reference<__nv_bfloat16>(
      {{.tokens = 0, .codewords = 2, .length = 4, .active = 2, .rows = 8}, 64, 1}, Way::dense, 0,
      0);
}

}  // namespace
}  // namespace airmoe::experts::cuda::testing
