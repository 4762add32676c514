#include <algorithm>

#include <cuda_bf16.h>

#include "scheduler/cuda/src/trunk_block.hpp"

namespace airmoe::scheduler::cuda {
namespace {

/// Rows of projections are read eight elements at a time.
void require_multiple_of_8(const char* what, int64_t value) {
  if (value % 8 != 0) {
    fail(ExitCode::config, "{} {} is not a multiple of 8 as a device needs: choose {}", what, value,
         (value + 7) / 8 * 8);
  }
}

const ModelConfig& checked(const ModelConfig& config) {
  config.validate();
  require_multiple_of_8("--dim", config.dim);
  if (static_cast<int64_t>(config.moe_layers.size()) < config.layers) {
    require_multiple_of_8("--ffn-dim", config.ffn_dim);
  }
  return config;
}

}  // namespace

template <class T>
TrunkShared<T>::TrunkShared(const ModelConfig& model, ParameterSet& host_parameters,
                            DeviceParameters<T>& device_parameters)
    : config(checked(model)),
      host(host_parameters),
      parameters(device_parameters),
      qkv_columns(model.dim + 2 * model.kv_heads * model.head_dim()),
      embedding(weight("/embedding")),
      final_norm(weight("/final_norm")),
      rope(model.context, model.head_dim(), model.rope_base) {}

template <class T>
Weight<T> TrunkShared<T>::weight(const std::string& name) {
  for (const auto& p : host.all()) {
    if (p->name == name) {
      return {parameters.value(*p), parameters.compute(*p), parameters.gradient(*p)};
    }
  }
  fail(ExitCode::failure, "the trunk on the device has no parameter {}", name);
}

template <class T>
Weight<T> TrunkShared<T>::stacked(const std::vector<std::string>& names) {
  const Weight<T> first = weight(names[0]);
  int64_t behind = -1;
  for (const std::string& name : names) {
    for (const auto& p : host.all()) {
      if (p->name != name) continue;
      const Segment& segment = parameters.segment(*p);
      AIRMOE_CHECK(behind < 0 || segment.begin == behind, "{} does not follow the one before it",
                   name);
      behind = segment.begin + segment.count;
    }
  }
  return first;
}

template <class T>
void TrunkShared<T>::reserve(int64_t tokens, bool backward) {
  const int64_t size = tokens * config.dim;
  for (DeviceBuffer<float>* all : {&embedded, &last}) all->ensure(size);
  if (!config.moe_layers.empty()) moe_out.ensure(size);
  for (DeviceBuffer<T>* all : {&last_normed, &branch}) all->ensure(size);
  last_inverse.ensure(tokens);
  if (!backward) return;
  d_stream.ensure(size);
  d_narrow.ensure(size);
  d_wide.ensure(tokens * std::max(qkv_columns, config.ffn_dim));
  if constexpr (!std::is_same_v<T, float>) d_stream_copy.ensure(size);
}

template <class T>
int64_t TrunkShared<T>::bytes() const {
  int64_t bytes = attention.row_terms.capacity_bytes() + attention.partial.capacity_bytes() +
                  columns.bytes() + cross_entropy.logits.capacity_bytes() +
                  cross_entropy.row_loss.capacity_bytes() + embed.partial.capacity_bytes() +
                  embed.sort.capacity_bytes();
  for (const auto* b : {&embed.key, &embed.sorted_key, &embed.index, &embed.sorted_index}) {
    bytes += b->capacity_bytes();
  }
  for (const auto* b : {&embedded, &last, &last_inverse, &moe_out, &d_stream}) {
    bytes += b->capacity_bytes();
  }
  for (const auto* b : {&last_normed, &branch, &d_narrow, &d_wide, &d_stream_copy}) {
    bytes += b->capacity_bytes();
  }
  return bytes;
}

template struct TrunkShared<float>;
template struct TrunkShared<__nv_bfloat16>;

}  // namespace airmoe::scheduler::cuda
