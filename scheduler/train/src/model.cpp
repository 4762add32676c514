#include "scheduler/train/model.hpp"

#include <algorithm>

#include "comm/base/error.hpp"

namespace airmoe::scheduler {

Model::Model(comm::Communicator& comm, const ModelConfig& config, uint64_t seed, experts::Path path,
             SumPrecision sums, const ExchangeConfig& exchange)
    : config_(config), parameters_(processor_share(comm)) {
  std::vector<MoeSlot*> slots(config.layers, nullptr);
  for (const int64_t layer : config.moe_layers) {
    moe_layers_.push_back(
        std::make_unique<MoeLayer>(comm, config, layer, seed, parameters_, path, sums, exchange));
    slots[layer] = moe_layers_.back().get();
  }
  trunk_ = std::make_unique<Trunk>(config, parameters_, seed, slots);
}

void Model::begin_micro_batch(const MicroBatch& batch) {
  for (auto& layer : moe_layers_) layer->begin_micro_batch(batch);
}

void Model::parameters_changed() {
  for (auto& layer : moe_layers_) layer->parameters_changed();
}

void Model::restored() {
  for (auto& layer : moe_layers_) {
    layer->residency().reset_homes();
    layer->set_codebook_initialised();
  }
  restored_shortlists_.clear();
  parameters_changed();
}

int64_t Model::parameter_count() const {
  int64_t count = 0;
  for (const auto& p : parameters_.all()) count += p->shape[0] * p->row_size();
  return count;
}

MoeLayer& Model::layer_of(const Parameter& parameter) {
  for (auto& layer : moe_layers_) {
    MoeLayer& l = *layer;
    for (const Parameter* p : {&l.centroid(), &l.up(), &l.down(), l.gate_proj()}) {
      if (p == &parameter) return l;
    }
  }
  fail(ExitCode::failure, "{} belongs to no MoE layer", parameter.name);
}

std::vector<StateArray> Model::parameter_arrays(BlockStaging* staging) {
  std::vector<StateArray> arrays;
  for (auto& p : parameters_.all()) {
    StateArray a;
    a.shape = p->shape;
    a.replicated = p->sharding == Sharding::replicated;
    a.row_begin = p->row_begin;
    a.row_count = p->row_count;
    if (!a.replicated) a.options = {"experts"};
    const std::pair<std::string, float*> parts[] = {
        {p->name, p->value.data()},
        {"/optimizer/moment1" + p->name, p->moment1.data()},
        {"/optimizer/moment2" + p->name, p->moment2.data()}};
    for (const auto& [path, data] : parts) {
      a.path = path;
      const bool staged = staging != nullptr && !a.replicated;
      a.data = staged ? staging->stage(layer_of(*p).residency(), data, p->row_size()) : data;
      arrays.push_back(a);
    }
  }
  return arrays;
}

void Model::add_router_arrays(MoeLayer& layer, int32_t* shortlist,
                              std::vector<StateArray>& arrays) {
  const std::string base = fmt::format("/layers/{:02d}/router/", layer.layer());
  router::Codebook& codebook = layer.codebook();
  const int64_t g = config_.codewords;
  const auto replicated = [&](const char* name, std::vector<int64_t> shape, float* data) {
    StateArray a;
    a.path = base + name;
    a.shape = std::move(shape);
    a.replicated = true;
    a.data = data;
    a.options = {"codewords", "dim"};
    arrays.push_back(a);
  };
  replicated("codebook", {g, config_.dim}, codebook.codewords().data);
  replicated("counts", {g}, codebook.counts().data());
  replicated("sums", {g, config_.dim}, codebook.sums().data);
  const BlockPartition& merged = layer.shortlists().merged_codewords();
  StateArray a;
  a.path = base + "shortlist";
  a.dtype = DType::i32;
  a.shape = {g, config_.shortlist};
  a.row_begin = merged.begin(layer.rank());
  a.row_count = merged.size(layer.rank());
  a.data = shortlist;
  a.options = {"codewords", "shortlist"};
  arrays.push_back(a);
}

StateForSaving Model::state_for_saving() {
  // First the lists: fetching copies for them may move the arrays of parameters.
  for (auto& layer : moe_layers_) layer->rebuild_stored_lists();
  StateForSaving state;
  state.arrays = parameter_arrays(&state.staging);
  state.shortlists.resize(moe_layers_.size());
  for (std::size_t i = 0; i < moe_layers_.size(); ++i) {
    MoeLayer& layer = *moe_layers_[i];
    const std::span<const int32_t> lists = layer.shortlists().merged_lists();
    state.shortlists[i].ensure(std::ssize(lists));
    std::copy(lists.begin(), lists.end(), state.shortlists[i].begin());
    add_router_arrays(layer, state.shortlists[i].data(), state.arrays);
  }
  return state;
}

std::vector<StateArray> Model::state_for_restoring() {
  std::vector<StateArray> arrays = parameter_arrays(nullptr);
  restored_shortlists_.resize(moe_layers_.size());
  for (std::size_t i = 0; i < moe_layers_.size(); ++i) {
    Buffer<int32_t>& lists = restored_shortlists_[i];
    lists.ensure(std::ssize(moe_layers_[i]->shortlists().merged_lists()));
    add_router_arrays(*moe_layers_[i], lists.data(), arrays);
  }
  return arrays;
}

}  // namespace airmoe::scheduler
