// A program outside the repository: uses installed headers and libraries only.
#include <cstdio>

#include "comm/base/error.hpp"
#include "comm/base/random.hpp"

int main() {
  const airmoe::RandomStream stream(1, airmoe::Purpose::test_data);
  const airmoe::RandomPermutation shuffle(stream, 10);
  uint64_t sum = 0;
  for (uint64_t i = 0; i < 10; ++i) sum += shuffle(i);
  AIRMOE_CHECK(sum == 45, "a permutation of 0..9 sums to {}", sum);
  std::printf("consumer of airmoe: ok\n");
  return 0;
}
