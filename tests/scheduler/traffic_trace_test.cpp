// Synthetic routing, the checks of a routing, and traces read back.

#include <filesystem>

#include "comm/base/error.hpp"
#include "scheduler/store/trace.hpp"
#include "scheduler/store/trace_reader.hpp"
#include "scheduler/traffic/synthetic.hpp"
#include "tests/scheduler/traffic_case.hpp"
#include "tests/support/mpi_test.hpp"

namespace airmoe::scheduler {
namespace {

std::string error_of(const std::function<void()>& call, ExitCode want) {
  try {
    call();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), want) << error.what();
    return error.what();
  }
  ADD_FAILURE() << "no error";
  return "";
}

void expect_error(const std::function<void()>& call, ExitCode code, const std::string& text) {
  EXPECT_NE(error_of(call, code).find(text), std::string::npos) << error_of(call, code);
}

TEST(SyntheticRouting, IsValidAndRepeatable) {
  const SyntheticRouting options{
      .experts = 3000, .active = 16, .length = 100, .codewords = 50, .tokens = 1000};
  const RoutingTrace a = make_synthetic(options), b = make_synthetic(options);
  a.validate("synthetic");
  EXPECT_TRUE(a.synthetic);
  EXPECT_EQ(a.lists, b.lists);
  EXPECT_EQ(a.expert, b.expert);
  EXPECT_EQ(a.codeword, b.codeword);
  SyntheticRouting other = options;
  other.seed = 2;
  EXPECT_NE(make_synthetic(other).lists, a.lists);
  // Skewed, but no codeword takes all.
  const std::vector<int64_t> n = a.histogram();
  EXPECT_GT(*std::max_element(n.begin(), n.end()), 2 * 1000 / 50);
  EXPECT_LT(*std::max_element(n.begin(), n.end()), 300);
}

// Lists of neighbouring codewords share much more than lists of distant ones.
TEST(SyntheticRouting, HasClusters) {
  const RoutingTrace t =
      make_synthetic({.experts = 4000, .active = 8, .length = 200, .codewords = 64, .tokens = 10});
  const auto overlap = [&](int64_t g, int64_t h) {
    std::set<int32_t> a(t.list(g).begin(), t.list(g).end());
    int shared = 0;
    for (const int32_t e : t.list(h)) shared += static_cast<int>(a.count(e));
    return shared / 200.0;
  };
  double near = 0, far = 0;
  for (int64_t g = 0; g < 16; ++g) {
    near += overlap(g, g + 16 < 16 ? g + 16 : (g + 1) % 16) / 16;
    far += overlap(g, 32 + g) / 16;
  }
  EXPECT_GT(near, 2 * far);
}

TEST(SyntheticRouting, TakesExtremeShapes) {
  for (const SyntheticRouting& o : {SyntheticRouting{1, 1, 1, 1, 1},
                                    {7, 7, 7, 3, 20},
                                    {100, 1, 100, 40, 5},
                                    {64, 4, 8, 17, 100, 0.0, 0.0}}) {
    make_synthetic(o).validate("synthetic");
  }
  expect_error([] { make_synthetic({.experts = 10, .length = 11}); }, ExitCode::usage,
               "--shortlist 11");
}

TEST(RoutingTrace, NamesWhatIsWrong) {
  const RoutingTrace good = traffic_case::random_trace({}, 3);
  good.validate("good");
  const auto broken = [&](const std::function<void(RoutingTrace&)>& change) {
    RoutingTrace bad = good;
    change(bad);
    return error_of([&] { bad.validate("file.h5"); }, ExitCode::bad_data);
  };
  EXPECT_EQ(broken([](auto& t) { t.lists[9] = 23; }),
            "file.h5: the list of codeword 1 has expert 23, of 23");
  EXPECT_NE(broken([](auto& t) { t.lists[10] = t.lists[9]; }).find("twice"), std::string::npos);
  EXPECT_NE(broken([](auto& t) { t.codeword[4] = 5; }).find("token 4 has codeword 5"),
            std::string::npos);
  EXPECT_NE(broken([](auto& t) { t.expert[4] = t.expert[3]; }).find("twice"), std::string::npos);
  EXPECT_NE(broken([](auto& t) {
              for (int32_t e = 0; e < 23; ++e) {
                const auto list = t.list(t.codeword[0]);
                if (std::find(list.begin(), list.end(), e) == list.end()) t.expert[0] = e;
              }
            }).find("not in the list"),
            std::string::npos);
  EXPECT_NE(broken([](auto& t) { t.expert.pop_back(); }).find("K selected"), std::string::npos);
  // Positions point at the experts.
  const std::vector<int32_t> place = good.positions();
  for (int64_t t = 0; t < good.tokens(); ++t) {
    for (int64_t k = 0; k < good.active; ++k) {
      EXPECT_EQ(good.list(good.codeword[t])[place[t * good.active + k]], good.selected(t)[k]);
    }
  }
}

