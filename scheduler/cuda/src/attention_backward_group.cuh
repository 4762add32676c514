#pragma once
// The backward of causal attention on Hopper: what a warp group does with its 64 rows of a tile.

#include "scheduler/cuda/src/attention_backward_plan.cuh"
#include "scheduler/cuda/src/attention_softmax.cuh"

namespace airmoe::scheduler::cuda::attention {

#if defined(AIRMOE_HAS_WGMMA)

template <class P>
using Products = float[P::kOthers / 8][4];
template <class P>
using Packed = uint32_t[P::kOthers / 16][4];
template <class P>
using Kept = uint32_t[P::kDim / 16][4];
template <class P>
using Sums = float[P::kDim / 8][4];

template <int kCount>
__device__ __forceinline__ void pack(uint32_t (&a)[kCount / 2][4],
                                     const float (&products)[kCount][4]) {
#pragma unroll
  for (int i = 0; i < kCount / 2; ++i) as_a(a[i], products[2 * i], products[2 * i + 1]);
}
template <int kCount>
__device__ __forceinline__ void clear(float (&sums)[kCount][4]) {
#pragma unroll
  for (int n = 0; n < kCount; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) sums[n][i] = 0.0f;
  }
}

/// A warp group of a block.
template <class P>
struct Group {
  const BackwardMatrices& m;
  const Inputs<Bf16>& in;
  const Gradients<Bf16>& g;
  const Shared<P>& at;
  int group, lane, warp_row;  // warp_row: the first row of this thread in the group's 64
  Ring<P::kStages> ring;

  __device__ Group(const BackwardMatrices& m_, const Inputs<Bf16>& in_, const Gradients<Bf16>& g_,
                   const Shared<P>& at_)
      : m(m_),
        in(in_),
        g(g_),
        at(at_),
        group(group_of_thread()),
        lane(threadIdx.x % 32),
        warp_row(threadIdx.x % kGroupThreads / 32 * 16 + lane / 4) {}

  __device__ __forceinline__ void await_stage() const {
    airmoe::cuda::await_barrier(at.there(ring.stage), ring.parity);
  }
  __device__ __forceinline__ void leave(int stage) const {
    if (lane == 0) airmoe::cuda::arrive(at.free(stage));
  }
  /// Begins both products of the own tiles with those of this stage, each a group.
  __device__ __forceinline__ void begin_stage(Products<P>& p, Products<P>& d_p) const {
    airmoe::cuda::begin_products();
    multiply_tiles<P::kDim, P::kRows, P::kOthers>(p, at.own(0), 64 * group,
                                                  at.other(ring.stage, 0));
    airmoe::cuda::commit_products();
    multiply_tiles<P::kDim, P::kRows, P::kOthers>(d_p, at.own(1), 64 * group,
                                                  at.other(ring.stage, 1));
    airmoe::cuda::commit_products();
  }
  /// The same with the own tiles in registers.
  __device__ __forceinline__ void begin_stage(Products<P>& p, Products<P>& d_p,
                                              const Kept<P>& first, const Kept<P>& second) const {
    airmoe::cuda::begin_products();
    multiply_tiles<P::kDim, P::kOthers>(p, first, at.other(ring.stage, 0));
    airmoe::cuda::commit_products();
    multiply_tiles<P::kDim, P::kOthers>(d_p, second, at.other(ring.stage, 1));
    airmoe::cuda::commit_products();
  }
  __device__ __forceinline__ void add(Sums<P>& sums, const Packed<P>& weights, int which) const {
    airmoe::cuda::begin_products();
    add_rows<P::kDim, P::kOthers>(sums, weights, at.other(ring.stage, which));
    airmoe::cuda::commit_products();
  }
  /// The own rows' results, through the own tile `which`, which nobody needs any more.
  __device__ __forceinline__ void put(const Sums<P>& sums, float factor, int which) const {
    put_rows<P::kDim, P::kRows>(sums, factor, at.data + which * P::Own::kBytes, 64 * group);
  }

