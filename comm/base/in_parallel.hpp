#pragma once
// Independent pieces of work in several threads, for what is done once, such as at start.

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <exception>
#include <system_error>
#include <thread>
#include <vector>

namespace airmoe {

/// Local. Calls body(0) ... body(count - 1) once each, up to `threads` at a time, one of them in
/// the calling thread, and returns when all have ended. Fewer threads where the system has no more.
/// The exception of the lowest index is thrown again.
template <class Body>
void in_parallel(int64_t count, int64_t threads, const Body& body) {
  std::vector<std::exception_ptr> errors(static_cast<std::size_t>(count));
  std::atomic<int64_t> next = 0;
  const auto work = [&] {
    for (int64_t i = next++; i < count; i = next++) {
      try {
        body(i);
      } catch (...) {
        errors[i] = std::current_exception();
      }
    }
  };
  {
    std::vector<std::jthread> others;
    try {
      while (std::ssize(others) + 1 < std::min(count, threads)) others.emplace_back(work);
    } catch (const std::system_error&) {  // no more threads here: those there are do it
    }
    work();
  }
  for (const std::exception_ptr& error : errors) {
    if (error) std::rethrow_exception(error);
  }
}

}  // namespace airmoe
