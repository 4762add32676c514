#include "scheduler/residency/owner_exchange.hpp"

#include <algorithm>

namespace airmoe::scheduler {

OwnerExchange::OwnerExchange(comm::Communicator& comm)
    : comm_(comm),
      begin_(static_cast<std::size_t>(comm.size()) + 1),
      next_(static_cast<std::size_t>(comm.size())) {}

void OwnerExchange::group(std::span<const int32_t> ids, std::span<const int32_t> home) {
  std::fill(begin_.begin(), begin_.end(), 0);
  for (const int32_t e : ids) ++begin_[home[e] + 1];
  for (int r = 0; r < comm_.size(); ++r) {
    begin_[r + 1] += begin_[r];
    next_[r] = begin_[r];
  }
  ids_.resize(ids.size());
  for (const int32_t e : ids) ids_[next_[home[e]]++] = e;
  for_each_owner([&](int, int64_t begin, int64_t count) {
    std::sort(ids_.begin() + begin, ids_.begin() + begin + count);
  });
}

void OwnerExchange::announce(std::span<const int32_t> words, int64_t per_id) {
  per_id_ = per_id;
  Mail<int32_t>& mail = mail_for<int32_t>();
  for_each_owner([&](int peer, int64_t begin, int64_t count) {
    mail.sends.push_back({peer, part(words, begin * per_id, count * per_id)});
  });
  comm_.sparse_exchange<int32_t>(mail.sends, inbox_);
}

}  // namespace airmoe::scheduler
