// all_reduce of the MPI backend: integers by MPI, floating point in rank order.

#include <algorithm>
#include <cstring>

#include "comm/base/error.hpp"
#include "comm/base/partition.hpp"
#include "comm/src/mpi_communicator.hpp"
#include "comm/src/ordered_reduce.hpp"

namespace airmoe::comm {
namespace {

MPI_Datatype mpi_type(DType type) {
  switch (type) {
    case DType::u8:
      return MPI_UINT8_T;
    case DType::i32:
      return MPI_INT32_T;
    case DType::u32:
      return MPI_UINT32_T;
    case DType::i64:
      return MPI_INT64_T;
    case DType::u64:
      return MPI_UINT64_T;
    case DType::f32:
    case DType::f64:
      break;
  }
  fail(ExitCode::failure, "MPI does not reduce {} in rank order", name_of(type));
}

MPI_Op mpi_op(Reduction op) {
  switch (op) {
    case Reduction::sum:
      return MPI_SUM;
    case Reduction::max:
      return MPI_MAX;
    case Reduction::min:
      return MPI_MIN;
  }
  fail(ExitCode::failure, "unknown reduction {}", static_cast<int>(op));
}

}  // namespace

void MpiCommunicator::do_all_reduce(void* data, int64_t count, DType type, Reduction op) {
  if (size_ == 1 || count == 0) return;
  auto* bytes = static_cast<std::byte*>(data);
  if (ordered_reduce::applies_to(type)) return all_reduce_in_order(bytes, count, type, op);
  all_reduce_integers(bytes, count, type, op);
}

void MpiCommunicator::all_reduce_integers(std::byte* data, int64_t count, DType type,
                                          Reduction op) {
  const int64_t most = max_message_bytes_ / size_of(type);
  for (int64_t begin = 0; begin < count; begin += most) {
    const int n = static_cast<int>(std::min(most, count - begin));
    MPI_Request request = MPI_REQUEST_NULL;
    mpi_check(MPI_Iallreduce(MPI_IN_PLACE, data + begin * size_of(type), n, mpi_type(type),
                             mpi_op(op), comm_, &request),
              "MPI_Iallreduce");
    wait(&request, "all_reduce");
  }
}

void MpiCommunicator::all_reduce_in_order(std::byte* data, int64_t count, DType type,
                                          Reduction op) {
  const int64_t unit = size_of(type);
  if (count * unit <= ordered_reduce::kShortBytes) {
    scratch_.ensure(size_ * count * unit);
    do_all_gather({data, static_cast<std::size_t>(count * unit)}, scratch_.span());
    return ordered_reduce::reduce_parts(type, op, scratch_.data(), size_, count, data);
  }
  const int64_t block = ordered_reduce::kBlockBytes / unit;
  part_counts_.resize(static_cast<std::size_t>(size_));
  for (int64_t begin = 0; begin < count; begin += block) {
    const BlockPartition parts{std::min(block, count - begin), size_};
    const Bytes all(data + begin * unit, static_cast<std::size_t>(parts.total * unit));
    const int64_t mine = parts.size(context_.rank);
    const Bytes my_part = all.subspan(static_cast<std::size_t>(parts.begin(context_.rank) * unit),
                                      static_cast<std::size_t>(mine * unit));
    // Part p to rank p.
    clear_messages();
    for (int r = 0; r < size_; ++r) part_counts_[r] = parts.size(r);
    add_sends(all, part_counts_, unit);
    scratch_.ensure(size_ * mine * unit);
    std::fill(part_counts_.begin(), part_counts_.end(), mine);
    add_recvs(scratch_.span(), part_counts_, unit);
    run_exchange("all_reduce");
    ordered_reduce::reduce_parts(type, op, scratch_.data(), size_, mine, my_part.data());
    // Its result to all. Each rank has its own part already.
    clear_messages();
    for (int r = 0; r < size_; ++r) {
      if (r == context_.rank) continue;
      if (mine > 0) sends_.push_back({r, my_part});
      if (parts.size(r) > 0) {
        recvs_.push_back({r, all.subspan(static_cast<std::size_t>(parts.begin(r) * unit),
                                         static_cast<std::size_t>(parts.size(r) * unit))});
      }
    }
    run_exchange("all_reduce");
  }
}

}  // namespace airmoe::comm