  __device__ __forceinline__ void queries(const Work<P>& work) {
    const int begin = work.begin + 64 * group, row = begin + warp_row;
    const int steps = min(work.steps_per_head, (begin + 63) / P::kOthers + 1);
    const float factor = in.scale * kLog2E;
    float2 terms[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int r = row + 8 * half;
      terms[half] =
          r < in.context ? terms_of(in, g, work.sequence, work.head)[r] : make_float2(0.0f, 0.0f);
    }
    Products<P> p, d_p;
    Packed<P> d_s;
    Sums<P> d_q;
    Kept<P> q, d_out;
    if constexpr (P::kKeeps) {
      load_own<P::kDim, P::kRows>(q, at.own(0), 64 * group);
      load_own<P::kDim, P::kRows>(d_out, at.own(1), 64 * group);
    }
    const auto begin_step = [&] {
      if constexpr (P::kKeeps) {
        begin_stage(p, d_p, q, d_out);
      } else {
        begin_stage(p, d_p);
      }
    };
    clear(d_q);
    airmoe::cuda::pin(d_q);
    await_stage();
    begin_step();
    int last = -1;  // the stage before
    for (int step = 0;;) {
      airmoe::cuda::wait_products<1>();
      airmoe::cuda::pin(p);
      airmoe::cuda::pin(d_q);
      if (last >= 0) leave(last);
      const int key = step * P::kOthers;
      if (key + P::kOthers - 1 > begin) mask(p, key + 2 * (lane % 4), row);
#pragma unroll
      for (int n = 0; n < P::kOthers / 8; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          p[n][i] = power_of_two(fmaf(p[n][i], factor, -terms[i / 2].x));
        }
      }
      airmoe::cuda::wait_products<0>();
      airmoe::cuda::pin(d_p);
#pragma unroll
      for (int n = 0; n < P::kOthers / 8; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) p[n][i] *= d_p[n][i] - terms[i / 2].y;
      }
      pack(d_s, p);
      add(d_q, d_s, 0);
      last = ring.stage;
      ring.advance();
      if (++step == steps) break;
      await_stage();
      begin_step();
    }
    airmoe::cuda::wait_products<0>();
    airmoe::cuda::pin(d_q);
    leave(last);
    for (int step = steps; step < work.steps_per_head; ++step, ring.advance()) {
      await_stage();
      leave(ring.stage);
    }
    put(d_q, in.scale, 0);
    finish(m.d_q, m.d_q, false, work);
  }

  __device__ __forceinline__ void keys(const Work<P>& work) {
    const int begin = work.begin + 64 * group;
    const float factor = in.scale * kLog2E;
    Products<P> p, d_p;
    Packed<P> weights, d_s;
    Sums<P> d_k, d_v;
    clear(d_k);
    clear(d_v);
    airmoe::cuda::pin(d_k);
    airmoe::cuda::pin(d_v);
    // The first steps of each head are of queries that see only keys of the groups before.
    const int unseen = min(64 * group / P::kOthers, work.steps_per_head);
    int head = 0, step = 0, last = -1;
    const auto find_step = [&] {
      for (;;) {
        if (step == work.steps_per_head) step = 0, ++head;
        if (head == work.heads) return false;
        if (step >= unseen) return true;
        await_stage();
        leave(ring.stage);
        ring.advance();
        ++step;
      }
    };
    if (find_step()) {
      await_stage();
      begin_stage(p, d_p);
      for (;;) {
        const float4* terms =
            reinterpret_cast<const float4*>(at.data + at.terms_at(ring.stage)) + lane % 4;
        airmoe::cuda::wait_products<1>();
        airmoe::cuda::pin(p);
        airmoe::cuda::pin(d_k);
        airmoe::cuda::pin(d_v);
        if (last >= 0) leave(last);
        const int row = (work.first_step + step) * P::kOthers;
        if (row < begin + 63) {
          const int first = begin + warp_row - row - 2 * (lane % 4);
#pragma unroll
          for (int n = 0; n < P::kOthers / 8; ++n) {
#pragma unroll
            for (int i = 0; i < 4; ++i) {
              if (first + 8 * (i / 2) > 8 * n + i % 2) p[n][i] = -INFINITY;
            }
          }
        }
#pragma unroll
        for (int n = 0; n < P::kOthers / 8; ++n) {
          const float4 t = terms[4 * n];
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            p[n][i] = power_of_two(fmaf(p[n][i], factor, i % 2 == 0 ? -t.x : -t.z));
          }
        }
        pack(weights, p);
        add(d_v, weights, 1);
        airmoe::cuda::wait_products<1>();
        airmoe::cuda::pin(d_p);
#pragma unroll
        for (int n = 0; n < P::kOthers / 8; ++n) {
          const float4 t = terms[4 * n];
#pragma unroll
          for (int i = 0; i < 4; ++i) p[n][i] *= d_p[n][i] - (i % 2 == 0 ? t.y : t.w);
        }
        pack(d_s, p);
        add(d_k, d_s, 0);
        last = ring.stage;
        ring.advance();
        ++step;
        if (!find_step()) break;
        // Where sums are wide, the registers of what was added are needed.
        if constexpr (P::kDim > 64) airmoe::cuda::wait_products<0>();
        await_stage();
        begin_stage(p, d_p);
      }
    }
    airmoe::cuda::wait_products<0>();
    airmoe::cuda::pin(d_k);
    airmoe::cuda::pin(d_v);
    if (last >= 0) leave(last);
    if (g.parts == 1) {
      put(d_k, in.scale, 0);
      put(d_v, 1.0f, 1);
    } else {
      const PartialRows to(in, g, work.head, work.part,
                           static_cast<int64_t>(work.sequence) * in.context + begin);
      const int valid = in.context - begin;
      store_partial(d_k, in.scale, to.d_k, to.ld, warp_row, valid, in.head_dim);
      store_partial(d_v, 1.0f, to.d_v, to.ld, warp_row, valid, in.head_dim);
    }
    finish(m.d_k, m.d_v, true, work);
  }

  /// When all of the group are done: results leave, and the own tiles are free.
  __device__ __forceinline__ void finish(const CUtensorMap& first, const CUtensorMap& second,
                                         bool two, const Work<P>& work) const {
    meet(1 + group, kGroupThreads);
    if (threadIdx.x % kGroupThreads != 0) return;
    const int begin = work.begin + 64 * group;
    if (!two || g.parts == 1) {
      P::Own::store(first, at.own(0), 64 * group, work.head, begin, work.sequence);
      if (two) P::Own::store(second, at.own(1), 64 * group, work.head, begin, work.sequence);
      finish_stores();
    }
    airmoe::cuda::arrive(at.own_free());
  }
};

#endif

}  // namespace airmoe::scheduler::cuda::attention
