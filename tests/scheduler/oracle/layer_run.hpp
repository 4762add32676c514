#pragma once
// The MoE layer on a communicator, loaded with a Problem; results come back global and in full.

#include <memory>
#include <span>

#include <mpi.h>

#include "comm/base/partition.hpp"
#include "comm/mpi_backend.hpp"
#include "scheduler/moe/moe_layer.hpp"
#include "tests/scheduler/oracle/moe_problem.hpp"

namespace airmoe::oracle {

using scheduler::MicroBatch;
using scheduler::MoeLayer;
using scheduler::ParameterSet;

inline constexpr uint64_t kSeed = 7;
inline constexpr int64_t kLayer = 2;

/// How tokens are spread: evenly; none on rank 0; all on the first or on the last rank.
enum class Split { even, none_on_first, all_on_first, all_on_last };
inline constexpr Split kSplits[] = {Split::even, Split::none_on_first, Split::all_on_first,
                                    Split::all_on_last};

/// This rank's tokens are [first, first + count).
struct Part {
  int64_t first, count;
};
inline Part part_of(Split split, int64_t tokens, int rank, int ranks) {
  if (split == Split::all_on_first) return rank == 0 ? Part{0, tokens} : Part{tokens, 0};
  if (split == Split::all_on_last) return rank == ranks - 1 ? Part{0, tokens} : Part{0, 0};
  if (split == Split::even || ranks == 1) {
    const BlockPartition even{tokens, ranks};
    return {even.begin(rank), even.size(rank)};
  }
  if (rank == 0) return {0, 0};
  const BlockPartition others{tokens, ranks - 1};
  return {others.begin(rank - 1), others.size(rank - 1)};
}

/// A communicator of this process alone: the same problem on one rank, whatever the run's size.
inline std::unique_ptr<comm::Communicator> make_alone() {
  return comm::make_mpi_communicator(MPI_COMM_SELF, {.deadline_seconds = 60});
}

/// Collective: the parts of all ranks, one after the other.
template <class T>
std::vector<T> gather(comm::Communicator& comm, const T* data, int64_t count) {
  std::vector<int64_t> counts(comm.size());
  comm.all_gather(std::span<const int64_t>(&count, 1), std::span<int64_t>(counts));
  int64_t total = 0;
  for (const int64_t n : counts) total += n;
  std::vector<T> all(total);
  comm.all_gather_v(std::span<const T>(data, count), std::span<T>(all), counts);
  return all;
}

/// Shapes as in Arrays; gradients empty until a backward. Global.
struct Outcome {
  std::vector<int32_t> codeword, expert;
  std::vector<float> gate, log_sum_exp, hidden, output;
  double balance_loss = 0.0;
  Arrays<float> gradient;
};

class LayerRun {
 public:
  LayerRun(comm::Communicator& communicator, const Problem& problem, Split split,
           experts::Path path = experts::Path::dense,
           scheduler::SumPrecision sums = scheduler::SumPrecision::f64,
           const scheduler::ExchangeConfig& exchange = {.exchange = scheduler::Exchange::cover,
                                                        .move_homes = false})
      : comm(communicator),
        part(part_of(split, problem.tokens, comm.rank(), comm.size())),
        layer(communicator, problem.config, kLayer, kSeed, parameters, path, sums, exchange),
        tokens_(problem.tokens),
        dim_(problem.config.dim) {
    load(problem.arrays);
  }

  /// Local: parameters, and the codebook unless it is empty (then training makes one).
  void load(const Arrays<float>& a) {
    copy_rows(layer.centroid(), a.centroid);
    copy_rows(layer.up(), a.up);
    copy_rows(layer.down(), a.down);
    if (layer.gate_proj() != nullptr) copy_rows(*layer.gate_proj(), a.gate_proj);
    layer.parameters_changed();
    if (a.codebook.empty()) return;
    std::copy(a.codebook.begin(), a.codebook.end(), layer.codebook().codewords().data);
    std::copy(a.codebook.begin(), a.codebook.end(), layer.codebook().sums().data);
    std::fill(layer.codebook().counts().begin(), layer.codebook().counts().end(), 1.0f);
    layer.set_codebook_initialised();
  }

