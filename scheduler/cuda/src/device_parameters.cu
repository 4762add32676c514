#include <algorithm>
#include <bit>
#include <future>
#include <type_traits>
#include <utility>

#include <cuda_bf16.h>

#include "scheduler/cuda/device_parameters.hpp"

namespace airmoe::scheduler::cuda {
namespace {

__global__ void to_bf16(const float4* __restrict__ from, uint2* __restrict__ to, int64_t quads) {
  const int64_t stride = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x; i < quads;
       i += stride) {
    const float4 x = from[i];
    __nv_bfloat162 pair[2] = {__floats2bfloat162_rn(x.x, x.y), __floats2bfloat162_rn(x.z, x.w)};
    to[i] = *reinterpret_cast<const uint2*>(pair);
  }
}

void copy(float* to, const float* from, int64_t count, cudaMemcpyKind kind, cudaStream_t stream) {
  if (count == 0) return;
  const std::size_t bytes = static_cast<std::size_t>(count) * sizeof(float);
  AIRMOE_CUDA(cudaMemcpyAsync(to, from, bytes, kind, stream));
}

/// Whether every bit is zero. Looks no further than the first block that is not.
bool all_zero(const Buffer<float>& x) {
  constexpr int64_t kBlock = 4096;
  for (int64_t begin = 0; begin < x.size(); begin += kBlock) {
    const int64_t end = std::min(x.size(), begin + kBlock);
    uint32_t bits = 0;
    for (int64_t i = begin; i < end; ++i) bits |= std::bit_cast<uint32_t>(x[i]);
    if (bits != 0) return false;
  }
  return true;
}

}  // namespace

template <class T>
DeviceParameters<T>::DeviceParameters(ParameterSet& host) : host_(host) {
  for (const Sharding sharding : {Sharding::replicated, Sharding::by_expert}) {
    for (auto& p : host.all()) {
      if (p->sharding != sharding) continue;
      if (p->local_size() % 8 != 0) {
        fail(ExitCode::config,
             "{} has {} elements: on a device every parameter needs a multiple of 8, choose --dim "
             "and the numbers of heads and experts so",
             p->name, p->local_size());
      }
      place_[p.get()] = segments_.size();
      segments_.push_back({size_, p->local_size(), p->decay});
      order_.push_back(p.get());
      size_ += p->local_size();
    }
    if (sharding == Sharding::replicated) replicated_ = size_;
  }
  for (DeviceBuffer<float>* all : {&value_, &gradient_, &moment1_, &moment2_}) all->ensure(size_);
  if constexpr (!std::is_same_v<T, float>) compute_.ensure(size_);
}

template <class T>
void DeviceParameters<T>::upload(cudaStream_t stream) {
  // The processor looks for moments while it waits for values to be sent.
  std::future<std::vector<bool>> searched = std::async(std::launch::async, [this] {
    std::vector<bool> zero;
    for (const Parameter* p : order_) {
      zero.push_back(all_zero(p->moment1));
      zero.push_back(all_zero(p->moment2));
    }
    return zero;
  });
  for (std::size_t i = 0; i < order_.size(); ++i) {
    const Segment& s = segments_[i];
    copy(value_.data() + s.begin, order_[i]->value.data(), s.count, cudaMemcpyHostToDevice, stream);
  }
  const std::vector<bool> zero = searched.get();
  const auto send = [&](float* to, const Buffer<float>& from, int64_t count, bool is_zero) {
    if (is_zero) {
      AIRMOE_CUDA(cudaMemsetAsync(to, 0, static_cast<std::size_t>(count) * sizeof(float), stream));
    } else {
      copy(to, from.data(), count, cudaMemcpyHostToDevice, stream);
    }
  };
  for (std::size_t i = 0; i < order_.size(); ++i) {
    const Segment& s = segments_[i];
    send(moment1_.data() + s.begin, order_[i]->moment1, s.count, zero[2 * i]);
    send(moment2_.data() + s.begin, order_[i]->moment2, s.count, zero[2 * i + 1]);
  }
  zero_gradients(stream);
  reset_rows(stream);
  refresh_compute(stream);
  AIRMOE_CUDA(cudaStreamSynchronize(stream));
}

template <class T>
void DeviceParameters<T>::download(cudaStream_t stream) {
  download_values(stream);
  for (std::size_t i = 0; i < order_.size(); ++i) {
    const Segment& s = segments_[i];
    Parameter& p = *order_[i];
    copy(p.moment1.data(), moment1_.data() + s.begin, s.count, cudaMemcpyDeviceToHost, stream);
    copy(p.moment2.data(), moment2_.data() + s.begin, s.count, cudaMemcpyDeviceToHost, stream);
  }
  AIRMOE_CUDA(cudaStreamSynchronize(stream));
}

