#include "scheduler/parameter.hpp"

#include <algorithm>

#include "comm/base/error.hpp"
#include "comm/base/exact_sum.hpp"
#include "comm/base/fnv.hpp"
#include "comm/base/in_parallel.hpp"
#include "comm/base/random.hpp"

namespace airmoe::scheduler {
namespace {

void allocate(Parameter& p) {
  const int64_t size = p.local_size();
  p.value.ensure(size);
  for (Buffer<float>* zero : {&p.gradient, &p.moment1, &p.moment2}) {
    *zero = Buffer<float>(size, 0.0f);
  }
  p.gradient_sum = Buffer<double>(size, 0.0);
}

}  // namespace

Parameter& ParameterSet::add(std::string name, std::vector<int64_t> shape, bool decay) {
  AIRMOE_CHECK(!shape.empty(), "parameter {} has no dimension", name);
  for (const int64_t n : shape) AIRMOE_CHECK(n >= 1, "parameter {} has a dimension {}", name, n);
  for (const auto& p : parameters_) {
    AIRMOE_CHECK(p->name != name, "parameter {} exists twice", name);
  }
  parameters_.push_back(std::make_unique<Parameter>());
  Parameter& p = *parameters_.back();
  p.name = std::move(name);
  p.shape = std::move(shape);
  p.decay = decay;
  p.threads = threads_;
  return p;
}

Parameter& ParameterSet::add_replicated(std::string name, std::vector<int64_t> shape, bool decay) {
  Parameter& p = add(std::move(name), std::move(shape), decay);
  p.sharding = Sharding::replicated;
  p.row_count = p.shape[0];
  allocate(p);
  return p;
}

Parameter& ParameterSet::add_by_expert(std::string name, std::vector<int64_t> shape,
                                       BlockPartition experts, int64_t rank, bool decay) {
  Parameter& p = add(std::move(name), std::move(shape), decay);
  AIRMOE_CHECK(p.shape[0] == experts.total, "parameter {} has {} rows for {} experts", p.name,
               p.shape[0], experts.total);
  p.sharding = Sharding::by_expert;
  p.row_begin = experts.begin(rank);
  p.row_count = experts.size(rank);
  allocate(p);
  return p;
}

void Parameter::fold_gradient() {
  float* __restrict from = gradient.data();
  double* __restrict to = gradient_sum.data();
  constexpr double rounding = rounding_constant(kTrunkQuantum);
  const int64_t size = local_size();
  for (int64_t i = 0; i < size; ++i) {
    to[i] += round_to_quantum(static_cast<double>(from[i]), rounding);
    from[i] = 0.0f;
  }
}

void Parameter::unfold_gradient() {
  double* __restrict from = gradient_sum.data();
  float* __restrict to = gradient.data();
  const int64_t size = local_size();
  for (int64_t i = 0; i < size; ++i) {
    to[i] = static_cast<float>(from[i]);
    from[i] = 0.0;
  }
}

void ParameterSet::zero_gradients() {
  for (auto& p : parameters_) {
    p->gradient.fill(0.0f);
    p->gradient_sum.fill(0.0);
  }
}

void ParameterSet::unfold_gradients() {
  for (auto& p : parameters_) {
    if (p->sharding == Sharding::replicated) p->unfold_gradient();
  }
}

void initialise_normal(Parameter& parameter, uint64_t seed, float stddev) {
  // A stream of its own for every parameter, whatever the order of creation.
  const uint64_t key = fnv1a(parameter.name);
  const RandomStream stream(seed, Purpose::parameter_init, static_cast<uint32_t>(key),
                            static_cast<uint32_t>(key >> 32));
  const int64_t begin = parameter.row_begin * parameter.row_size();
  // Values depend on their index only, so threads share the work; small arrays are not worth one.
  constexpr int64_t kPart = int64_t{1} << 20;
  const int64_t size = parameter.local_size();
  const int64_t most = std::max<int64_t>(1, parameter.threads);
  const int64_t parts = std::clamp<int64_t>(size / kPart, 1, most);
  const BlockPartition over_threads{size, parts};
  in_parallel(parts, parts, [&](int64_t part) {
    const int64_t first = over_threads.begin(part);
    stream.fill_normal(parameter.value.data() + first, over_threads.size(part),
                       static_cast<uint64_t>(begin + first), stddev);
  });
}

}  // namespace airmoe::scheduler
