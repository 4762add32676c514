#include "comm/cuda/src/nccl/nccl_watch.hpp"

#include <algorithm>
#include <chrono>

namespace airmoe::comm::cuda {
namespace {

constexpr int64_t kIdle = 0;
constexpr int64_t kAborted = -1;
constexpr int64_t kLongestNap = 200'000'000;  // nanoseconds

int64_t now() {
  return std::chrono::steady_clock::now().time_since_epoch() / std::chrono::nanoseconds(1);
}

}  // namespace

NcclWatch::NcclWatch(ncclComm_t comm, double deadline_seconds)
    : comm_(comm),
      deadline_(static_cast<int64_t>(1e9 * deadline_seconds)),
      due_(kIdle),
      aborted_(false),
      thread_([this] { watch(); }) {}

NcclWatch::~NcclWatch() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  stop_.notify_one();
  thread_.join();
}

void NcclWatch::begin() {
  due_.store(now() + deadline_);
}

bool NcclWatch::end() {
  if (due_.exchange(kIdle) != kAborted) return true;
  due_.store(kAborted);
  while (!aborted_.load()) std::this_thread::yield();
  return false;
}

void NcclWatch::watch() {
  const auto nap = std::chrono::nanoseconds(std::min(kLongestNap, deadline_ / 4 + 1));
  std::unique_lock lock(mutex_);
  while (!stop_.wait_for(lock, nap, [this] { return stopping_; })) {
    int64_t due = due_.load();
    if (due <= kIdle || now() < due || !due_.compare_exchange_strong(due, kAborted)) continue;
    ncclCommAbort(comm_);
    aborted_.store(true);
    return;
  }
}

}  // namespace airmoe::comm::cuda
