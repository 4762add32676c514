#include "comm/src/sparse/parcels.hpp"

namespace airmoe::comm {
namespace {

int64_t packed_bytes(const Parcel& parcel) {
  return static_cast<int64_t>(sizeof(detail::ParcelHeader)) +
         (parcel.data != nullptr ? parcel.bytes : 0);
}

}  // namespace

void ParcelStreams::clear(std::size_t num_places) {
  sizes_.assign(num_places, 0);
  ends_.assign(num_places, 0);
}

void ParcelStreams::announce(std::size_t place, const Parcel& parcel) {
  sizes_[place] += packed_bytes(parcel);
}

void ParcelStreams::allocate() {
  int64_t total = 0;
  for (std::size_t i = 0; i < sizes_.size(); ++i) {
    ends_[i] = total;
    total += sizes_[i];
  }
  data_.ensure(total);
}

void ParcelStreams::pack(std::size_t place, const Parcel& parcel) {
  const detail::ParcelHeader header{parcel.source, parcel.receiver, parcel.bytes,
                                    parcel.data != nullptr ? 1 : 0};
  std::byte* target = data_.data() + ends_[place];
  std::memcpy(target, &header, sizeof header);
  if (parcel.data != nullptr) {
    std::memcpy(target + sizeof header, parcel.data, static_cast<std::size_t>(parcel.bytes));
  }
  ends_[place] += packed_bytes(parcel);
}

ConstBytes ParcelStreams::stream(std::size_t place) const {
  return {data_.data() + ends_[place] - sizes_[place], static_cast<std::size_t>(sizes_[place])};
}

}  // namespace airmoe::comm