template <class T>
void DeviceParameters<T>::download_values(cudaStream_t stream) {
  finish_rows(*this, stream);
  for (std::size_t i = 0; i < order_.size(); ++i) {
    const Segment& s = segments_[i];
    copy(order_[i]->value.data(), value_.data() + s.begin, s.count, cudaMemcpyDeviceToHost, stream);
  }
  AIRMOE_CUDA(cudaStreamSynchronize(stream));
}

template <class T>
void DeviceParameters<T>::refresh_compute(cudaStream_t stream) {
  if constexpr (!std::is_same_v<T, float>) {
    if (size_ == 0) return;
    const int blocks = airmoe::cuda::device_properties().multiprocessors * 8;
    to_bf16<<<blocks, 256, 0, stream>>>(reinterpret_cast<const float4*>(value_.data()),
                                        reinterpret_cast<uint2*>(compute_.data()), size_ / 4);
    AIRMOE_CUDA_LAUNCHED();
  }
}

template <class T>
ExpertRows& DeviceParameters<T>::track_rows(int64_t rows, std::vector<const Parameter*> scored,
                                            std::vector<const Parameter*> computed) {
  ExpertRows& experts = experts_.emplace_back();
  experts.rows = rows;
  for (const auto* all : {&scored, &computed}) {
    for (const Parameter* p : *all) {
      AIRMOE_CHECK(p->row_count == rows && p->row_size() % 8 == 0, "{}: {} rows of {} elements",
                   p->name, p->row_count, p->row_size());
    }
  }
  experts.scored = std::move(scored);
  experts.computed = std::move(computed);
  experts.written.ensure(rows);
  experts.updated.ensure(rows);
  history_.rates.ensure(UpdateHistory::kMost);
  return experts;
}

// No row has a gradient, none waits.
template <class T>
void DeviceParameters<T>::reset_rows(cudaStream_t stream) {
  history_.made = history_.finished = 0;
  for (ExpertRows& experts : experts_) {
    experts.written.zero(stream);
    experts.updated.zero(stream);
  }
}

namespace {

/// What is tracked of one parameter; rows is nullptr where nothing is.
struct Tracked {
  ExpertRows* rows = nullptr;
  bool computed = false;
};

Tracked find(std::deque<ExpertRows>& all, const Parameter* parameter) {
  for (ExpertRows& rows : all) {
    for (const Parameter* p : rows.scored) {
      if (p == parameter) return {&rows, false};
    }
    for (const Parameter* p : rows.computed) {
      if (p == parameter) return {&rows, true};
    }
  }
  return {};
}

}  // namespace

template <class T>
const ParameterTiles& DeviceParameters<T>::tiles(cudaStream_t stream) {
  constexpr int64_t kMost = ParameterTiles::kElements;
  if (tiles_.replicated + tiles_.by_expert > 0 || size_ == 0) return tiles_;
  std::vector<ParameterTile> tiles;
  for (std::size_t i = 0; i < order_.size(); ++i) {
    const Segment& s = segments_[i];
    const Tracked tracked = find(experts_, order_[i]);
    const int64_t row_size = tracked.rows != nullptr ? order_[i]->row_size() : s.count;
    const int64_t step = row_size < kMost ? kMost / row_size * row_size : row_size;
    for (int64_t row = 0; row < s.count; row += step) {
      const int64_t end = std::min(s.count, row + step);
      for (int64_t begin = row; begin < end; begin += kMost) {
        ParameterTile tile;
        tile.begin = s.begin + begin;
        tile.count = static_cast<int32_t>(std::min(kMost, end - begin));
        tile.decay = s.decay;
        if (tracked.rows != nullptr) {
          tile.waits = tracked.computed;
          tile.copied = tracked.computed;
          tile.row_size = airmoe::cuda::Divider(std::min(row_size, kMost));
          tile.written = tracked.rows->written.data() + row / row_size;
          tile.updated = tracked.rows->updated.data() + row / row_size;
        }
        tiles.push_back(tile);
      }
    }
    if (order_[i]->sharding == Sharding::replicated) tiles_.replicated = std::ssize(tiles);
  }
  tiles_.by_expert = std::ssize(tiles) - tiles_.replicated;
  tiles_.tile.upload(tiles, stream);
  AIRMOE_CUDA(cudaStreamSynchronize(stream));
  return tiles_;
}

template <class T>
T* DeviceParameters<T>::compute_copies() {
  return std::is_same_v<T, float> ? nullptr : compute_.data();
}

template <class T>
const T* DeviceParameters<T>::compute_all() const {
  if constexpr (std::is_same_v<T, float>) {
    return value_.data();
  } else {
    return compute_.data();
  }
}

template class DeviceParameters<float>;
template class DeviceParameters<__nv_bfloat16>;

}  // namespace airmoe::scheduler::cuda
