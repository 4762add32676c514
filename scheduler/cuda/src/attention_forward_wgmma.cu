// Causal attention in bf16 on Hopper. A block has kGroups warp groups of 64 query rows each, which
// share the keys and values that a producer warp brings into a ring of stages. While a group's
// tensor cores multiply one step's probabilities with the values, it computes the softmax of the
// next. Blocks stay and take tile after tile, so that the producer is ahead across tiles.

#include "scheduler/cuda/src/attention_pipeline.cuh"
#include "scheduler/cuda/src/attention_softmax.cuh"
#include "scheduler/cuda/src/block_order.hpp"

namespace airmoe::scheduler::cuda::attention {
template <int kDim_, int kKeys_, int kStages_, bool kTurns_, int kBlocks_>
struct ForwardPlan {
  static constexpr int kDim = kDim_;
  static constexpr int kGroups = 2;
  static constexpr int kKeys = kKeys_;  // per step
  static constexpr int kStages = kStages_;
  static constexpr bool kTurns = kTurns_;  // groups take turns with the tensor cores
  static constexpr int kRows = kGroups * 64;
  static constexpr int kBlocks = kBlocks_;  // on a multiprocessor
  static constexpr int kOwns = 2;           // tiles of queries: at work, and the next
  // Of a thread, where the producer has kProducerRegisters: what the launch gives, dealt anew.
  static constexpr int kRegisters = kBlocks == 2 ? 104 : 240;
  static constexpr int kProducerRegisters = 24;
  static constexpr int kThreads = (kGroups + 1) * kGroupThreads;
  using Own = Tile<kDim, kRows>;
  using Other = Tile<kDim, kKeys>;
  // From a multiple of 1,024 on: queries, stages of keys, of values, barriers, the numbers of the
  // tiles.
  static constexpr int kKeysAt = kOwns * Own::kBytes;
  static constexpr int kValuesAt = kKeysAt + kStages * Other::kBytes;
  static constexpr int kBarriersAt = kValuesAt + kStages * Other::kBytes;
  static constexpr int kTicketsAt = kBarriersAt + (2 * kOwns + 4 * kStages) * 8;
  static constexpr int kBytes = kTicketsAt + kOwns * 4 + 1024;
};

namespace {

struct Matrices {
  CUtensorMap q, k, v, out;
};

#if defined(AIRMOE_HAS_WGMMA)

template <class P>
struct Shared {
  unsigned char* data;
  uint32_t base;

  __device__ explicit Shared(unsigned char* shared)
      : data(shared + -shared_address(shared) % 1024), base(shared_address(data)) {}
  __device__ uint32_t queries(int own) const { return base + own * P::Own::kBytes; }
  __device__ uint32_t keys(int stage) const { return base + P::kKeysAt + stage * P::Other::kBytes; }
  __device__ uint32_t values(int stage) const {
    return base + P::kValuesAt + stage * P::Other::kBytes;
  }
  __device__ uint32_t barrier(int i) const { return base + P::kBarriersAt + i * 8; }
  __device__ uint32_t queries_there(int own) const { return barrier(2 * own); }
  __device__ uint32_t queries_free(int own) const { return barrier(2 * own + 1); }
  __device__ uint32_t keys_there(int stage) const { return barrier(2 * P::kOwns + 4 * stage); }
  __device__ uint32_t keys_free(int stage) const { return barrier(2 * P::kOwns + 4 * stage + 1); }
  __device__ uint32_t values_there(int stage) const {
    return barrier(2 * P::kOwns + 4 * stage + 2);
  }
  __device__ uint32_t values_free(int stage) const { return barrier(2 * P::kOwns + 4 * stage + 3); }
  __device__ volatile int& tile(int own) const {
    return *reinterpret_cast<volatile int*>(data + P::kTicketsAt + own * 4);
  }
};

/// One tile of rows of one head.
template <class P>
struct Work {
  int sequence, head, begin, steps;

