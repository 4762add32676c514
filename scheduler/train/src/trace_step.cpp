#include "scheduler/train/trace_step.hpp"

namespace airmoe::scheduler {

namespace {

StoredArray rows(const char* name, DType type, std::vector<int64_t> shape, int64_t begin,
                 int64_t count, const void* data) {
  return {name, type, std::move(shape), begin, count, data};
}

// Experts' values by block of expert id, whoever owns them.
StoredArray of_parameter(const char* name, Parameter& p, ExpertResidency& residency,
                         BlockStaging& staging) {
  return rows(name, DType::f32, p.shape, p.row_begin, p.row_count,
              staging.stage(residency, p.value.data(), p.row_size()));
}

}  // namespace

WriteResult add_trace_step(comm::Communicator& comm, Model& model, Engine& engine,
                           TraceWriter& writer, int64_t step, int64_t first_token, int64_t tokens) {
  engine.bring_to_host(Engine::Lists::current);
  const ModelConfig& config = model.config();
  const int rank = comm.rank();
  std::vector<RoutingRecord> records(model.moe_layers().size());
  std::vector<Buffer<int32_t>> home_ranks(records.size());
  std::vector<TraceLayer> layers(records.size());
  BlockStaging staging;
  for (std::size_t i = 0; i < records.size(); ++i) {
    MoeLayer& layer = *model.moe_layers()[i];
    RoutingRecord& record = records[i];
    engine.capture(i, record);
    const int64_t n = record.tokens;
    home_ranks[i] = Buffer<int32_t>(n, rank);
    TraceLayer& out = layers[i];
    out.layer = layer.layer();
    out.active = config.active;
    out.jitter = config.jitter;
    out.activation = name_of(config.expert_activation);
    const int64_t k = config.active;
    const int64_t d = config.dim;
    const auto of_experts = [&](const char* name, Parameter& p) {
      return of_parameter(name, p, layer.residency(), staging);
    };
    out.arrays = {rows("hidden", DType::f32, {tokens, d}, first_token, n, record.hidden.data()),
                  rows("codeword", DType::i32, {tokens}, first_token, n, record.codeword.data()),
                  rows("expert", DType::i32, {tokens, k}, first_token, n, record.expert.data()),
                  rows("gate", DType::f32, {tokens, k}, first_token, n, record.gate.data()),
                  rows("output", DType::f32, {tokens, d}, first_token, n, record.output.data()),
                  rows("home_rank", DType::i32, {tokens}, first_token, n, home_ranks[i].data()),
                  of_experts("centroid", layer.centroid()),
                  of_experts("up", layer.up()),
                  of_experts("down", layer.down())};
    if (layer.gate_proj() != nullptr) {
      out.arrays.push_back(of_experts("gate_proj", *layer.gate_proj()));
    }
    const BlockPartition& merged = layer.shortlists().merged_codewords();
    out.arrays.push_back(rows("codebook", DType::f32, {config.codewords, d}, 0,
                              rank == 0 ? config.codewords : 0, layer.codebook().codewords().data));
    out.arrays.push_back(rows("shortlist", DType::i32, {config.codewords, config.shortlist},
                              merged.begin(rank), merged.size(rank),
                              layer.shortlists().merged_lists().data()));
  }
  return writer.add_step(step, layers);
}

}  // namespace airmoe::scheduler
