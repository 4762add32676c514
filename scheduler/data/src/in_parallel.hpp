#pragma once
// Many small reads at once: on a cold disk each one waits for milliseconds.

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <exception>
#include <system_error>
#include <thread>
#include <vector>

namespace airmoe::scheduler {

/// Calls body(0) ... body(count - 1) once each, up to 16 at a time whatever the number of cores,
/// and returns when all have ended. The exception of the lowest index is thrown again.
template <class Body>
void in_parallel(int64_t count, const Body& body) {
  constexpr int64_t kThreads = 16;
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
      while (std::ssize(others) + 1 < std::min(count, kThreads)) others.emplace_back(work);
    } catch (const std::system_error&) {  // no more threads here: those there are do it
    }
    work();
  }
  for (const std::exception_ptr& error : errors) {
    if (error) std::rethrow_exception(error);
  }
}

}  // namespace airmoe::scheduler
