// For store_files_test.py: writes and checks files from any number of ranks.
//   store_tool save DIR STEP EXPERTS     store_tool check PATH EXPERTS    store_tool trace FILE
//   STEP [bad]

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <numeric>

#include "comm/base/error.hpp"
#include "comm/mpi_communicator.hpp"
#include "comm/mpi_environment.hpp"
#include "scheduler/store/trace.hpp"
#include "scheduler/store_support.hpp"

namespace {

using namespace airmoe;
using namespace airmoe::scheduler;

void save(comm::Communicator& comm, const std::string& dir, int64_t step, int64_t experts) {
  test::TestState state(experts, comm.rank(), comm.size());
  save_checkpoint(comm, dir, test::test_meta(step), state.views());
}

void check(comm::Communicator& comm, const std::string& path, int64_t experts) {
  const test::TestState expected(experts, comm.rank(), comm.size());
  test::TestState state = expected;
  state.clear();
  const OpenedCheckpoint opened = open_checkpoint(comm, path);
  restore_checkpoint(comm, opened, state.views());
  if (!(state == expected)) fail(ExitCode::failure, "rank {} read other values", comm.rank());
}

// A layer small enough to be worked out here: every rank computes all of it in float.
struct Layer {
  static constexpr int64_t T = 11, d = 8, G = 3, M = 6, E = 10, K = 3, m = 2;
  std::vector<float> hidden = std::vector<float>(T * d), gate = std::vector<float>(T * K),
                     output = std::vector<float>(T * d), centroid = std::vector<float>(E * d),
                     up = std::vector<float>(E * m * d), down = std::vector<float>(E * m * d),
                     codebook = std::vector<float>(G * d);
  std::vector<int32_t> codeword = std::vector<int32_t>(T), expert = std::vector<int32_t>(T * K),
                       shortlist = std::vector<int32_t>(G * M), home_rank = std::vector<int32_t>(T);

  explicit Layer(int ranks) {
    unsigned x = 12345;
    for (auto* array : {&hidden, &centroid, &up, &down, &codebook}) {
      for (auto& v : *array) {
        x = x * 1664525u + 1013904223u;
        v = static_cast<float>(x >> 8) / static_cast<float>(1 << 24) - 0.5f;
      }
    }
    for (int64_t g = 0; g < G; ++g) {
      for (int64_t i = 0; i < M; ++i) {
        shortlist[static_cast<std::size_t>(g * M + i)] = static_cast<int32_t>((3 * g + i) % E);
      }
    }
    for (int64_t t = 0; t < T; ++t) token(t);
    for (int64_t t = 0; t < T; ++t) {
      home_rank[static_cast<std::size_t>(t)] =
          static_cast<int32_t>(BlockPartition{T, ranks}.owner(t));
    }
  }

  static float dot(const float* a, const float* b) { return std::inner_product(a, a + d, b, 0.0f); }
  static float unit_dot(const float* h, const float* row) {
    return dot(h, row) / std::sqrt(dot(row, row));
  }

  void token(int64_t t) {
    const float* h = hidden.data() + t * d;
    int32_t best = 0;
    for (int32_t g = 1; g < G; ++g) {
      if (unit_dot(h, &codebook[g * d]) > unit_dot(h, &codebook[best * d])) best = g;
    }
    codeword[static_cast<std::size_t>(t)] = best;
    std::vector<int32_t> ids(shortlist.begin() + best * M, shortlist.begin() + (best + 1) * M);
    const auto score = [&](int32_t e) { return unit_dot(h, &centroid[e * d]); };
    std::sort(ids.begin(), ids.end(), [&](int32_t a, int32_t b) { return score(a) > score(b); });
    ids.resize(K);
    std::sort(ids.begin(), ids.end());
    float sum = 0;
    for (const int32_t e : ids) sum += std::exp(score(e));
    for (int64_t k = 0; k < K; ++k) {
      const int32_t e = ids[static_cast<std::size_t>(k)];
      expert[static_cast<std::size_t>(t * K + k)] = e;
      const float g = gate[static_cast<std::size_t>(t * K + k)] = std::exp(score(e)) / sum;
      for (int64_t j = 0; j < m; ++j) {
        const int64_t row = (e * m + j) * d;
        const float unit = std::max(0.0f, dot(h, &up[row]));
        for (int64_t i = 0; i < d; ++i) output[t * d + i] += g * unit * down[row + i];
      }
    }
  }

  /// Tokens and experts by rank; codebook and lists on rank 0.
  TraceLayer view(int rank, int ranks) {
    const BlockPartition tokens{T, ranks};
    const BlockPartition owners{E, ranks};
    const auto rows = [&](const char* name, auto& values, std::vector<int64_t> shape, int64_t begin,
                          int64_t count) {
      using Value = std::decay_t<decltype(values[0])>;
      const int64_t width = std::ssize(values) / shape[0];
      return StoredArray{name, dtype_of<Value>, shape, begin, count, values.data() + begin * width};
    };
    const int64_t t0 = tokens.begin(rank), tn = tokens.size(rank);
    const int64_t e0 = owners.begin(rank), en = owners.size(rank);
    const int64_t root = rank == 0 ? 1 : 0;
    return {2,
            K,
            0.0,
            "relu",
            {rows("hidden", hidden, {T, d}, t0, tn), rows("codeword", codeword, {T}, t0, tn),
             rows("expert", expert, {T, K}, t0, tn), rows("gate", gate, {T, K}, t0, tn),
             rows("output", output, {T, d}, t0, tn), rows("home_rank", home_rank, {T}, t0, tn),
             rows("centroid", centroid, {E, d}, e0, en), rows("up", up, {E, m, d}, e0, en),
             rows("down", down, {E, m, d}, e0, en), rows("codebook", codebook, {G, d}, 0, root * G),
             rows("shortlist", shortlist, {G, M}, 0, root * G)}};
  }
};

void trace(comm::Communicator& comm, const std::string& file, int64_t step,
           const std::string& fault) {
  Layer layer(comm.size());
  if (fault == "output") layer.output[5 * Layer::d + 1] += 0.01f;
  if (fault == "gate") layer.gate[6 * Layer::K] *= 1.01f;
  if (fault == "codeword") layer.codeword[4] = (layer.codeword[4] + 1) % 3;
  if (fault == "shortlist") layer.shortlist[7] = layer.shortlist[8];
  if (fault == "expert") layer.expert[3] = layer.expert[4];
  const std::vector<TraceLayer> layers = {layer.view(comm.rank(), comm.size())};
  TraceWriter(comm, file, TraceWriter::Mode::extend, "{}", "store_tool 1").add_step(step, layers);
}

int run(comm::Communicator& comm, const std::vector<std::string>& words) {
  try {
    if (words[0] == "save") save(comm, words[1], std::stoll(words[2]), std::stoll(words[3]));
    if (words[0] == "check") check(comm, words[1], std::stoll(words[2]));
    if (words[0] == "trace") {
      trace(comm, words[1], std::stoll(words[2]), words.size() > 3 ? words[3] : "");
    }
  } catch (const Error& e) {
    if (comm.rank() == 0) std::fprintf(stderr, "store_tool: %s\n", e.what());
    return static_cast<int>(e.code());
  }
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  const airmoe::comm::MpiEnvironment environment(&argc, &argv);
  const auto comm = airmoe::comm::make_mpi_communicator();
  return run(*comm, std::vector<std::string>(argv + 1, argv + argc));
}
