#include "comm/src/sparse/node_board.hpp"

#include <algorithm>
#include <atomic>

namespace airmoe::comm {
namespace {

constexpr int64_t kLine = 64;                       // bytes of a cache line
constexpr int64_t kBoardBytes = int64_t{33} << 20;  // of a node, wanted; touched only where used
constexpr int64_t kLeastSlot = 512;
// A message of 64 KiB fits. Beyond, MPI copies in pieces, the two sides at the same time.
constexpr int64_t kMostSlot = (int64_t{64} << 10) + kLine;
constexpr int kLooksBetweenProgress = 8;

int64_t slot_bytes_for(int64_t ranks) {
  const int64_t slot = std::clamp(kBoardBytes / (2 * ranks * ranks), kLeastSlot, kMostSlot);
  return slot / kLine * kLine;
}

int64_t rank_bytes_for(int64_t ranks, int64_t slot) {
  const int64_t table = (2 * ranks * static_cast<int64_t>(sizeof(int64_t)) + kLine - 1) / kLine;
  return kLine + table * kLine + 2 * ranks * slot;
}

}  // namespace

std::unique_ptr<NodeBoard> NodeBoard::make(const SparseLink& link, std::span<const int> ranks,
                                           int unused_tag) {
  const int color = *std::min_element(ranks.begin(), ranks.end());
  MPI_Comm local = MPI_COMM_NULL;
  mpi_check(MPI_Comm_split(link.comm, color, link.rank(), &local), "MPI_Comm_split");
  const int64_t slot = slot_bytes_for(std::ssize(ranks));
  auto memory =
      SharedMemory::make(local, std::ssize(ranks) * rank_bytes_for(std::ssize(ranks), slot));
  mpi_check(MPI_Comm_free(&local), "MPI_Comm_free");
  if (memory == nullptr) return nullptr;
  return std::unique_ptr<NodeBoard>(
      new NodeBoard(link, ranks, slot, std::move(memory), unused_tag));
}

NodeBoard::NodeBoard(const SparseLink& link, std::span<const int> ranks, int64_t slot_bytes,
                     std::unique_ptr<SharedMemory> memory, int unused_tag)
    : link_(link),
      ranks_(ranks.begin(), ranks.end()),
      slot_bytes_(slot_bytes),
      rank_bytes_(rank_bytes_for(std::ssize(ranks), slot_bytes)),
      memory_(std::move(memory)),
      unused_tag_(unused_tag) {
  place_ = static_cast<int>(std::find(ranks_.begin(), ranks_.end(), link.rank()) - ranks_.begin());
}

int64_t& NodeBoard::rounds_of(int place) const {
  return *reinterpret_cast<int64_t*>(memory_->data() + place * rank_bytes_);
}

int64_t& NodeBoard::bytes_from_to(int64_t round, int from, int to) const {
  auto* table = reinterpret_cast<int64_t*>(memory_->data() + from * rank_bytes_ + kLine);
  return table[round % 2 * std::ssize(ranks_) + to];
}

std::byte* NodeBoard::slot_from_to(int64_t round, int from, int to) const {
  const int64_t slots = std::ssize(ranks_);
  std::byte* end = memory_->data() + (from + 1) * rank_bytes_;
  return end - (2 * slots - (round % 2 * slots + to)) * slot_bytes_;
}

std::byte* NodeBoard::outgoing(std::size_t i) {
  return slot_from_to(round_, place_, place_of_peer(i));
}

void NodeBoard::publish(std::span<const int64_t> bytes, const char*) {
  for (std::size_t i = 0; i < bytes.size(); ++i) {
    bytes_from_to(round_, place_, place_of_peer(i)) = bytes[i];
  }
  std::atomic_ref(rounds_of(place_)).store(round_, std::memory_order_release);
}

void NodeBoard::wait(const char* phase) {
  Deadline deadline(link_.wait);
  const int ranks = static_cast<int>(ranks_.size());
  int place = 0;  // the first one not yet seen
  for (int looks = 1;; ++looks) {
    while (place < ranks &&
           std::atomic_ref(rounds_of(place)).load(std::memory_order_acquire) >= round_) {
      ++place;
    }
    if (place == ranks) break;
    if (looks % kLooksBetweenProgress == 0) {
      // A peer may be waiting for a message of ours before it comes here: let MPI move it.
      int found = 0;
      mpi_check(MPI_Iprobe(MPI_ANY_SOURCE, unused_tag_, link_.comm, &found, MPI_STATUS_IGNORE),
                "MPI_Iprobe");
    }
    if (!deadline.poll()) continue;
    std::vector<int> missing;
    for (int p = place; p < ranks; ++p) {
      if (std::atomic_ref(rounds_of(p)).load(std::memory_order_acquire) < round_) {
        missing.push_back(ranks_[static_cast<std::size_t>(p)]);
      }
    }
    deadline.expire(phase, kSparseOperation,
                    fmt::format("rank {} (to send)", fmt::join(missing, ", ")));
  }
  ++round_;
}

ConstBytes NodeBoard::incoming(std::size_t i) const {
  const int from = place_of_peer(i);
  const int64_t bytes = bytes_from_to(round_ - 1, from, place_);
  return {slot_from_to(round_ - 1, from, place_), static_cast<std::size_t>(bytes)};
}

}  // namespace airmoe::comm
