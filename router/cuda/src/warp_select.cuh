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
  int gap;           ///< words between two lanes' blocks
  uint32_t inverse;  ///< 2^32 / (32 * blocks), rounded up

  /// A gap of 4 spreads the lanes over the banks of shared memory.
  static RowLayout of(int64_t length, int gap) {
    const auto blocks = static_cast<uint32_t>((length + 1023) / 1024);
    return {static_cast<int>(length), static_cast<int>(blocks), gap,
            static_cast<uint32_t>((uint64_t{1} << 32) / (32 * blocks) + 1)};
  }
  __host__ __device__ int words(int block_words) const { return 32 * (blocks * block_words + gap); }
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

/// Positions that a warp lists at once: K and some that jitter may lift, but 512 to 1,024.
__host__ __device__ constexpr int list_capacity(int active) {
  const int wanted = (active + active / 4 + 127) / 64 * 64;
  return wanted < 512 ? 512 : wanted < 1024 ? wanted : 1024;
}

template <class Keys>
class WarpSelect {
 public:
  /// `words`: the token's keys; `list`: `capacity` positions. Both this warp's own.
  __device__ WarpSelect(const Keys& keys, const RowLayout& layout, uint32_t* words, uint16_t* list,
                        int capacity)
      : keys_(keys),
        layout_(layout),
        words_(words),
        list_(list),
        capacity_(capacity),
        lane_(static_cast<int>(threadIdx.x) & 31),
        mine_(words + lane_ * (layout.blocks * Keys::kBlockWords + layout.gap)) {}

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
  static constexpr int kRound = 512;  // pairs whose gates are in registers, at most a list
  static constexpr int kPairs = kRound / 64;

  // count(>= low_) = at_low_ >= K > count(>= high_) = at_high_.
  uint32_t low_, high_;
  int at_low_, at_high_;
  uint32_t largest_;

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

  __device__ __forceinline__ uint32_t largest_key() const {
    uint32_t largest = 0;
    each_vector([&](uint4 v) {
      largest =
          Keys::largest(largest, Keys::largest(Keys::largest(v.x, v.y), Keys::largest(v.z, v.w)));
    });
    return __reduce_max_sync(~0u, Keys::fold_largest(largest));
  }
  __device__ __forceinline__ uint32_t smallest_key() const {
    uint32_t smallest = ~0u;
    each_vector([&](uint4 v) {
      smallest = Keys::smallest(smallest,
                                Keys::smallest(Keys::smallest(v.x, v.y), Keys::smallest(v.z, v.w)));
    });
    return __reduce_min_sync(~0u, Keys::fold_smallest(smallest));
  }

  // The bracket of all keys.
  __device__ void start() {
    largest_ = largest_key();
    high_ = largest_ + 1;
    at_high_ = 0;
    low_ = max(smallest_key(), 1u);
    at_low_ = layout_.length;
  }

  // Narrows until low_ is the K-th largest key or at most K + slack keys are at or above it. The
  // next threshold is where the logarithm of the count would be that of K if it were linear; an end
  // of the bracket that stays for long weighs less each time. About 8 counts; for data that defy
  // this every other count halves the bracket from the 17th on.
  __device__ void narrow(int active, int slack) {
    const float wanted = static_cast<float>(active) - 0.5f;
    float low_weight = 1.0f, high_weight = 1.0f;
    float above = __logf(static_cast<float>(at_low_) / wanted);
    float below = __logf(wanted / fmaxf(static_cast<float>(at_high_), 0.5f));
    bool low_moved = false, high_moved = false;
    for (int step = 1; high_ - low_ > 1 && at_low_ > active + slack; ++step) {
      uint32_t t = keys_.between(
          low_, high_, __fdividef(above * low_weight, above * low_weight + below * high_weight));
      if (step > 16 && step % 2 == 0) t = low_ + (high_ - low_) / 2;
      t = min(max(t, low_ + 1), high_ - 1);
      const int count = count_at_least(t);
      const float distance = __logf(fmaxf(static_cast<float>(count), 0.5f) / wanted);
      if (count >= active) {
        low_ = t;
        at_low_ = count;
        above = distance;
        low_weight = 1.0f;
        high_weight *= low_moved ? 0.5f : 1.0f;
      } else {
        high_ = t;
        at_high_ = count;
        below = -distance;
        high_weight = 1.0f;
        low_weight *= high_moved ? 0.5f : 1.0f;
      }
      low_moved = count >= active;
      high_moved = !low_moved;
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
      for (; mask != 0; mask &= mask - 1, ++at) {
        if (static_cast<unsigned>(at) < static_cast<unsigned>(capacity_)) {
          list_[at] = static_cast<uint16_t>(first + __ffs(static_cast<int>(mask)) - 1);
        }
      }
    }
    __syncwarp();
  }

