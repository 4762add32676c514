#pragma once
// One warp selects the K largest of a token's M keys, in three steps: narrow a bracket around the
// K-th largest by counting, list the positions in ascending order, gates. With jitter it first
// narrows roughly, then draws only for keys that could still be selected, then narrows again.

#include <cstdint>

#include "comm/base/cuda/jitter.cuh"
#include "router/cuda/src/keys.cuh"

namespace airmoe::router::cuda {

/// Where the keys of a token lie. Lane i of its warp owns `blocks` blocks of 32 positions each,
/// from position 32 * blocks * i on; behind M all keys are 0.
struct RowLayout {
  int length;        ///< M
  int blocks;        ///< per lane
  int lane_words;    ///< from one lane's words to the next lane's
  uint32_t inverse;  ///< 2^32 / (32 * blocks), rounded up

  /// `gap`: words between lanes, 4 spreads them over the banks of shared memory.
  __host__ __device__ static RowLayout of(int length, int block_words, int gap) {
    const int blocks = (length + 1023) / 1024;
    return {length, blocks, blocks * block_words + gap,
            static_cast<uint32_t>((uint64_t{1} << 32) / (32u * static_cast<uint32_t>(blocks)) + 1)};
  }
  __host__ __device__ int words() const { return 32 * lane_words; }
  __device__ int lane_of(int position) const {
    return static_cast<int>(__umulhi(static_cast<uint32_t>(position), inverse));
  }
};

/// One token's selection.
struct Selection {
  int active;             ///< K
  const int32_t* expert;  ///< ids of the candidates, for jitter
  uint32_t token;         ///< id of the jitter's draws
  uint32_t codeword;
  uint16_t* position;  ///< out: [K]
  float* gate;         ///< out: [K]
  float* log_sum_exp;  ///< out: one, or nullptr
};

/// Positions that a warp keeps in shared memory; more are done in several rounds. Even.
__host__ __device__ constexpr int list_capacity(int active) {
  const int wanted = (active + active / 4 + 127) / 64 * 64;
  return wanted < 1024 ? wanted : 1024;
}

template <class Keys>
class WarpSelect {
 public:
  /// `words`: the token's keys; `list`: list_capacity(K) positions. Both this warp's own.
  __device__ WarpSelect(const Keys& keys, const RowLayout& layout, uint32_t* words, uint16_t* list,
                        int capacity)
      : keys_(keys),
        layout_(layout),
        words_(words),
        list_(list),
        capacity_(capacity),
        lane_(static_cast<int>(threadIdx.x) & 31),
        mine_(words + lane_ * layout.lane_words) {}

  __device__ void run(const Selection& s, const airmoe::cuda::JitterKey* jitter) {
    start();
    if (jitter != nullptr) {
      narrow(s.active, s.active / 16);
      add_jitter(s, *jitter);
    }
    narrow(s.active, 0);
    write(s);
  }

 private:
  // count(>= low_) = at_low_ >= K > count(>= high_) = at_high_.
  uint32_t low_, high_;
  int at_low_, at_high_;

  // Calls visit(vector of four words) for all words of this lane.
  template <class Visit>
  __device__ __forceinline__ void each_vector(Visit visit) const {
    for (int block = 0; block < layout_.blocks; ++block) {
      const uint4* at = reinterpret_cast<const uint4*>(mine_ + block * Keys::kBlockWords);
#pragma unroll
      for (int i = 0; i < Keys::kBlockWords / 4; ++i) {
        const uint4 v = at[i];  // one load
        visit(v);
      }
    }
  }

  __device__ __forceinline__ int count_at_least(uint32_t threshold) const {
    const uint32_t t = Keys::prepared(threshold);
    uint32_t count = 0, other = 0;
    each_vector([&](uint4 v) {
      count += Keys::at_least(v.x, t) + Keys::at_least(v.y, t);
      other += Keys::at_least(v.z, t) + Keys::at_least(v.w, t);
    });
    return __reduce_add_sync(~0u, Keys::fold(count + other));
  }

