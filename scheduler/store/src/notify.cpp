#include "scheduler/store/notify.hpp"

#include <cstdio>

#include <fmt/core.h>

namespace airmoe::scheduler {

void notify_stderr(const std::string& line) {
  fmt::print(stderr, "airmoe: {}\n", line);
}

}  // namespace airmoe::scheduler