  __device__ uint32_t* words_of(int position) const {
    return words_ + layout_.lane_of(position) * layout_.gap;
  }
  __device__ void draw(const Selection& s, const airmoe::cuda::JitterKey& jitter,
                       int position) const {
    const float by = airmoe::cuda::jitter(jitter, s.token,
                                          static_cast<uint32_t>(s.expert[position]), s.codeword);
    uint32_t* words = words_of(position);
    Keys::set(words, position, keys_.moved(Keys::get(words, position), by));
  }

  // Moves every key that could be among the K largest by its jitter, and makes a new bracket.
  __device__ void add_jitter(const Selection& s, const airmoe::cuda::JitterKey& jitter) {
    const float bound = jitter.stddev * 4.4f * 1.001f;  // kJitterBound
    // K keys end up at or above the new low_, so none that ends up below it is selected.
    const uint32_t low = keys_.lower(low_, bound);
    const uint32_t floor = keys_.lower(low, bound);
    const Taken taken = take(1, floor, 0);
    if (taken.total <= capacity_) {
      list(taken, 0);
      for (int i = lane_; i < taken.total; i += 32) draw(s, jitter, list_[i]);
    } else {
      for (int i = lane_; i < layout_.length; i += 32) {
        if (Keys::get(words_of(i), i) >= floor) draw(s, jitter, i);
      }
    }
    __syncwarp();
    low_ = low;
    high_ = keys_.higher(high_, bound);
    at_low_ = count_at_least(low_);
    at_high_ = count_at_least(high_);
    largest_ = largest_key();
  }

  // exp(score - largest) of the listed entries 2 * lane + 64 * i and the one behind, 0 behind
  // `count`; returns the lane's sum.
  __device__ __forceinline__ typename Keys::Sum exponentiate(int count, float2 (&e)[kPairs]) const {
    const float largest = keys_.value(largest_);
    const auto of = [&](int position) {
      return Keys::exponential(keys_.value(Keys::get(words_of(position), position)) - largest);
    };
    typename Keys::Sum sum = 0;
#pragma unroll
    for (int i = 0; i < kPairs; ++i) {
      e[i] = make_float2(0.0f, 0.0f);
      if (64 * i >= count) continue;
      const int at = 2 * lane_ + 64 * i;
      if (at < count) e[i].x = of(list_[at]);
      if (at + 1 < count) e[i].y = of(list_[at + 1]);
      sum += Keys::term(e[i].x) + Keys::term(e[i].y);
    }
    return sum;
  }

  // Positions and gates of the listed entries, which are number `from` and following.
  __device__ __forceinline__ void store(const Selection& s, int from, int count,
                                        const float2 (&e)[kPairs], float scale) const {
    uint16_t* const position = s.position + from;
    float* const gate = s.gate + from;
#pragma unroll
    for (int i = 0; i < kPairs; ++i) {
      if (64 * i >= count) continue;
      const int at = 2 * lane_ + 64 * i;
      if (s.active % 2 == 0) {  // both aligned for two at a time
        if (at >= count) continue;
        *reinterpret_cast<ushort2*>(position + at) = *reinterpret_cast<const ushort2*>(list_ + at);
        *reinterpret_cast<float2*>(gate + at) = make_float2(e[i].x * scale, e[i].y * scale);
        continue;
      }
      if (at < count) {
        position[at] = list_[at];
        gate[at] = e[i].x * scale;
      }
      if (at + 1 < count) {
        position[at + 1] = list_[at + 1];
        gate[at + 1] = e[i].y * scale;
      }
    }
  }

  __device__ void write(const Selection& s) const {
    using Sum = typename Keys::Sum;
    // at_low_ = K: all of them; else low_ is the K-th largest key, and shared by several.
    const bool exact = at_low_ == s.active;
    const Taken taken = exact ? take(low_, low_, 0) : take(low_, high_, s.active - at_high_);
    float2 e[kPairs];
    Sum sum = 0;
    for (int from = 0; from < s.active; from += kRound) {
      list(taken, from);
      sum += exponentiate(min(kRound, s.active - from), e);
    }
#pragma unroll
    for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(~0u, sum, step);
    const float inverse = static_cast<float>(Sum(1) / sum);
    if (s.log_sum_exp != nullptr && lane_ == 0) {
      *s.log_sum_exp = keys_.value(largest_) + logf(static_cast<float>(sum));
    }
    for (int from = 0; from < s.active; from += kRound) {
      const int count = min(kRound, s.active - from);
      if (s.active > kRound) {
        list(taken, from);
        exponentiate(count, e);
      }
      store(s, from, count, e, inverse);
    }
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