  // Bit i: whether position i of a block of this lane is at least the threshold.
  __device__ __forceinline__ uint32_t mask_at_least(int block, uint32_t threshold) const {
    const uint32_t t = Keys::prepared(threshold);
    const uint4* at = reinterpret_cast<const uint4*>(mine_ + block * Keys::kBlockWords);
    uint32_t mask = 0;
#pragma unroll
    for (int i = 0; i < Keys::kBlockWords / 4; ++i) {
      const uint4 v = at[i];
      mask += Keys::at_least(v.x, t) << (4 * i);
      mask += Keys::at_least(v.y, t) << (4 * i + 1);
      mask += Keys::at_least(v.z, t) << (4 * i + 2);
      mask += Keys::at_least(v.w, t) << (4 * i + 3);
    }
    return mask;
  }

  // The bracket of all keys.
  __device__ void start() {
    uint32_t largest = 0, smallest = ~0u;
    each_vector([&](uint4 v) {
      largest =
          Keys::largest(largest, Keys::largest(Keys::largest(v.x, v.y), Keys::largest(v.z, v.w)));
      smallest = Keys::smallest(smallest,
                                Keys::smallest(Keys::smallest(v.x, v.y), Keys::smallest(v.z, v.w)));
    });
    high_ = __reduce_max_sync(~0u, Keys::fold_largest(largest)) + 1;
    at_high_ = 0;
    low_ = max(__reduce_min_sync(~0u, Keys::fold_smallest(smallest)), 1u);
    at_low_ = layout_.length;
  }

  // Narrows until low_ is the K-th largest key or at most K + slack keys are at or above it. The
  // next threshold is where the logarithm of the count would be that of K if it were linear; an end
  // of the bracket that stays weighs less each time, and every fourth step halves the bracket.
  __device__ void narrow(int active, int slack) {
    const float wanted = static_cast<float>(active) - 0.5f;
    float low_weight = 1.0f, high_weight = 1.0f;
    for (int step = 1; high_ - low_ > 1 && at_low_ > active + slack; ++step) {
      const float above = low_weight * __logf(static_cast<float>(at_low_) / wanted);
      const float below = high_weight * __logf(wanted / fmaxf(static_cast<float>(at_high_), 0.5f));
      uint32_t t = keys_.between(low_, high_, above / (above + fmaxf(below, 0.0f)));
      if (step % 4 == 0) t = low_ + (high_ - low_) / 2;
      t = min(max(t, low_ + 1), high_ - 1);
      const int count = count_at_least(t);
      if (count >= active) {
        low_ = t;
        at_low_ = count;
        low_weight = 1.0f;
        high_weight *= 0.5f;
      } else {
        high_ = t;
        at_high_ = count;
        high_weight = 1.0f;
        low_weight *= 0.5f;
      }
    }
  }

  // Sum of x over the lanes before this one.
  __device__ int before(int x) const {
    int sum = x;
#pragma unroll
    for (int step = 1; step < 32; step *= 2) {
      const int other = __shfl_up_sync(~0u, sum, step);
      if (lane_ >= step) sum += other;
    }
    return sum - x;
  }

  // The positions with key >= high, and the first `ties` of those with low <= key < high.
  struct Taken {
    uint32_t low, high;
    int total;
    int offset;  // positions that lanes before this one take
    int quota;   // ties that this lane takes
  };

  __device__ Taken take(uint32_t low, uint32_t high, int ties) const {
    int above = 0, tied = 0;
    for (int block = 0; block < layout_.blocks; ++block) {
      const uint32_t mask = mask_at_least(block, high);
      above += __popc(mask);
      if (ties > 0) tied += __popc(mask_at_least(block, low) & ~mask);
    }
    Taken taken{low, high, 0, before(above), 0};
    if (ties > 0) {
      const int tied_before = min(before(tied), ties);
      taken.quota = min(tied, ties - tied_before);
      taken.offset += tied_before;
    }
    taken.total = __shfl_sync(~0u, taken.offset + above + taken.quota, 31);
    return taken;
  }

  // Lists the taken positions number `from` up to from + capacity, in ascending order.
  __device__ void list(const Taken& taken, int from) const {
    __syncwarp();
    int at = taken.offset - from;
    int quota = taken.quota;
    for (int block = 0; block < layout_.blocks; ++block) {
      uint32_t mask = mask_at_least(block, taken.high);
      if (quota > 0) {
        uint32_t tied = mask_at_least(block, taken.low) & ~mask;
        for (; quota > 0 && tied != 0; --quota) {
          mask |= tied & (0u - tied);
          tied &= tied - 1;
        }
      }
      const int first = (lane_ * layout_.blocks + block) * 32;
      if (taken.total <= capacity_) {
#pragma unroll
        for (int i = 0; i < 32; ++i) {
          if ((mask >> i & 1) != 0) list_[at++] = static_cast<uint16_t>(first + i);
        }
      } else {
        for (; mask != 0; mask &= mask - 1, ++at) {
          if (at >= 0 && at < capacity_) list_[at] = static_cast<uint16_t>(first + __ffs(mask) - 1);
        }
      }
    }
    __syncwarp();
  }

