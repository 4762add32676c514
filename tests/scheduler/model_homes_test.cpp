// Checkpoints and traces do not show who owns an expert: the same bytes for homes in blocks and
// anywhere, and a restore leaves homes in blocks.

#include <map>

#include "comm/stats_communicator.hpp"
#include "scheduler/store/stored_data.hpp"
#include "scheduler/train/host_engine.hpp"
#include "scheduler/train/model.hpp"
#include "scheduler/train/trace_step.hpp"
#include "tests/scheduler/residency_case.hpp"
#include "tests/scheduler/store_support.hpp"

namespace airmoe::test {
namespace {

using scheduler::Model;
using scheduler::ModelConfig;

constexpr int64_t kSequences = 4, kContext = 16;
constexpr int64_t kTokens = kSequences * kContext;

ModelConfig small_model() {
  ModelConfig c;
  c.layers = 2;
  c.dim = 16;
  c.heads = 2;
  c.kv_heads = 1;
  c.ffn_dim = 16;
  c.context = kContext;
  c.vocab = 31;
  c.moe_layers = {0, 1};
  c.experts = 41;
  c.active = 4;
  c.shortlist = 12;
  c.codewords = 5;
  c.expert_dim = 2;
  c.expert_activation = scheduler::ExpertActivation::swiglu;
  return c;
}

// Homes anywhere, codewords of one to three parts; with copies every candidate of a part is scored
// on a random rank of a random cover, without on its owner.
scheduler::Placement random_placement(const ModelConfig& c, int ranks, uint32_t seed, bool copies) {
  std::mt19937 random(seed);
  const auto below = [&](int n) { return static_cast<int32_t>(random() % n); };
  scheduler::Placement p;
  p.ranks = ranks;
  p.copies = copies;
  p.home = random_homes(c.experts, ranks, seed);
  p.part_begin = {0};
  for (int64_t g = 0; g < c.codewords; ++g)
    p.part_begin.push_back(p.part_begin.back() + 1 + below(3));
  for (int64_t part = 0; part < p.parts(); ++part) {
    p.primary.push_back(below(ranks));
    const int cover = 1 + below(ranks), first = below(ranks);
    for (int64_t j = 0; copies && j < c.shortlist; ++j) {
      p.candidate_rank.push_back(static_cast<uint16_t>((first + below(cover)) % ranks));
    }
  }
  return p;
}

enum class Homes { blocks, anywhere, anywhere_with_copies };

std::unique_ptr<Model> new_model(uint64_t seed) {
  return std::make_unique<Model>(world(), small_model(), seed, experts::Path::automatic,
                                 SumPrecision::f64,
                                 scheduler::ExchangeConfig{.exchange = scheduler::Exchange::cover});
}

class ModelHomes : public ::testing::TestWithParam<Homes> {
 protected:
  void TearDown() override { world().barrier(); }  // rank 0 removes the directory

