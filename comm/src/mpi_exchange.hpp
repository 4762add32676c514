#pragma once
// Point-to-point exchange with counts known on both sides, on MPI.

#include <vector>

#include <mpi.h>

#include "comm/message.hpp"
#include "comm/src/mpi_check.hpp"
#include "comm/ticket.hpp"

namespace airmoe::comm {

/// One exchange under way. Reused; allocates only while its arrays grow.
class MpiExchange final : public PendingExchange {
 public:
  MpiExchange(MPI_Comm comm, const WaitContext& context, int64_t max_message_bytes)
      : comm_(comm), context_(context), max_message_bytes_(max_message_bytes) {}

  bool idle() const { return idle_; }

  /// Posts all receives, then all sends, in pieces of at most max_message_bytes; copies messages to
  /// oneself. idle() is false from here to release().
  /// @param received  empty: receives get exactly as many bytes as they have room for. Else, one
  /// per
  ///     receive, none of which is from oneself or larger than max_message_bytes: the bytes that
  ///     came, when it has ended
  void start(std::span<const ByteSend> sends, std::span<const ByteRecv> recvs, int mpi_tag,
             const char* phase, const char* operation, std::span<int64_t> received = {});

  bool test() override;
  void wait() override;
  void release() noexcept override;

 private:
  struct Piece {
    int peer;
    int bytes;
    bool is_recv;
  };
  void copy_to_self(std::span<const ByteSend> sends, std::span<const ByteRecv> recvs) const;
  void post(int peer, std::byte* data, int64_t bytes, bool is_recv, int mpi_tag);
  void check_piece(int request, MPI_Status& status, int code) const;
  bool advance();
  std::string missing_peers() const;
  void give_up() noexcept;

  MPI_Comm comm_;
  const WaitContext& context_;
  int64_t max_message_bytes_;
  const char* phase_ = "";
  const char* operation_ = "";
  bool idle_ = true;
  std::span<int64_t> received_;  // by receive; empty: sizes are exact
  std::size_t open_ = 0;
  std::vector<MPI_Request> requests_;
  std::vector<Piece> pieces_;  // what each request is
  std::vector<int> finished_;
  std::vector<MPI_Status> statuses_;
};

}  // namespace airmoe::comm