  __device__ uint32_t* block_of(int position) const {
    const int lane = layout_.lane_of(position);
    return words_ + lane * layout_.lane_words +
           (position / 32 - lane * layout_.blocks) * Keys::kBlockWords;
  }
  __device__ float score(int position) const {
    return keys_.value(Keys::get(block_of(position), position & 31));
  }

  // Moves every key that could be among the K largest by its jitter, and makes a new bracket.
  __device__ void add_jitter(const Selection& s, const airmoe::cuda::JitterKey& jitter) {
    const float bound = jitter.stddev * 4.4f * 1.001f;  // kJitterBound
    // K keys end up at or above the new low_, so none that ends up below it is selected.
    const uint32_t low = keys_.lower(low_, bound);
    const Taken taken = take(1, keys_.lower(low, bound), 0);
    for (int from = 0; from < taken.total; from += capacity_) {
      list(taken, from);
      const int count = min(capacity_, taken.total - from);
      for (int i = lane_; i < count; i += 32) {
        const int position = list_[i];
        const float by = airmoe::cuda::jitter(
            jitter, s.token, static_cast<uint32_t>(s.expert[position]), s.codeword);
        uint32_t* block = block_of(position);
        Keys::set(block, position & 31, keys_.moved(Keys::get(block, position & 31), by));
      }
      __syncwarp();
    }
    low_ = low;
    high_ = keys_.higher(high_, bound);
    at_low_ = count_at_least(low_);
    at_high_ = count_at_least(high_);
  }

  template <class Visit>
  __device__ __forceinline__ void each_taken(const Taken& taken, bool listed, Visit visit) const {
    for (int from = 0; from < taken.total; from += capacity_) {
      if (!listed) list(taken, from);
      visit(from, min(capacity_, taken.total - from));
    }
  }

  __device__ void write(const Selection& s) const {
    using Sum = typename Keys::Sum;
    // at_low_ = K: all of them; else low_ is the K-th largest key, and shared by several.
    const bool exact = at_low_ == s.active;
    const Taken taken = exact ? take(low_, low_, 0) : take(low_, high_, s.active - at_high_);
    const bool listed = taken.total <= capacity_;
    if (listed) list(taken, 0);
    float largest = -INFINITY;
    each_taken(taken, listed, [&](int, int count) {
      for (int i = lane_; i < count; i += 32) largest = fmaxf(largest, score(list_[i]));
    });
    for (int step = 16; step > 0; step /= 2) {
      largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, step));
    }
    Sum sum = 0;
    each_taken(taken, listed, [&](int, int count) {
      for (int i = lane_; i < count; i += 32) {
        sum += Keys::term(Keys::exponential(score(list_[i]) - largest));
      }
    });
    for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(~0u, sum, step);
    const float inverse = static_cast<float>(Sum(1) / sum);
    if (s.log_sum_exp != nullptr && lane_ == 0) {
      *s.log_sum_exp = largest + logf(static_cast<float>(sum));
    }
    each_taken(taken, listed, [&](int from, int count) {
      const auto gate = [&](int position) {
        return Keys::exponential(score(position) - largest) * inverse;
      };
      if (s.active % 2 == 0) {  // so are `from` and `count`: two at a time
        for (int i = 2 * lane_; i < count; i += 64) {
          const ushort2 two = *reinterpret_cast<const ushort2*>(list_ + i);
          *reinterpret_cast<ushort2*>(s.position + from + i) = two;
          *reinterpret_cast<float2*>(s.gate + from + i) = make_float2(gate(two.x), gate(two.y));
        }
      } else {
        for (int i = lane_; i < count; i += 32) {
          s.position[from + i] = list_[i];
          s.gate[from + i] = gate(list_[i]);
        }
      }
    });
  }

  const Keys keys_;
  const RowLayout layout_;
  uint32_t* const words_;
  uint16_t* const list_;
  const int capacity_;
  const int lane_;
  uint32_t* const mine_;
};

}  // namespace airmoe::router::cuda
