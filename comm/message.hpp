#pragma once
// What is handed to and comes out of Communicator: messages by peer, and their untyped forms, which
// only backends and decorators use.

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "comm/base/buffer.hpp"
#include "comm/base/dtype.hpp"

namespace airmoe::comm {

/// The element types of dtype.hpp.
template <class T>
concept Element = requires {
  DTypeOf<T>::value;
};

/// One message out. The memory must not change until the exchange has ended.
template <class T>
struct Send {
  int peer;
  std::span<const T> data;
};

/// One message in, of exactly this size.
template <class T>
struct Recv {
  int peer;
  std::span<T> data;
};

using ConstBytes = std::span<const std::byte>;
using Bytes = std::span<std::byte>;

template <class T>
ConstBytes as_bytes(std::span<const T> s) {
  return std::as_bytes(s);
}
template <class T>
Bytes as_bytes(std::span<T> s) requires(!std::is_const_v<T>) {
  return std::as_writable_bytes(s);
}

struct ByteSend {
  int peer;
  ConstBytes data;
};
struct ByteRecv {
  int peer;
  Bytes data;
};

/// A message that arrived: `count` elements at `offset` of the inbox. (Bytes in a ByteInbox.)
struct Arrival {
  int source;
  int64_t offset;
  int64_t count;
};

struct ByteInbox {
  std::vector<Arrival> arrivals;
  Buffer<std::byte> data;
};

/// What a sparse exchange brought. Reuse it: its memory only grows.
template <Element T>
class Inbox {
 public:
  /// In source order; never an empty message.
  std::span<const Arrival> arrivals() const { return raw_.arrivals; }
  /// Elements of all messages, in the same order without gaps.
  std::span<T> data() {
    return {reinterpret_cast<T*>(raw_.data.data()),
            static_cast<std::size_t>(raw_.data.size()) / sizeof(T)};
  }
  std::span<const T> data() const {
    return {reinterpret_cast<const T*>(raw_.data.data()),
            static_cast<std::size_t>(raw_.data.size()) / sizeof(T)};
  }
  /// Elements of one message.
  std::span<const T> data(const Arrival& a) const {
    return data().subspan(static_cast<std::size_t>(a.offset), static_cast<std::size_t>(a.count));
  }

 private:
  friend class Communicator;
  ByteInbox raw_;
};

}  // namespace airmoe::comm