  __device__ Work(const Inputs<Bf16>& in, const BlockOrder& order, int tile) {
    const auto [column, level] = order.place_of(tile);
    sequence = column / in.heads, head = column % in.heads;
    begin = (order.levels - 1 - level) * P::kRows;  // long rows of keys come first
    steps = (min(begin + P::kRows, in.context) + P::kKeys - 1) / P::kKeys;
  }
};

/// One thread: everything that the groups of this block need, in their order.
template <class P>
__device__ __forceinline__ void produce(const Matrices& m, const Inputs<Bf16>& in,
                                        const BlockOrder& order, int* tickets,
                                        const Shared<P>& at) {
  Ring<P::kStages> ring;
  Ring<P::kOwns> own;
  for (int tile = blockIdx.x; tile < order.tiles();
       tile = take_ticket(order, tickets), own.advance()) {
    const Work<P> work(in, order, tile);
    const uint32_t there = at.queries_there(own.stage);
    airmoe::cuda::await_barrier(at.queries_free(own.stage), own.parity ^ 1);
    at.tile(own.stage) = tile;
    airmoe::cuda::expect_bytes(there, P::Own::kBytes);
    P::Own::load(at.queries(own.stage), m.q, there, work.head, work.begin, work.sequence);
    const int kv_head = work.head / in.group;
    for (int step = 0; step < work.steps; ++step, ring.advance()) {
      const int s = ring.stage, key = step * P::kKeys;
      airmoe::cuda::await_barrier(at.keys_free(s), ring.parity ^ 1);
      airmoe::cuda::expect_bytes(at.keys_there(s), P::Other::kBytes);
      P::Other::load(at.keys(s), m.k, at.keys_there(s), kv_head, key, work.sequence);
      airmoe::cuda::await_barrier(at.values_free(s), ring.parity ^ 1);
      airmoe::cuda::expect_bytes(at.values_there(s), P::Other::kBytes);
      P::Other::load(at.values(s), m.v, at.values_there(s), kv_head, key, work.sequence);
    }
  }
  airmoe::cuda::await_barrier(at.queries_free(own.stage), own.parity ^ 1);
  at.tile(own.stage) = -1;
  airmoe::cuda::arrive(at.queries_there(own.stage));
}

template <class P>
__device__ __forceinline__ void consume(const Matrices& m, const Inputs<Bf16>& in,
                                        const BlockOrder& order, const Shared<P>& at,
                                        float* log_sum) {
  constexpr int kDim = P::kDim, kKeys = P::kKeys;
  const int group = group_of_thread(), thread = threadIdx.x % kGroupThreads;
  const int lane = thread % 32;
  const float factor = in.scale * kLog2E;
  float products[kKeys / 8][4], sums[kDim / 8][4], shrink[2];
  uint32_t probabilities[kKeys / 16][4];
  const auto pack = [&] {
#pragma unroll
    for (int i = 0; i < kKeys / 16; ++i) {
      as_a(probabilities[i], products[2 * i], products[2 * i + 1]);
    }
  };
  const auto leave = [&](uint32_t barrier) {
    if (lane == 0) airmoe::cuda::arrive(barrier);
  };
  const auto begin_turn = [&] {
    if constexpr (P::kTurns) meet(1 + group, P::kGroups * kGroupThreads);
  };
  const auto end_turn = [&] {
    if constexpr (P::kTurns) pass(1 + (group + 1) % P::kGroups, P::kGroups * kGroupThreads);
  };
  if (P::kTurns && group == 1) pass(1, P::kGroups * kGroupThreads);

  Ring<P::kStages> ring;  // of the step whose keys are multiplied
  Ring<P::kOwns> own;
  for (;; own.advance()) {
    airmoe::cuda::await_barrier(at.queries_there(own.stage), own.parity);
    const int tile = __shfl_sync(~0u, at.tile(own.stage), 0);
    if (tile < 0) break;
    const Work<P> work(in, order, tile);
    const int begin = work.begin + 64 * group;
    const int row = begin + thread / 32 * 16 + lane / 4;
    // Keys after the group's last row are another group's.
    const int steps = P::kRows <= kKeys ? work.steps : min(work.steps, (begin + 63) / kKeys + 1);
    RunningRow rows[2];
    const auto soften = [&](int step) {
      const int key = step * kKeys;
      if (key + kKeys - 1 > begin) mask(products, key + 2 * (lane % 4), row);
      advance(products, rows, shrink, factor);
    };
#pragma unroll
    for (int n = 0; n < kDim / 8; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) sums[n][i] = 0.0f;
    }

    airmoe::cuda::await_barrier(at.keys_there(ring.stage), ring.parity);
    begin_turn();
    airmoe::cuda::begin_products();
    multiply_tiles<kDim, P::kRows, kKeys>(products, at.queries(own.stage), 64 * group,
                                          at.keys(ring.stage));
    airmoe::cuda::commit_products();
    end_turn();
    airmoe::cuda::wait_products<0>();
    airmoe::cuda::pin(products);
    leave(at.keys_free(ring.stage));
    soften(0);
    pack();
    for (int step = 1; step < steps; ++step) {
      const Ring<P::kStages> last = ring;
      ring.advance();
      airmoe::cuda::await_barrier(at.keys_there(ring.stage), ring.parity);
      airmoe::cuda::pin(sums);
      begin_turn();
      airmoe::cuda::begin_products();
      multiply_tiles<kDim, P::kRows, kKeys>(products, at.queries(own.stage), 64 * group,
                                            at.keys(ring.stage));
      airmoe::cuda::commit_products();
      airmoe::cuda::await_barrier(at.values_there(last.stage), last.parity);
      airmoe::cuda::begin_products();
      add_rows<kDim, kKeys>(sums, probabilities, at.values(last.stage));
      airmoe::cuda::commit_products();
      end_turn();
      airmoe::cuda::wait_products<1>();
      airmoe::cuda::pin(products);
      leave(at.keys_free(ring.stage));
      soften(step);
      airmoe::cuda::wait_products<0>();
      airmoe::cuda::pin(sums);
      leave(at.values_free(last.stage));
      rescale(sums, shrink);
      pack();
    }
    airmoe::cuda::await_barrier(at.values_there(ring.stage), ring.parity);
    airmoe::cuda::pin(sums);
    airmoe::cuda::begin_products();
    add_rows<kDim, kKeys>(sums, probabilities, at.values(ring.stage));
    airmoe::cuda::commit_products();
    airmoe::cuda::wait_products<0>();
    airmoe::cuda::pin(sums);
    leave(at.values_free(ring.stage));
    ring.advance();
    for (int step = steps; step < work.steps; ++step, ring.advance()) {
      airmoe::cuda::await_barrier(at.values_there(ring.stage), ring.parity);
      airmoe::cuda::await_barrier(at.keys_there(ring.stage), ring.parity);
      leave(at.keys_free(ring.stage));
      leave(at.values_free(ring.stage));
    }

    const int64_t column = static_cast<int64_t>(work.sequence) * in.heads + work.head;
    finish_rows(sums, rows, in.scale, log_sum + column * in.context, row, in.context);
    // Through the group's own rows of the queries, which nobody needs any more.
    put_rows<kDim, P::kRows>(sums, 1.0f, at.data + own.stage * P::Own::kBytes, 64 * group);
    meet(1 + P::kGroups + group, kGroupThreads);
    if (thread == 0) {
      P::Own::store(m.out, at.queries(own.stage), 64 * group, work.head, begin, work.sequence);
      finish_stores();
      airmoe::cuda::arrive(at.queries_free(own.stage));
    }
  }
}

#endif

template <class P>
__global__ __launch_bounds__(P::kThreads, P::kBlocks) void forward_kernel(
    const __grid_constant__ Matrices matrices, Inputs<Bf16> in, BlockOrder order, float* log_sum,
    int* tickets) {
#if defined(AIRMOE_HAS_WGMMA)
  extern __shared__ __align__(1024) unsigned char shared[];
  const Shared<P> at(shared);
  if (threadIdx.x == 0) {
    for (int own = 0; own < P::kOwns; ++own) {
      airmoe::cuda::start_barrier(at.queries_there(own), 1);
      airmoe::cuda::start_barrier(at.queries_free(own), P::kGroups);
    }
    for (int stage = 0; stage < P::kStages; ++stage) {
      airmoe::cuda::start_barrier(at.keys_there(stage), 1);
      airmoe::cuda::start_barrier(at.keys_free(stage), 4 * P::kGroups);
      airmoe::cuda::start_barrier(at.values_there(stage), 1);
      airmoe::cuda::start_barrier(at.values_free(stage), 4 * P::kGroups);
    }
    airmoe::cuda::publish_barriers();
  }
  __syncthreads();
  if (group_of_thread() == P::kGroups) {
    airmoe::cuda::keep_registers<P::kProducerRegisters>();
    if (threadIdx.x % kGroupThreads == 0) produce<P>(matrices, in, order, tickets, at);
  } else {
    airmoe::cuda::take_registers<P::kRegisters>();
    consume<P>(matrices, in, order, at, log_sum);
  }
#endif
}

template <class P>
void launch(const Inputs<Bf16>& in, int64_t sequences, Bf16* out, float* log_sum, int* tickets,
            cudaStream_t stream) {
  const auto kernel = forward_kernel<P>;
  AIRMOE_CUDA(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, P::kBytes));
  const auto map = [&](const Bf16* data, int64_t ld, int heads) {
    return map_of_heads<P::kDim>(data, ld, sequences, in.context, heads, in.head_dim);
  };
  const Matrices matrices{map(in.q, in.ld_q, in.heads), map(in.k, in.ld_k, in.kv_heads),
                          map(in.v, in.ld_v, in.kv_heads),
                          map(out, static_cast<int64_t>(in.heads) * in.head_dim, in.heads)};
  const BlockOrder order(sequences * in.heads, (in.context + P::kRows - 1) / P::kRows);
  const int blocks =
      std::min(order.tiles(), P::kBlocks * airmoe::cuda::device_properties().multiprocessors);
  kernel<<<static_cast<unsigned>(blocks), P::kThreads, P::kBytes, stream>>>(matrices, in, order,
                                                                            log_sum, tickets);
  AIRMOE_CUDA_LAUNCHED();
}

}  // namespace

void launch_forward_wgmma(const Inputs<Bf16>& in, int64_t sequences, Bf16* out, float* log_sum,
                          int* tickets, cudaStream_t stream) {
  if (in.head_dim <= 32) {
    launch<ForwardPlan<32, 64, 4, false, 2>>(in, sequences, out, log_sum, tickets, stream);
  } else if (in.head_dim <= 64) {
    launch<ForwardPlan<64, 128, 2, false, 1>>(in, sequences, out, log_sum, tickets, stream);
  } else {
    launch<ForwardPlan<128, 128, 2, true, 1>>(in, sequences, out, log_sum, tickets, stream);
  }
}

}  // namespace airmoe::scheduler::cuda::attention
