#include "scheduler/store/agreement.hpp"

#include <algorithm>
#include <array>
#include <string>

namespace airmoe::scheduler {

namespace {

constexpr int64_t kRoundBytes = int64_t{256} << 20;

void broadcast_string_from(comm::Communicator& comm, std::string& text, int root) {
  auto size = std::ssize(text);
  comm.broadcast(std::span<int64_t>(&size, 1), root);
  text.resize(static_cast<std::size_t>(size));
  comm.broadcast(std::span<uint8_t>(reinterpret_cast<uint8_t*>(text.data()), text.size()), root);
}

// First job of every round, and the end.
std::vector<std::size_t> split_rounds(std::span<const int64_t> job_bytes) {
  std::vector<std::size_t> begin = {0};
  int64_t bytes = 0;
  for (std::size_t i = 0; i < job_bytes.size(); ++i) {
    if (bytes >= kRoundBytes) {
      begin.push_back(i);
      bytes = 0;
    }
    bytes += job_bytes[i];
  }
  begin.push_back(job_bytes.size());
  return begin;
}

}  // namespace

void agree(comm::Communicator& comm, const std::optional<Error>& error) {
  const auto none = static_cast<int64_t>(comm.size());
  const int64_t mine = error ? comm.rank() : none;
  const int64_t first = comm.all_reduce_value(mine, comm::Reduction::min);
  if (first == none) return;
  const int root = static_cast<int>(first);
  int64_t code = error ? static_cast<int64_t>(error->code()) : 0;
  std::string message = error ? error->what() : "";
  comm.broadcast(std::span<int64_t>(&code, 1), root);
  broadcast_string_from(comm, message, root);
  throw Error(static_cast<ExitCode>(code), message);
}

void in_rounds(comm::Communicator& comm, std::span<const int64_t> job_bytes,
               const std::function<void(std::size_t)>& job,
               const std::function<void()>& end_round) {
  const auto begin = split_rounds(job_bytes);
  const auto local_rounds = std::ssize(begin) - 1;
  const int64_t rounds = comm.all_reduce_value(int64_t{local_rounds}, comm::Reduction::max);
  for (int64_t round = 0; round < rounds; ++round) {
    together(comm, [&] {
      if (round >= local_rounds) return;
      const auto r = static_cast<std::size_t>(round);
      for (std::size_t i = begin[r]; i < begin[r + 1]; ++i) job(i);
      end_round();
    });
  }
}

void broadcast_string(comm::Communicator& comm, std::string& text) {
  broadcast_string_from(comm, text, 0);
}

}  // namespace airmoe::scheduler
