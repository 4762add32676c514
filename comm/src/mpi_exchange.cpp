#include "comm/src/mpi_exchange.hpp"

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <exception>
#include <set>

namespace airmoe::comm {

void MpiExchange::start(std::span<const ByteSend> sends, std::span<const ByteRecv> recvs,
                        int mpi_tag, const char* phase, const char* operation,
                        std::span<int64_t> received) {
  phase_ = phase;
  operation_ = operation;
  received_ = received;
  requests_.clear();
  pieces_.clear();
  open_ = 0;
  idle_ = false;
  try {
    for (const ByteRecv& r : recvs) {
      if (r.peer != context_.rank) post(r.peer, r.data.data(), std::ssize(r.data), true, mpi_tag);
    }
    for (const ByteSend& s : sends) {
      if (s.peer == context_.rank) continue;
      // MPI_Isend takes const data; post() shares one signature with receives.
      post(s.peer, const_cast<std::byte*>(s.data.data()), std::ssize(s.data), false, mpi_tag);
    }
    copy_to_self(sends, recvs);
  } catch (...) {
    give_up();
    idle_ = true;
    throw;
  }
  finished_.resize(requests_.size());
  statuses_.resize(requests_.size());
}

void MpiExchange::copy_to_self(std::span<const ByteSend> sends,
                               std::span<const ByteRecv> recvs) const {
  const auto is_self = [this](const auto& message) { return message.peer == context_.rank; };
  auto recv = std::find_if(recvs.begin(), recvs.end(), is_self);
  for (const ByteSend& send : sends) {
    if (!is_self(send)) continue;
    AIRMOE_CHECK(recv != recvs.end(), "{}: a message to oneself without a receive", operation_);
    AIRMOE_CHECK(send.data.size() == recv->data.size(),
                 "{}: a message to oneself of {} bytes meets a receive of {}", operation_,
                 send.data.size(), recv->data.size());
    std::memmove(recv->data.data(), send.data.data(), send.data.size());
    recv = std::find_if(recv + 1, recvs.end(), is_self);
  }
  AIRMOE_CHECK(recv == recvs.end(), "{}: a receive from oneself without a message", operation_);
}

void MpiExchange::post(int peer, std::byte* data, int64_t bytes, bool is_recv, int mpi_tag) {
  for (int64_t begin = 0; begin < bytes; begin += max_message_bytes_) {
    const int count = static_cast<int>(std::min(max_message_bytes_, bytes - begin));
    MPI_Request request = MPI_REQUEST_NULL;
    if (is_recv) {
      mpi_check(MPI_Irecv(data + begin, count, MPI_BYTE, peer, mpi_tag, comm_, &request),
                "MPI_Irecv");
    } else {
      mpi_check(MPI_Isend(data + begin, count, MPI_BYTE, peer, mpi_tag, comm_, &request),
                "MPI_Isend");
    }
    requests_.push_back(request);
    pieces_.push_back({peer, count, is_recv});
    ++open_;
  }
}

bool MpiExchange::test() {
  try {
    return advance();
  } catch (...) {
    give_up();
    throw;
  }
}

bool MpiExchange::advance() {
  if (open_ == 0) return true;
  int count = 0;
  const int code = MPI_Testsome(static_cast<int>(requests_.size()), requests_.data(), &count,
                                finished_.data(), statuses_.data());
  if (code != MPI_ERR_IN_STATUS) mpi_check(code, "MPI_Testsome");
  if (count == MPI_UNDEFINED) count = 0;
  for (int i = 0; i < count; ++i) {
    check_piece(finished_[i], statuses_[i],
                code == MPI_ERR_IN_STATUS ? statuses_[i].MPI_ERROR : MPI_SUCCESS);
  }
  open_ -= static_cast<std::size_t>(count);
  return open_ == 0;
}

void MpiExchange::check_piece(int request, MPI_Status& status, int code) const {
  const Piece& piece = pieces_[request];
  const char* direction = piece.is_recv ? "from" : "to";
  if (code != MPI_SUCCESS) {
    fail(ExitCode::failure, "rank {}: phase {}: {}: message of {} bytes {} rank {}: {}",
         context_.rank, phase_, operation_, piece.bytes, direction, piece.peer,
         mpi_error_text(code, piece.is_recv ? "MPI_Irecv" : "MPI_Isend"));
  }
  if (!piece.is_recv) return;
  int received = 0;
  mpi_check(MPI_Get_count(&status, MPI_BYTE, &received), "MPI_Get_count");
  if (!received_.empty()) {  // one piece per receive, and receives come first
    received_[request] = received;
  } else if (received != piece.bytes) {
    fail(ExitCode::failure, "rank {}: phase {}: {}: rank {} sent {} bytes, {} were expected",
         context_.rank, phase_, operation_, piece.peer, received, piece.bytes);
  }
}

void MpiExchange::wait() {
  Deadline deadline(context_);
  while (!test()) {
    if (!deadline.poll()) continue;
    const std::string missing = missing_peers();
    give_up();
    deadline.expire(phase_, operation_, missing);
  }
}

std::string MpiExchange::missing_peers() const {
  std::set<int> receivers;
  std::set<int> senders;
  for (std::size_t i = 0; i < requests_.size(); ++i) {
    if (requests_[i] == MPI_REQUEST_NULL) continue;
    (pieces_[i].is_recv ? senders : receivers).insert(pieces_[i].peer);
  }
  std::string text;
  if (!senders.empty()) text += fmt::format("rank {} (to send)", fmt::join(senders, ", "));
  if (!senders.empty() && !receivers.empty()) text += " and ";
  if (!receivers.empty()) text += fmt::format("rank {} (to receive)", fmt::join(receivers, ", "));
  return text;
}

// Receives that no message has met end here, so that MPI does not write into memory given back
// later. Sends, and receives whose message is under way, cannot be called back; MPI ends them in
// the background, if ever.
void MpiExchange::give_up() noexcept {
  for (std::size_t i = 0; i < requests_.size(); ++i) {
    if (requests_[i] == MPI_REQUEST_NULL) continue;
    if (pieces_[i].is_recv) {
      MPI_Cancel(&requests_[i]);
      int done = 0;
      for (int tries = 0; tries < 1000 && done == 0; ++tries) {
        if (MPI_Test(&requests_[i], &done, MPI_STATUS_IGNORE) != MPI_SUCCESS) break;
      }
    }
    if (requests_[i] != MPI_REQUEST_NULL) MPI_Request_free(&requests_[i]);
  }
  open_ = 0;
}

void MpiExchange::release() noexcept {
  if (open_ > 0 && std::uncaught_exceptions() == 0) {
    try {
      wait();
    } catch (const std::exception& error) {
      std::fprintf(stderr, "[rank %d] a ticket was dropped: %s\n", context_.rank, error.what());
    }
  }
  if (open_ > 0) give_up();
  idle_ = true;
}

}  // namespace airmoe::comm