  MicroBatch batch(bool training, float loss_scale, uint32_t step = 1, uint32_t index = 0) const {
    return {step, index, training, {tokens_, part.first}, loss_scale};
  }

  /// Collective: all shortlists in list order. Shape: [G, M]
  std::vector<int32_t> gather_lists() {
    const std::span<const int32_t> mine = layer.shortlists().merged_lists();
    return gather(comm, mine.data(), std::ssize(mine));
  }

  /// Collective. `hidden` is global; the output of this rank's tokens, [count, d].
  std::vector<float> forward(const std::vector<float>& hidden, const MicroBatch& batch) {
    layer.begin_micro_batch(batch);
    layer.counters() = {};
    std::vector<float> out(part.count * dim_, -1.0f);
    layer.forward({hidden.data() + part.first * dim_, part.count, dim_},
                  {out.data(), part.count, dim_});
    return out;
  }

  /// Collective. `d_out` is global; the gradient of this rank's tokens.
  std::vector<float> backward(const std::vector<float>& d_out) {
    std::vector<float> d_hidden(part.count * dim_, -1.0f);
    layer.backward({d_out.data() + part.first * dim_, part.count, dim_},
                   {d_hidden.data(), part.count, dim_});
    return d_hidden;
  }

  /// Collective. One forward with capture; with `backward`, also gradients of zero-initialised
  /// sums.
  Outcome run(const Arrays<float>& a, const MicroBatch& batch, bool with_backward) {
    Outcome o;
    const std::vector<float> out = forward(a.hidden, batch);
    o.output = gather(comm, out.data(), std::ssize(out));
    o.balance_loss = comm.all_reduce_value(layer.counters().balance_loss, comm::Reduction::sum);
    scheduler::RoutingRecord record;
    layer.capture(record);
    o.codeword = gather(comm, record.codeword.data(), record.tokens);
    const int64_t pairs = record.tokens * layer.config().active;
    o.expert = gather(comm, record.expert.data(), pairs);
    o.gate = gather(comm, record.gate.data(), pairs);
    o.log_sum_exp = gather(comm, record.log_sum_exp.data(), record.tokens);
    o.hidden = gather(comm, record.hidden.data(), record.tokens * dim_);
    recorded_output = gather(comm, record.output.data(), record.tokens * dim_);
    if (!with_backward) return o;
    parameters.zero_gradients();
    const std::vector<float> d_hidden = backward(a.d_out);
    layer.finish_gradients();
    o.gradient.hidden = gather(comm, d_hidden.data(), std::ssize(d_hidden));
    o.gradient.centroid = gather_gradient(layer.centroid());
    o.gradient.up = gather_gradient(layer.up());
    o.gradient.down = gather_gradient(layer.down());
    if (layer.gate_proj() != nullptr) o.gradient.gate_proj = gather_gradient(*layer.gate_proj());
    return o;
  }

  std::vector<float> gather_gradient(scheduler::Parameter& p) {
    std::vector<float> blocks(p.local_size());
    layer.residency().to_blocks(p.gradient.data(), p.row_size(), blocks.data());
    return gather<float>(comm, blocks.data(), p.local_size());
  }

  comm::Communicator& comm;
  Part part;
  ParameterSet parameters;
  MoeLayer layer;
  std::vector<float> recorded_output;  ///< what capture() said; global

 private:
  static void copy_rows(scheduler::Parameter& p, const std::vector<float>& all) {
    std::copy_n(all.data() + p.row_begin * p.row_size(), p.local_size(), p.value.data());
  }

  int64_t tokens_, dim_;
};

}  // namespace airmoe::oracle
