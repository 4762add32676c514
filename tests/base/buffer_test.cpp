#include "comm/base/buffer.hpp"

#include <algorithm>
#include <cmath>
#include <fstream>
#include <utility>

#include <gtest/gtest.h>
#include <unistd.h>

#include "comm/base/dtype.hpp"
#include "comm/base/matrix_view.hpp"

namespace airmoe {
namespace {

TEST(Buffer, IsAlignedWhateverTheSize) {
  for (int64_t size = 1; size < 200; ++size) {
    const Buffer<float> b(size);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(b.data()) % Buffer<float>::kAlignment, 0u);
    EXPECT_EQ(b.size(), size);
    EXPECT_EQ(b.span().size(), static_cast<size_t>(size));
  }
}

TEST(Buffer, GrowsOnlyWhenItMust) {
  Buffer<int32_t> b(100, 7);
  const int32_t* data = b.data();
  EXPECT_EQ(b[99], 7);
  b.ensure(10);
  EXPECT_EQ(b.size(), 10);
  EXPECT_EQ(b.end() - b.begin(), 10);
  b.ensure(100);
  EXPECT_EQ(b.data(), data);
  EXPECT_EQ(b[99], 7);  // nothing was allocated, so nothing was lost
  EXPECT_EQ(b.capacity_bytes(), 400);
  b.ensure(101);
  EXPECT_EQ(b.capacity_bytes(), 404);
}

TEST(Buffer, MovesItsMemory) {
  Buffer<double> a(5, 2.5);
  const double* data = a.data();
  Buffer<double> b(std::move(a));
  EXPECT_EQ(b.data(), data);
  EXPECT_EQ(b.size(), 5);
  Buffer<double> c;
  EXPECT_EQ(c.size(), 0);
  c = std::move(b);
  EXPECT_EQ(c.data(), data);
  EXPECT_EQ(c[4], 2.5);
}

TEST(Buffer, HoldsTheValueInEveryElement) {
  struct Pair {
    int16_t a;
    float b;
  };
  for (const int64_t size : {int64_t{1}, int64_t{1000}, int64_t{12} << 20}) {
    for (const double value : {0.0, -0.0, 2.5}) {
      const Buffer<double> b(size, value);
      for (int64_t i = 0; i < size; i += size / 7 + 1) {
        ASSERT_EQ(b[i], value);
        ASSERT_EQ(std::signbit(b[i]), std::signbit(value));
      }
      ASSERT_EQ(b[size - 1], value);
    }
  }
  const Buffer<Pair> b(3, Pair{0, 1.5f});
  EXPECT_EQ(b[2].b, 1.5f);
}

// Pages of this process that are in memory.
int64_t resident_bytes() {
  int64_t pages = 0, resident = 0;
  std::ifstream("/proc/self/statm") >> pages >> resident;
  return resident * sysconf(_SC_PAGESIZE);
}

TEST(Buffer, LargeZerosTakeMemoryWhenTheyAreWritten) {
  constexpr int64_t kSize = int64_t{64} << 20;  // 256 MiB
  constexpr int64_t kMiB = 1 << 20;
  const int64_t before = resident_bytes();
  Buffer<float> b(kSize, 0.0f);
  EXPECT_LT(resident_bytes() - before, 8 * kMiB);
  EXPECT_TRUE(std::all_of(b.begin(), b.end(), [](float x) { return x == 0.0f; }));
  EXPECT_LT(resident_bytes() - before, 8 * kMiB);  // pages of zeros are shared
  std::fill_n(b.begin(), kSize / 4, 1.0f);
  EXPECT_GT(resident_bytes() - before, 60 * kMiB);
  EXPECT_LT(resident_bytes() - before, 72 * kMiB);
  b = Buffer<float>(kSize, 0.0f);  // not the memory that was written to
  EXPECT_TRUE(std::all_of(b.begin(), b.end(), [](float x) { return x == 0.0f; }));
}

TEST(Buffer, EmptyIsUsable) {
  Buffer<float> b(0);
  b.fill(1.0f);
  EXPECT_EQ(b.begin(), b.end());
}

TEST(MatrixView, RowsSlicesAndConst) {
  float data[] = {0, 1, 2, -1, 10, 11, 12, -1, 20, 21, 22, -1};
  const Matrix m(data, 3, 3, 4);
  EXPECT_EQ(m(2, 1), 21);
  EXPECT_EQ(m.row(1)[2], 12);
  const ConstMatrix tail = m.slice_rows(1, 2);
  EXPECT_EQ(tail.rows, 2);
  EXPECT_EQ(tail(1, 0), 20);
  EXPECT_EQ(tail.ld, 4);
}

TEST(DType, SizesAndNamesMatchTheTypes) {
  EXPECT_EQ(size_of(dtype_of<float>), 4);
  EXPECT_EQ(size_of(dtype_of<double>), 8);
  EXPECT_EQ(size_of(dtype_of<uint8_t>), 1);
  EXPECT_EQ(size_of(dtype_of<int32_t>), 4);
  EXPECT_EQ(size_of(dtype_of<uint32_t>), 4);
  EXPECT_EQ(size_of(dtype_of<int64_t>), 8);
  EXPECT_EQ(size_of(dtype_of<uint64_t>), 8);
  EXPECT_STREQ(name_of(dtype_of<float>), "f32");
  EXPECT_STREQ(name_of(dtype_of<int64_t>), "i64");
}

}  // namespace
}  // namespace airmoe
