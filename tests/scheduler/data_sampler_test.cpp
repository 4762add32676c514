// The split into training and validation, and the order of windows.

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <set>

#include <gtest/gtest.h>

#include "comm/base/error.hpp"
#include "scheduler/data/sampler.hpp"

namespace airmoe::scheduler {
namespace {

namespace fs = std::filesystem;

/// A corpus of n 32-bit ids in which id i stands at position i.
class CountingCorpus {
 public:
  explicit CountingCorpus(int64_t n) {
    std::string name = (fs::temp_directory_path() / "airmoe-sampler-XXXXXX").string();
    if (::mkdtemp(name.data()) == nullptr) throw std::runtime_error("no temporary folder");
    std::vector<uint32_t> ids(static_cast<std::size_t>(n));
    for (std::size_t i = 0; i < ids.size(); ++i) ids[i] = static_cast<uint32_t>(i);
    std::ofstream(name + "/ids.bin", std::ios::binary)
        .write(reinterpret_cast<const char*>(ids.data()), n * 4);
    corpus_.push_back(Corpus::open({{name + "/ids.bin"}, 1, TokenType::u32}));
    fs::remove_all(name);
  }
  const Corpus& get() const { return corpus_.front(); }

 private:
  std::vector<Corpus> corpus_;
};

int64_t tokens_in(const std::vector<Segment>& segments) {
  int64_t sum = 0;
  for (const Segment& s : segments) sum += s.end - s.begin;
  return sum;
}

bool inside(const std::vector<Segment>& segments, int64_t begin, int64_t end) {
  return std::any_of(segments.begin(), segments.end(),
                     [=](const Segment& s) { return s.begin <= begin && end <= s.end; });
}

TEST(DataSplit, CoversTheCorpusOnceAndKeepsTheFraction) {
  for (const int64_t n : {int64_t{100}, int64_t{5000}, int64_t{1} << 20, int64_t{100000001}}) {
    const DataSplit split = DataSplit::make(n, 16, 0.05);
    auto all = split.train;
    all.insert(all.end(), split.validation.begin(), split.validation.end());
    std::sort(all.begin(), all.end(), [](auto a, auto b) { return a.begin < b.begin; });
    int64_t at = 0;
    for (const Segment& s : all) {
      EXPECT_EQ(s.begin, at);
      EXPECT_GE(s.end - s.begin, 34);
      at = s.end;
    }
    EXPECT_EQ(at, n);
    if (n > 5000) {
      EXPECT_NEAR(static_cast<double>(tokens_in(split.validation)) / static_cast<double>(n), 0.05,
                  0.005);
    }
  }
}

TEST(DataSplit, ValidationComesFromTheWholeCorpus) {
  const int64_t n = int64_t{1} << 28;
  const DataSplit split = DataSplit::make(n, 1024, 0.05);
  std::vector<int64_t> tenths(10, 0);
  for (const Segment& s : split.validation) ++tenths[s.begin * 10 / n];
  for (const int64_t count : tenths) EXPECT_GE(count, 15);
}

TEST(DataSplit, FractionZeroTrainsOnEverything) {
  const DataSplit split = DataSplit::make(1000, 16, 0.0);
  EXPECT_TRUE(split.validation.empty());
  EXPECT_EQ(tokens_in(split.train), 1000);
}

TEST(DataSplit, SaysHowMuchIsNeeded) {
  try {
    DataSplit::make(100, 64, 0.05);
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::config);
    EXPECT_STREQ(error.what(),
                 "the data has 100 tokens, but --context 64 with --validation-fraction 0.05 needs "
                 "260: add data or shorten --context");
  }
  EXPECT_NO_THROW(DataSplit::make(260, 64, 0.05));
  EXPECT_NO_THROW(DataSplit::make(65, 64, 0.0));
  EXPECT_THROW(DataSplit::make(64, 64, 0.0), Error);
  EXPECT_THROW(DataSplit::make(1000, 64, 1.0), Error);
  EXPECT_THROW(DataSplit::make(1000, 64, -0.1), Error);
}

TEST(Sampler, TargetsAreTheNextTokens) {
  const CountingCorpus corpus(20000);
  const Sampler sampler(corpus.get(), 32, 0.05, 1);
  std::vector<int32_t> tokens(32), targets(32);
  for (int64_t s = 0; s < 100; ++s) {
    sampler.fill(s, tokens, targets);
    for (int32_t i = 0; i < 32; ++i) {
      ASSERT_EQ(tokens[i], sampler.window_begin(s) + i);
      ASSERT_EQ(targets[i], tokens[i] + 1);
    }
  }
}

TEST(Sampler, AnEpochVisitsEveryWindowOnceAndOnlyTrainTokens) {
  const CountingCorpus corpus(20000);
  const int64_t context = 32;
  const Sampler sampler(corpus.get(), context, 0.1, 1);
  const DataSplit split = DataSplit::make(20000, context, 0.1);
  for (int64_t epoch = 0; epoch < 3; ++epoch) {
    std::vector<int64_t> begins;
    for (int64_t s = 0; s < sampler.windows(); ++s) {
      const int64_t begin = sampler.window_begin(epoch * sampler.windows() + s);
      ASSERT_TRUE(inside(split.train, begin, begin + context + 1)) << begin;
      begins.push_back(begin);
    }
    EXPECT_FALSE(std::is_sorted(begins.begin(), begins.end()));
    std::sort(begins.begin(), begins.end());
    for (std::size_t i = 1; i < begins.size(); ++i) {
      ASSERT_GE(begins[i] - begins[i - 1], context);  // no overlap
    }
  }
  // Nearly everything is used: at most two windows are lost in each segment.
  EXPECT_GE(sampler.windows() * context,
            tokens_in(split.train) - 2 * context * static_cast<int64_t>(split.train.size()));
}

TEST(Sampler, EpochsShiftTheWindowBorders) {
  const CountingCorpus corpus(20000);
  const int64_t context = 32;
  const Sampler sampler(corpus.get(), context, 0.05, 1);
  std::set<int64_t> phases;
  std::vector<int> uses(20000, 0);
  const int64_t epochs = 300;
  std::vector<int64_t> first_of_epoch(epochs, 20000);
  for (int64_t s = 0; s < epochs * sampler.windows(); ++s) {
    const int64_t begin = sampler.window_begin(s);
    phases.insert(begin % context);
    const int64_t epoch = s / sampler.windows();
    first_of_epoch[epoch] = std::min(first_of_epoch[epoch], begin);
    for (int64_t i = 0; i < context; ++i) ++uses[begin + i];
  }
  EXPECT_EQ(static_cast<int64_t>(phases.size()), context);
  // Far from segment borders every token is used once an epoch.
  const DataSplit split = DataSplit::make(20000, context, 0.05);
  const Segment& s = split.train.front();
  for (int64_t t = s.begin + context; t < s.end - 2 * context; ++t) ASSERT_EQ(uses[t], epochs);
  for (const int64_t first : first_of_epoch) EXPECT_LT(first, s.begin + context);
  EXPECT_EQ(uses[split.validation.front().begin], 0);
}

TEST(Sampler, DependsOnSeedAndSampleOnly) {
  const CountingCorpus corpus(20000);
  const Sampler one(corpus.get(), 32, 0.05, 1), same(corpus.get(), 32, 0.05, 1),
      other(corpus.get(), 32, 0.05, 2);
  int64_t differing = 0;
  for (int64_t s = 2000; s >= 0; --s) {  // also independent of the order of the calls
    EXPECT_EQ(one.window_begin(s), same.window_begin(s));
    differing += one.window_begin(s) != other.window_begin(s);
  }
  EXPECT_GT(differing, 1900);
  for (int64_t i = 0; i < 5; ++i)
    EXPECT_EQ(one.validation_begin(i, 5), other.validation_begin(i, 5));
}

TEST(Sampler, ValidationWindowsAreDistinctFixedAndSpread) {
  const CountingCorpus corpus(200000);
  const int64_t context = 32;
  const Sampler sampler(corpus.get(), context, 0.05, 1);
  const DataSplit split = DataSplit::make(200000, context, 0.05);
  for (const int64_t count : {int64_t{1}, int64_t{10}, sampler.validation_windows()}) {
    int64_t previous = -context;
    std::vector<int32_t> tokens(32), targets(32);
    for (int64_t i = 0; i < count; ++i) {
      const int64_t begin = sampler.validation_begin(i, count);
      ASSERT_TRUE(inside(split.validation, begin, begin + context + 1));
      ASSERT_GE(begin, previous + context);
      previous = begin;
      sampler.fill_validation(i, count, tokens, targets);
      ASSERT_EQ(tokens[0], begin);
      ASSERT_EQ(targets[31], begin + 32);
    }
    if (count >= 10) {
      EXPECT_GT(previous, split.validation.back().begin - 50000);
    }
  }
  EXPECT_THROW(sampler.validation_begin(0, sampler.validation_windows() + 1), Error);
}

TEST(Sampler, TheSmallestCorpusWorks) {
  const CountingCorpus corpus(33);
  const Sampler sampler(corpus.get(), 32, 0.0, 1);
  EXPECT_EQ(sampler.windows(), 1);
  EXPECT_EQ(sampler.validation_windows(), 0);
  for (int64_t s = 0; s < 5; ++s) EXPECT_EQ(sampler.window_begin(s), 0);
}

}  // namespace
}  // namespace airmoe::scheduler