  // A model after one micro-batch: codebook, lists and routing exist.
  static std::unique_ptr<Model> make(uint64_t seed, Homes homes) {
    std::unique_ptr<Model> model = new_model(seed);
    uint32_t draw = 5;
    for (auto& layer : model->moe_layers()) {
      scheduler::Placement p = random_placement(small_model(), world().size(), draw++,
                                                homes == Homes::anywhere_with_copies);
      if (homes == Homes::blocks) p.home = block_homes(small_model().experts, world().size());
      layer->placement().fix(std::move(p), scheduler::Exchange::cover);
    }
    train_step(*model);
    for (auto& layer : model->moe_layers()) {
      EXPECT_EQ(layer->residency().in_blocks(), homes == Homes::blocks || world().size() == 1);
    }
    return model;
  }
  // Forward and backward of one micro-batch: codebook, lists and routing exist afterwards.
  static void train_step(Model& m) {
    const BlockPartition sequences{kSequences, world().size()};
    const int64_t first = sequences.begin(world().rank()) * kContext;
    const int64_t mine = sequences.size(world().rank());
    std::vector<int32_t> tokens, targets;
    for (int64_t t = 0; t < mine * kContext; ++t) {
      tokens.push_back(static_cast<int32_t>((first + t) * 7 % 31));
      targets.push_back(static_cast<int32_t>((first + t) * 5 % 31));
    }
    scheduler::MicroBatch batch;
    batch.range = {kTokens, first};
    batch.loss_scale = 1.0f / static_cast<float>(kTokens);
    m.begin_micro_batch(batch);
    m.trunk().forward_backward(tokens, targets, mine, batch.loss_scale);
    for (auto& layer : m.moe_layers()) layer->finish_gradients();
  }
  // Moments of experts that say which element they are.
  static void number_moments(Model& m) {
    for (auto& layer : m.moe_layers()) {
      for (scheduler::Parameter* p :
           {&layer->centroid(), &layer->up(), &layer->down(), layer->gate_proj()}) {
        const int64_t size = p->row_size();
        for (int64_t i = 0; i < p->local_size(); ++i) {
          const int64_t at = layer->residency().expert(i / size) * size + i % size;
          p->moment1[i] = static_cast<float>(at);
          p->moment2[i] = static_cast<float>(2 * at + 1);
        }
      }
    }
  }
  std::string save(Model& m, int64_t step) {
    return save_checkpoint(world(), dir.path(), test_meta(step), m.state_for_saving().arrays).path;
  }
  std::string trace(Model& m, const char* name) {
    scheduler::TraceWriter writer(world(), dir.file(name), scheduler::TraceWriter::Mode::create,
                                  "{}", "airmoe-test");
    const BlockPartition sequences{kSequences, world().size()};
    scheduler::HostEngine engine(world(), m, {});
    add_trace_step(world(), m, engine, writer, 1, sequences.begin(world().rank()) * kContext,
                   kTokens);
    return writer.path();
  }
  // The bytes of every dataset by name.
  static std::map<std::string, std::vector<char>> contents(const std::string& path) {
    const scheduler::StoredFile file = scheduler::read_stored_file(path);
    scheduler::StoredData data(file);
    std::map<std::string, std::vector<char>> all;
    for (const auto& d : file.datasets) {
      std::vector<char>& bytes = all[d.path];
      bytes.resize(static_cast<std::size_t>(d.bytes()));
      data.read_rows(d, 0, d.rows(), bytes.data());
    }
    return all;
  }
  static void expect_same(const std::string& a, const std::string& b) {
    const auto x = contents(a), y = contents(b);
    EXPECT_GT(x.size(), 10u);
    ASSERT_EQ(x.size(), y.size());
    for (const auto& [name, bytes] : x) EXPECT_EQ(y.at(name), bytes) << name;
  }

  TestDirectory dir{world()};
};

TEST_P(ModelHomes, ACheckpointDoesNotShowThem) {
  const auto blocks = make(3, Homes::blocks);
  const auto other = make(3, GetParam());
  number_moments(*blocks);
  number_moments(*other);
  expect_same(save(*blocks, 1), save(*other, 2));
}

TEST_P(ModelHomes, ATraceDoesNotShowThem) {
  const auto blocks = make(3, Homes::blocks);
  const auto other = make(3, GetParam());
  expect_same(trace(*blocks, "blocks.h5"), trace(*other, "other.h5"));
}

TEST_P(ModelHomes, ARestoreLeavesThemInBlocks) {
  const auto before = make(3, GetParam());
  number_moments(*before);
  const std::string saved = save(*before, 1);
  const std::unique_ptr<Model> fresh = new_model(4);
  restore_checkpoint(world(), scheduler::open_checkpoint(world(), saved),
                     fresh->state_for_restoring());
  fresh->restored();
  for (auto& layer : fresh->moe_layers()) EXPECT_TRUE(layer->residency().in_blocks());
  expect_same(saved, save(*fresh, 2));
}

INSTANTIATE_TEST_SUITE_P(All, ModelHomes,
                         ::testing::Values(Homes::blocks, Homes::anywhere,
                                           Homes::anywhere_with_copies));

}  // namespace
}  // namespace airmoe::test
