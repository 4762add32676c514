#pragma once
// The backward of causal attention on Hopper: which tiles there are, where they lie in shared
// memory, and the thread that brings them.

#include "scheduler/cuda/src/attention_gradients.cuh"
#include "scheduler/cuda/src/attention_pipeline.cuh"
#include "scheduler/cuda/src/block_order.hpp"

namespace airmoe::scheduler::cuda::attention {

using Bf16 = __nv_bfloat16;

template <int kDim_, int kStages_>
struct BackwardPlan {
  static constexpr int kDim = kDim_;
  static constexpr int kGroups = 2;
  static constexpr int kStages = kStages_;
  static constexpr bool kKeeps = kDim <= 64;  // own queries stay in registers
  static constexpr int kRows = kGroups * 64;  // of a tile
  static constexpr int kOthers = 64;          // rows of the other kind per step
  static constexpr int kThreads = (kGroups + 1) * kGroupThreads;
  // Of a thread, where the producer has kProducerRegisters: what the launch gives, dealt anew.
  static constexpr int kRegisters = 240;
  static constexpr int kProducerRegisters = 24;
  using Own = Tile<kDim, kRows>;
  using Other = Tile<kDim, kOthers>;
  static constexpr int kTermBytes = kOthers * static_cast<int>(sizeof(float2));
  // From a multiple of 1,024 on: the own two tiles, stages of two tiles of others, the others' row
  // terms, barriers, the number of the tile at work.
  static constexpr int kStagesAt = 2 * Own::kBytes;
  static constexpr int kTermsAt = kStagesAt + kStages * 2 * Other::kBytes;
  static constexpr int kBarriersAt = kTermsAt + kStages * kTermBytes;
  static constexpr int kTicketAt = kBarriersAt + (2 + 2 * kStages) * 8;
  static constexpr int kBytes = kTicketAt + 8 + 1024;
};

struct BackwardMatrices {
  CUtensorMap q, k, v, d_out, d_q, d_k, d_v;
};
#if defined(AIRMOE_HAS_WGMMA)

template <class P>
struct Shared {
  unsigned char* data;
  uint32_t base;

  __device__ explicit Shared(unsigned char* shared)
      : data(shared + -airmoe::cuda::shared_address(shared) % 1024),
        base(airmoe::cuda::shared_address(data)) {}
  __device__ uint32_t own(int which) const { return base + which * P::Own::kBytes; }
  __device__ uint32_t other(int stage, int which) const {
    return base + P::kStagesAt + (2 * stage + which) * P::Other::kBytes;
  }
  __device__ uint32_t terms_at(int stage) const { return P::kTermsAt + stage * P::kTermBytes; }
  __device__ uint32_t barrier(int i) const { return base + P::kBarriersAt + i * 8; }
  __device__ uint32_t own_there() const { return barrier(0); }
  __device__ uint32_t own_free() const { return barrier(1); }
  __device__ uint32_t there(int stage) const { return barrier(2 + 2 * stage); }
  __device__ uint32_t free(int stage) const { return barrier(3 + 2 * stage); }
  __device__ volatile int& ticket() const {
    return *reinterpret_cast<volatile int*>(data + P::kTicketAt);
  }
};

/// A tile of queries of one head, or of keys and the query heads of one part that read them.
template <class P>
struct Work {
  bool of_keys;
  int sequence, head, begin;           // a query head or a key head
  int part = 0, heads = 1;             // of keys: the part, and its query heads
  int first_head = 0, first_step = 0;  // of keys: others begin there
  int steps_per_head;                  // steps of kOthers rows

  __device__ Work(const Inputs<Bf16>& in, int parts, const BlockOrder& order, int tile) {
    const auto [column, level] = order.place_of(tile);
    const int heads_of_part = in.group / parts;
    const int pair = column / (1 + heads_of_part), which = column % (1 + heads_of_part);
    of_keys = which == 0;
    if (of_keys) {  // earlier queries do not see these keys
      const KeyColumn c(in, parts, pair);
      sequence = c.sequence, head = c.head, part = c.part;
      heads = c.heads, first_head = c.first_head;
      begin = level * P::kRows;
      first_step = begin / P::kOthers;
      steps_per_head = (in.context + P::kOthers - 1) / P::kOthers - first_step;
    } else {
      const int query_column = pair * heads_of_part + which - 1;
      sequence = query_column / in.heads, head = query_column % in.heads;
      begin = (order.levels - 1 - level) * P::kRows;
      steps_per_head = (min(begin + P::kRows, in.context) + P::kOthers - 1) / P::kOthers;
    }
  }
};

/// One thread: the rows of the other kind for one tile, step by step.
template <class P, bool kOfKeys>
__device__ __forceinline__ void produce_steps(const BackwardMatrices& m, const Inputs<Bf16>& in,
                                              const Gradients<Bf16>& g, const Work<P>& work,
                                              const Shared<P>& at, Ring<P::kStages>& ring) {
  for (int i = 0; i < work.heads; ++i) {
    const int head = kOfKeys ? work.first_head + i : work.head / in.group;
    int row = work.first_step * P::kOthers;
    for (int step = 0; step < work.steps_per_head; ++step, row += P::kOthers, ring.advance()) {
      const uint32_t there = at.there(ring.stage), tile = at.other(ring.stage, 0);
      airmoe::cuda::await_barrier(at.free(ring.stage), ring.parity ^ 1);
      airmoe::cuda::expect_bytes(there, 2 * P::Other::kBytes + (kOfKeys ? P::kTermBytes : 0));
      P::Other::load(tile, kOfKeys ? m.q : m.k, there, head, row, work.sequence);
      P::Other::load(tile + P::Other::kBytes, kOfKeys ? m.d_out : m.v, there, head, row,
                     work.sequence);
      if (kOfKeys) {
        airmoe::cuda::copy_bytes(at.base + at.terms_at(ring.stage),
                                 terms_of(in, g, work.sequence, head) + row, P::kTermBytes, there);
      }
    }
  }
}

/// One thread: everything that the groups of this block need, in their order.
template <class P>
__device__ __forceinline__ void produce(const BackwardMatrices& m, const Inputs<Bf16>& in,
                                        const Gradients<Bf16>& g, const BlockOrder& order,
                                        const Shared<P>& at) {
  Ring<P::kStages> ring;
  uint32_t parity = 1;
  for (int tile = blockIdx.x; tile < order.tiles(); tile = take_ticket(order, g.tickets)) {
    const Work<P> work(in, g.parts, order, tile);
    const uint32_t there = at.own_there();
    airmoe::cuda::await_barrier(at.own_free(), parity);
    parity ^= 1;
    at.ticket() = tile;
    airmoe::cuda::expect_bytes(there, 2 * P::Own::kBytes);
    const auto load_own = [&](int which, const CUtensorMap& map) {
      P::Own::load(at.own(which), map, there, work.head, work.begin, work.sequence);
    };
    if (work.of_keys) {
      load_own(0, m.k);
      load_own(1, m.v);
      produce_steps<P, true>(m, in, g, work, at, ring);
    } else {
      load_own(0, m.q);
      load_own(1, m.d_out);
      produce_steps<P, false>(m, in, g, work, at, ring);
    }
  }
  airmoe::cuda::await_barrier(at.own_free(), parity);
  at.ticket() = -1;
  airmoe::cuda::arrive(at.own_there());
}

#endif

}  // namespace airmoe::scheduler::cuda::attention
