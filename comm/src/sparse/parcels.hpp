#pragma once
// Messages packed one behind the other for a journey in several steps.

#include <cstring>
#include <span>
#include <vector>

#include "comm/message.hpp"

namespace airmoe::comm {

/// A message on its way. `data` is null when only its size travels like this.
struct Parcel {
  int source;
  int receiver;
  int64_t bytes;
  const std::byte* data;
};

/// Streams of parcels, one per place: announce every parcel, then allocate(), then pack them all.
class ParcelStreams {
 public:
  void clear(std::size_t num_places);
  void announce(std::size_t place, const Parcel& parcel);
  void allocate();
  void pack(std::size_t place, const Parcel& parcel);
  /// What was packed for a place.
  ConstBytes stream(std::size_t place) const;
  std::size_t num_places() const { return ends_.size(); }

 private:
  std::vector<int64_t> sizes_;  // announced, bytes
  std::vector<int64_t> ends_;   // packed so far
  Buffer<std::byte> data_;
};

/// Calls visit(Parcel) for each parcel of a stream.
template <class Visit>
void for_each_parcel(ConstBytes stream, Visit&& visit);

/// The same for all that arrived.
template <class Visit>
void for_each_parcel(const ByteInbox& inbox, Visit&& visit) {
  for_each_parcel(inbox.data.span(), visit);
}

namespace detail {

struct ParcelHeader {
  int32_t source;
  int32_t receiver;
  int64_t bytes;
  int64_t travels;  // 1: the data comes next
};

}  // namespace detail

template <class Visit>
void for_each_parcel(ConstBytes stream, Visit&& visit) {
  while (!stream.empty()) {
    detail::ParcelHeader header;
    std::memcpy(&header, stream.data(), sizeof header);
    stream = stream.subspan(sizeof header);
    const auto bytes = static_cast<std::size_t>(header.travels != 0 ? header.bytes : 0);
    visit(Parcel{header.source, header.receiver, header.bytes,
                 header.travels != 0 ? stream.data() : nullptr});
    stream = stream.subspan(bytes);
  }
}

}  // namespace airmoe::comm
