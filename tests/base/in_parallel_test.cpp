#include "comm/base/in_parallel.hpp"

#include <atomic>
#include <set>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include <gtest/gtest.h>

#include "comm/base/fnv.hpp"

namespace airmoe {
namespace {

TEST(InParallel, DoesEveryPieceOnce) {
  for (const int64_t count : {0, 1, 3, 100}) {
    for (const int64_t threads : {1, 2, 16}) {
      std::vector<std::atomic<int>> done(static_cast<std::size_t>(count));
      in_parallel(count, threads, [&](int64_t i) { ++done[static_cast<std::size_t>(i)]; });
      for (const auto& times : done) EXPECT_EQ(times, 1) << count << " in " << threads;
    }
  }
}

TEST(InParallel, HasAsManyAtATimeAsAsked) {
  // Three pieces that wait for each other end only if each has a thread.
  std::atomic<int> here = 0;
  in_parallel(3, 3, [&](int64_t) {
    ++here;
    while (here < 3) std::this_thread::yield();
  });
  std::set<std::thread::id> ids;
  in_parallel(20, 1, [&](int64_t) { ids.insert(std::this_thread::get_id()); });
  EXPECT_EQ(ids, std::set<std::thread::id>{std::this_thread::get_id()});
}

TEST(InParallel, ThrowsTheFirstErrorAfterAllPieces) {
  std::atomic<int> done = 0;
  std::string message;
  try {
    in_parallel(9, 3, [&](int64_t i) {
      ++done;
      if (i % 4 == 2) throw std::runtime_error(std::to_string(i));
    });
  } catch (const std::runtime_error& e) {
    message = e.what();
  }
  EXPECT_EQ(message, "2");
  EXPECT_EQ(done, 9);
}

TEST(Fnv1a, HasThePublishedValues) {
  EXPECT_EQ(fnv1a(""), 0xcbf29ce484222325u);
  EXPECT_EQ(fnv1a("a"), 0xaf63dc4c8601ec8cu);
  EXPECT_EQ(fnv1a("foobar"), 0x85944171f73967e8u);
}

}  // namespace
}  // namespace airmoe
