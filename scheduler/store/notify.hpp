#pragma once
// How the store tells about what is no error: a checkpoint passed over, a lock taken over.

#include <functional>
#include <string>

namespace airmoe::scheduler {

/// Called on rank 0 only, one line without newline.
using Notify = std::function<void(const std::string& line)>;

/// Prints "airmoe: <line>" to stderr.
void notify_stderr(const std::string& line);

}  // namespace airmoe::scheduler
