#include "apps/bench/workload.hpp"

#include <algorithm>
#include <cmath>

#include "comm/base/error.hpp"
#include "comm/base/exact_sum.hpp"
#include "comm/base/random.hpp"
#include "router/select.hpp"

namespace airmoe::bench {

void WorkloadShape::validate() const {
  if (active > shortlist || shortlist > experts) {
    fail(ExitCode::config,
         "--active {} --shortlist {} --experts {}: need active <= shortlist <= "
         "experts",
         active, shortlist, experts);
  }
}

Workload::Workload(const WorkloadShape& shape) : shape_(shape) {
  shape.validate();
  uint32_t array = 0;
  const auto fill = [&](Buffer<float>& buffer, int64_t rows, float stddev) {
    buffer.ensure(rows * shape.dim);
    RandomStream(shape.seed, Purpose::test_data, array++)
        .fill_normal(buffer.data(), buffer.size(), 0, stddev);
  };
  const float unit = 1.0f / std::sqrt(static_cast<float>(shape.dim));
  fill(centroid_, shape.experts, unit);
  fill(up_, shape.experts * shape.expert_dim, unit);
  fill(down_, shape.experts * shape.expert_dim, unit);
  if (shape.activation == experts::ExpertActivation::swiglu) {
    fill(gate_proj_, shape.experts * shape.expert_dim, unit);
  }
  fill(hidden_, shape.all_tokens(), 1.0f);
  fill(d_output_, shape.all_tokens(), 1.0f);

  candidates_.ensure(shape.codewords * shape.shortlist);
  position_.ensure(shape.pairs());
  expert_.ensure(shape.pairs());
  gate_ = Buffer<float>(shape.pairs(), 1.0f / static_cast<float>(shape.active));
  offset_.ensure(shape.all_tokens() + 1);
  for (int64_t t = 0; t <= shape.all_tokens(); ++t) offset_[t] = t * shape.active;

  PanelWorkspace workspace;
  Buffer<float> tile(shape.shortlist * tile_ld(shape.tokens)), score(shape.tokens * shape.active);
  for (int64_t g = 0; g < shape.codewords; ++g) {
    const RandomStream stream(shape.seed, Purpose::test_data, array, static_cast<uint32_t>(g));
    const RandomPermutation shuffle(stream, static_cast<uint64_t>(shape.experts));
    int32_t* list = candidates_.data() + g * shape.shortlist;
    for (int64_t i = 0; i < shape.shortlist; ++i) {
      list[i] = static_cast<int32_t>(shuffle(static_cast<uint64_t>(i)));
    }
    std::sort(list, list + shape.shortlist);
    panel_scores(panel(g), hidden(g), tile.data(), workspace);
    const int64_t first = g * shape.tokens * shape.active;
    router::select_top_k(tile.data(), shape.shortlist, shape.tokens, shape.active,
                         position_.data() + first, score.data());
    for (int64_t p = first; p < first + shape.tokens * shape.active; ++p) {
      expert_[p] = list[position_[p]];
    }
  }
}

experts::ExpertTable Workload::table() const {
  const int64_t rows = shape_.experts * shape_.expert_dim;
  const bool gated = shape_.activation == experts::ExpertActivation::swiglu;
  return {.up = {up_.data(), rows, shape_.dim},
          .down = {down_.data(), rows, shape_.dim},
          .gate_proj = {gate_proj_.data(), gated ? rows : 0, shape_.dim},
          .expert_dim = shape_.expert_dim,
          .activation = shape_.activation};
}

experts::ExpertGradients Workload::gradients() {
  const int64_t rows = shape_.experts * shape_.expert_dim;
  const auto matrix = [&](Buffer<double>& buffer) {
    if (buffer.size() == 0) buffer = Buffer<double>(rows * shape_.dim, 0.0);
    return MatrixView<double>(buffer.data(), rows, shape_.dim);
  };
  experts::ExpertGradients gradients{.up = matrix(d_up_),
                                     .down = matrix(d_down_),
                                     .gate_proj = {},
                                     .quantum = expert_gradient_quantum(shape_.experts)};
  if (shape_.activation == experts::ExpertActivation::swiglu) {
    gradients.gate_proj = matrix(d_gate_proj_);
  }
  return gradients;
}

SelectionView Workload::selection(int64_t codeword) const {
  return {shape_.tokens, offset_.data() + codeword * shape_.tokens, position_.data(), gate_.data()};
}

SelectionView Workload::selection() const {
  return {shape_.all_tokens(), offset_.data(), expert_.data(), gate_.data()};
}

}  // namespace airmoe::bench