// Collective: the routing as steps 3 and 12 of a trace, rows on rank 0.
void write_trace(const std::string& path, const RoutingTrace& t, const std::string& config) {
  TraceWriter writer(test::world(), path, TraceWriter::Mode::create, config, "test");
  const int64_t rows = test::world().rank() == 0 ? 1 : 0;
  const auto array = [&](const char* name, const std::vector<int32_t>& values, int64_t columns) {
    std::vector<int64_t> shape = {std::ssize(values) / columns};
    if (columns > 1) shape.push_back(columns);
    return StoredArray{name, DType::i32, shape, 0, rows * shape[0], values.data()};
  };
  for (const int64_t step : {3, 12}) {
    std::vector<TraceLayer> layers;
    for (const int64_t layer : {1, 4}) {
      layers.push_back(
          {layer,
           t.active,
           step == 3 ? 0.0 : 0.02,
           "silu",
           {array("codeword", t.codeword, 1), array("expert", t.expert, t.active),
            array("shortlist", t.lists, t.length), array("home_rank", t.home_rank, 1)}});
    }
    writer.add_step(step, layers);
  }
}

TEST(TraceReader, ReadsWhatWasWritten) {
  RoutingTrace t = traffic_case::random_trace({}, 5);
  t.home_rank.assign(t.codeword.size(), 2);
  const std::string path =
      testing::TempDir() + fmt::format("airmoe_routing_{}.h5", test::world().size());
  write_trace(path, t, R"({"dim": 48, "expert_dim": 2, "experts": 23, "sum_precision": "f32",
                           "jitter": 0.5, "balance_weight": 0.0})");
  if (test::world().rank() == 0) {
    const RecordedRouting last = read_routing(path);
    EXPECT_EQ(last.step, 12);
    EXPECT_EQ(last.layer, 1);
    EXPECT_EQ(last.routing.codeword, t.codeword);
    EXPECT_EQ(last.routing.expert, t.expert);
    EXPECT_EQ(last.routing.lists, t.lists);
    EXPECT_EQ(last.routing.home_rank, t.home_rank);
    EXPECT_EQ(last.routing.experts, 23);
    EXPECT_EQ(last.routing.active, 3);
    EXPECT_EQ(last.routing.length, 9);
    EXPECT_FALSE(last.routing.synthetic);
    EXPECT_EQ(last.dim, 48);
    EXPECT_EQ(last.expert_dim, 2);
    EXPECT_EQ(last.activation, "silu");
    EXPECT_EQ(last.jitter, 0.02);  // the layer's, not the configuration's
    EXPECT_EQ(last.balance_weight, 0.0);
    EXPECT_EQ(last.sums, SumPrecision::f32);
    EXPECT_EQ(read_routing(path, {.step = 3, .layer = 4}).jitter, 0.0);
    expect_error([&] { read_routing(path, {.step = 4}); }, ExitCode::usage, "has the steps 3, 12");
    expect_error([&] { read_routing(path, {.layer = 2}); }, ExitCode::usage, "the layers 1, 4");
    // One changed byte of the expert ids.
    const StoredFile file = read_stored_file(path);
    FILE* raw = std::fopen(path.c_str(), "r+b");
    std::fseek(raw, file.find("/step_000012/layer_01/expert")->offset, SEEK_SET);
    std::fputc(t.expert[0] ^ 1, raw);
    std::fclose(raw);
    expect_error([&] { read_routing(path); }, ExitCode::bad_data, "CRC32C");
    std::filesystem::remove(path);
    expect_error([&] { read_routing(path); }, ExitCode::io, path);
  }
  test::world().barrier();
}

TEST(TraceReader, NeedsTheNumberOfExperts) {
  RoutingTrace t = traffic_case::random_trace({}, 6);
  t.home_rank.assign(t.codeword.size(), 0);
  const std::string path =
      testing::TempDir() + fmt::format("airmoe_experts_{}.h5", test::world().size());
  write_trace(path, t, "{}");
  if (test::world().rank() == 0) {
    expect_error([&] { read_routing(path); }, ExitCode::usage, "--experts");
    EXPECT_EQ(read_routing(path, {.experts = 40}).routing.experts, 40);
    expect_error([&] { read_routing(path, {.experts = 5}); }, ExitCode::bad_data, path);
    std::filesystem::remove(path);
  }
  test::world().barrier();
}

}  // namespace
}  // namespace airmoe::scheduler
