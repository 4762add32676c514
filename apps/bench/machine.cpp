#include "apps/bench/machine.hpp"

#include <algorithm>
#include <fstream>
#include <string>
#include <vector>

#include "apps/bench/timing.hpp"
#include "comm/base/blas.hpp"

// One source, compiled once per instruction set by Highway, chosen at run time.
#define HWY_DISABLED_TARGETS (HWY_SVE | HWY_SVE2 | HWY_SVE_256 | HWY_SVE2_128 | HWY_RVV)
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "apps/bench/machine.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

HWY_BEFORE_NAMESPACE();
namespace airmoe::bench {
namespace HWY_NAMESPACE {
namespace {

namespace hn = hwy::HWY_NAMESPACE;
using D = hn::ScalableTag<float>;

/// `rounds` dependent multiply-adds in each of 12 chains; returns the FLOPs done.
double multiply_add(int64_t rounds, float* result) {
  constexpr int kChains = 12;
  const D d;
  hn::Vec<D> sum[kChains];
  for (int i = 0; i < kChains; ++i) sum[i] = hn::Set(d, 0.1f * static_cast<float>(i));
  const auto factor = hn::Set(d, 0.999f), term = hn::Set(d, 0.001f);
  for (int64_t r = 0; r < rounds; ++r) {
#pragma GCC unroll 12
    for (int i = 0; i < kChains; ++i) sum[i] = hn::MulAdd(sum[i], factor, term);
  }
  auto total = sum[0];
  for (int i = 1; i < kChains; ++i) total = hn::Add(total, sum[i]);
  *result = hn::GetLane(hn::SumOfLanes(d, total));
  return 2.0 * kChains * static_cast<double>(hn::Lanes(d)) * static_cast<double>(rounds);
}

/// Sum of an array whose size is a multiple of 64 elements.
float read_all(const float* x, int64_t count) {
  const D d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  hn::Vec<D> sum[4];
  for (auto& part : sum) part = hn::Zero(d);
  for (int64_t i = 0; i < count; i += 4 * lanes) {
#pragma GCC unroll 4
    for (int v = 0; v < 4; ++v) sum[v] = hn::Add(sum[v], hn::LoadU(d, x + i + v * lanes));
  }
  const auto total = hn::Add(hn::Add(sum[0], sum[1]), hn::Add(sum[2], sum[3]));
  return hn::GetLane(hn::SumOfLanes(d, total));
}

const char* target_name() {
  return hwy::TargetName(HWY_TARGET);
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace airmoe::bench
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace airmoe::bench {
namespace {

HWY_EXPORT(multiply_add);
HWY_EXPORT(read_all);
HWY_EXPORT(target_name);

std::string processor_name() {
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);) {
    if (line.starts_with("model name"))
      return line.substr(std::min(line.size(), line.find(':') + 2));
  }
  return "unknown";
}

}  // namespace

double Machine::floor_seconds(double flops, double bytes) const {
  return std::max(flops / flops_per_second, bytes / bytes_per_second);
}

Machine measure_machine() {
  constexpr int64_t kRounds = 200'000, kElements = int64_t{64} << 20;
  volatile float sink = 0;
  double flops = 0;
  std::vector<float> memory(static_cast<std::size_t>(kElements), 1.0f);
  const std::vector<Timing> timings = measure(
      {{"multiply-add",
        [&](int64_t) {
          float result = 0;
          flops = HWY_DYNAMIC_DISPATCH(multiply_add)(kRounds, &result);
          sink = result;
        }},
       {"read", [&](int64_t) { sink = HWY_DYNAMIC_DISPATCH(read_all)(memory.data(), kElements); }}},
      {.warm_up = 1, .repetitions = 10});
  return {.flops_per_second = flops / timings[0].least,
          .bytes_per_second = 4.0 * static_cast<double>(kElements) / timings[1].least};
}

nlohmann::json describe_machine(const Machine& machine) {
  return {{"processor", processor_name()},
          {"instruction_set", HWY_DYNAMIC_DISPATCH(target_name)()},
          {"blas", blas::description()},
          {"flops_per_second", machine.flops_per_second},
          {"read_bytes_per_second", machine.bytes_per_second}};
}

}  // namespace airmoe::bench
#endif  // HWY_ONCE
