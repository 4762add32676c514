// all_reduce of the UCX backend: short arrays are gathered everywhere; of long ones each rank
// reduces a part, in rank order for floating point (ordered_reduce.hpp).

#include <algorithm>

#include "comm/base/error.hpp"
#include "comm/base/partition.hpp"
#include "comm/src/ordered_reduce.hpp"
#include "comm/src/ucx_communicator.hpp"

namespace airmoe::comm {
namespace {

// Sums wrap. Signed integers are added as unsigned ones, which gives the same bits.
template <class T>
void reduce_integers(Reduction op, const std::byte* parts, int num_parts, int64_t count,
                     std::byte* out) {
  using Unsigned = std::make_unsigned_t<T>;
  const T* in = reinterpret_cast<const T*>(parts);
  T* result = reinterpret_cast<T*>(out);
  for (int64_t i = 0; i < count; ++i) {
    T value = in[i];
    for (int p = 1; p < num_parts; ++p) {
      const T next = in[p * count + i];
      if (op == Reduction::sum) {
        value = static_cast<T>(
            static_cast<Unsigned>(static_cast<Unsigned>(value) + static_cast<Unsigned>(next)));
      } else if (op == Reduction::max ? next > value : next < value) {
        value = next;
      }
    }
    result[i] = value;
  }
}

void reduce_parts(DType type, Reduction op, const std::byte* parts, int num_parts, int64_t count,
                  std::byte* out) {
  switch (type) {
    case DType::u8:
      return reduce_integers<uint8_t>(op, parts, num_parts, count, out);
    case DType::i32:
      return reduce_integers<int32_t>(op, parts, num_parts, count, out);
    case DType::u32:
      return reduce_integers<uint32_t>(op, parts, num_parts, count, out);
    case DType::i64:
      return reduce_integers<int64_t>(op, parts, num_parts, count, out);
    case DType::u64:
      return reduce_integers<uint64_t>(op, parts, num_parts, count, out);
    case DType::f32:
    case DType::f64:
      return ordered_reduce::reduce_parts(type, op, parts, num_parts, count, out);
  }
}

}  // namespace

void UcxCommunicator::do_all_reduce(void* data, int64_t count, DType type, Reduction op) {
  if (size() == 1 || count == 0) return;
  auto* bytes = static_cast<std::byte*>(data);
  const int64_t unit = size_of(type);
  if (count * unit <= ordered_reduce::kShortBytes) {
    scratch_.ensure(size() * count * unit);
    part_counts_.assign(static_cast<std::size_t>(size()), count * unit);
    set_offsets(part_counts_, 1);
    all_gather_parts({bytes, static_cast<std::size_t>(count * unit)}, scratch_.span(),
                     "all_reduce");
    return reduce_parts(type, op, scratch_.data(), size(), count, bytes);
  }
  const int64_t block = ordered_reduce::kBlockBytes / unit;
  for (int64_t begin = 0; begin < count; begin += block) {
    const BlockPartition parts{std::min(block, count - begin), size()};
    const Bytes all(bytes + begin * unit, static_cast<std::size_t>(parts.total * unit));
    const int64_t mine = parts.size(rank());
    part_counts_.resize(static_cast<std::size_t>(size()));
    // Part p to rank p.
    clear_messages();
    for (int r = 0; r < size(); ++r) part_counts_[r] = parts.size(r);
    add_sends(all, part_counts_, unit);
    const Bytes my_part = part(all, rank());
    scratch_.ensure(size() * mine * unit);
    std::fill(part_counts_.begin(), part_counts_.end(), mine);
    add_recvs(scratch_.span(), part_counts_, unit);
    run_exchange("all_reduce");
    reduce_parts(type, op, scratch_.data(), size(), mine, my_part.data());
    // Its result to all. Each rank has its own part already.
    clear_messages();
    for (int r = 0; r < size(); ++r) part_counts_[r] = parts.size(r);
    add_recvs(all, part_counts_, unit);
    std::erase_if(recvs_, [this](const ByteRecv& r) { return r.peer == rank(); });
    for (int i = 1; i < size() && mine > 0; ++i) sends_.push_back({(rank() + i) % size(), my_part});
    run_exchange("all_reduce");
  }
}

}  // namespace airmoe::comm
