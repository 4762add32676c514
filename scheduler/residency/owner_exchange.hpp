#pragma once
// Messages between the ranks that hold copies of experts and the ranks that own these experts.

#include <cstdint>
#include <span>
#include <tuple>
#include <vector>

#include "comm/base/buffer.hpp"
#include "comm/communicator.hpp"

namespace airmoe::scheduler {

/// One round: a rank groups expert ids by owner and announces them; then rows of one width per id
/// travel to the owners or back with known counts. Reuse it: its memory only grows.
class OwnerExchange {
 public:
  explicit OwnerExchange(comm::Communicator& comm);

  /// Local. Starts a round: groups `ids` by owner, ascending within an owner; `home` is the owner
  /// of each expert.
  void group(std::span<const int32_t> ids, std::span<const int32_t> home);
  /// The ids of group(), grouped.
  std::span<const int32_t> ids() const { return ids_; }

  /// Collective. Sends ids() to their owners: one message of 4 bytes per id to each.
  void announce() { announce(ids_, 1); }
  /// Collective. Sends `per_id` words per id, in the order of ids(), to the owners instead.
  void announce(std::span<const int32_t> words, int64_t per_id);
  /// What was announced to this rank, in source order. Shape: [arrived(), per_id]
  std::span<const int32_t> announced() const { return inbox_.data(); }
  /// Ids that were announced to this rank.
  int64_t arrived() const { return std::ssize(announced()) / per_id_; }

  /// Not collective, but both sides of each announcement must call it. Rows from the ranks that
  /// announced to the owners. Shapes: mine [ids().size(), width], theirs [arrived(), width]
  template <class T>
  [[nodiscard]] comm::Ticket to_owners(const Buffer<T>& mine, Buffer<T>& theirs, int64_t width,
                                       int tag) {
    theirs.ensure(arrived() * width);
    Mail<T>& mail = mail_for<T>();
    for_each_owner([&](int peer, int64_t begin, int64_t count) {
      mail.sends.push_back({peer, part(mine.span(), begin * width, count * width)});
    });
    for_each_arrival([&](int peer, int64_t begin, int64_t count) {
      mail.recvs.push_back({peer, part(theirs.span(), begin * width, count * width)});
    });
    return comm_.exchange<T>(mail.sends, mail.recvs, tag);
  }
  /// The same from the owners: theirs of an owner becomes mine of who announced.
  template <class T>
  [[nodiscard]] comm::Ticket from_owners(const Buffer<T>& theirs, Buffer<T>& mine, int64_t width,
                                         int tag) {
    mine.ensure(std::ssize(ids_) * width);
    Mail<T>& mail = mail_for<T>();
    for_each_arrival([&](int peer, int64_t begin, int64_t count) {
      mail.sends.push_back({peer, part(theirs.span(), begin * width, count * width)});
    });
    for_each_owner([&](int peer, int64_t begin, int64_t count) {
      mail.recvs.push_back({peer, part(mine.span(), begin * width, count * width)});
    });
    return comm_.exchange<T>(mail.sends, mail.recvs, tag);
  }

 private:
  template <class T>
  struct Mail {
    std::vector<comm::Send<T>> sends;
    std::vector<comm::Recv<T>> recvs;
  };

  template <class T>
  static std::span<T> part(std::span<T> all, int64_t begin, int64_t count) {
    return all.subspan(static_cast<std::size_t>(begin), static_cast<std::size_t>(count));
  }
  template <class Visit>
  void for_each_owner(Visit&& visit) const {
    for (int r = 0; r < comm_.size(); ++r) {
      if (begin_[r + 1] > begin_[r]) visit(r, begin_[r], begin_[r + 1] - begin_[r]);
    }
  }
  template <class Visit>
  void for_each_arrival(Visit&& visit) const {
    for (const comm::Arrival& a : inbox_.arrivals()) {
      visit(a.source, a.offset / per_id_, a.count / per_id_);
    }
  }
  template <class T>
  Mail<T>& mail_for() {
    auto& mail = std::get<Mail<T>>(mail_);
    mail.sends.clear();
    mail.recvs.clear();
    return mail;
  }

  comm::Communicator& comm_;
  std::vector<int32_t> ids_;
  std::vector<int64_t> begin_;  // [ranks + 1]: ids_ of an owner
  std::vector<int64_t> next_;
  int64_t per_id_ = 1;
  comm::Inbox<int32_t> inbox_;
  std::tuple<Mail<int32_t>, Mail<float>, Mail<double>> mail_;
};

}  // namespace airmoe::scheduler
