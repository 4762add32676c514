#pragma once
// One distributed MoE layer: assign, dispatch, score, select, experts, combine, and their backward
// (design: "One MoE layer"). Exchange strategy `cover` without copies: a token goes once to each
// rank that holds any candidate of its codeword; the selected experts are the exact global top K of
// the candidates, wherever these live.

#include <cstdint>
#include <span>
#include <vector>

#include "comm/communicator.hpp"
#include "experts/cost_model.hpp"
#include "experts/dense_path.hpp"
#include "experts/grouped_path.hpp"
#include "router/assign.hpp"
#include "router/balance.hpp"
#include "router/codebook.hpp"
#include "router/score_backward.hpp"
#include "router/select.hpp"
#include "scheduler/model_config.hpp"
#include "scheduler/moe/codebook_step.hpp"
#include "scheduler/moe/dispatch_plan.hpp"
#include "scheduler/moe/phase_clock.hpp"
#include "scheduler/moe/shortlists.hpp"
#include "scheduler/parameter.hpp"
#include "scheduler/sum_precision.hpp"
#include "scheduler/trunk/moe_slot.hpp"

namespace airmoe::scheduler {

/// What the next forward and backward are about. The same on all ranks but for range.first.
struct MicroBatch {
  uint32_t step = 1;        ///< optimizer step, from 1
  uint32_t index = 0;       ///< micro-batch within the step
  bool training = true;     ///< false: no codebook update, no jitter, nothing kept for a backward
  TokenRange range;         ///< tokens of this micro-batch; ranks hold ascending, contiguous parts
  float loss_scale = 0.0f;  ///< 1 / tokens of the whole step; scales the balance loss
};

/// Sums over training micro-batches since reset, of this rank's home tokens unless said.
struct MoeCounters {
  int64_t tokens = 0;
  int64_t candidate_ranks = 0;    ///< sum of cover sizes: / tokens = lambda_candidate
  int64_t selected_ranks = 0;     ///< ranks with a selected expert: / tokens = lambda_selected
  int64_t revived_codewords = 0;  ///< restarted, the same on all ranks
  double balance_loss = 0.0;      ///< this rank's experts' share, weighted like the LM loss
};

/// One micro-batch's routing as its home rank sees it; see MoeLayer::capture().
struct RoutingRecord {
  int64_t tokens = 0;         ///< n, local
  Buffer<float> hidden;       ///< what forward() was given. Shape: [n, d]
  Buffer<float> output;       ///< what it returned. Shape: [n, d]
  Buffer<int32_t> codeword;   ///< Shape: [n]
  Buffer<int32_t> expert;     ///< global ids, ascending. Shape: [n, K]
  Buffer<float> gate;         ///< Shape: [n, K]
  Buffer<float> log_sum_exp;  ///< of the selected scores. Shape: [n]
};

class MoeLayer : public MoeSlot {
 public:
  /// Collective. Adds /layers/ii/moe/{centroid, up, down[, gate_proj]} to `parameters` and
  /// initialises them from `seed`. Memory per rank for E/R = n experts: n * (2 m + 1) * d
  /// parameters, as many gradients and sums of them in double, twice that for moments, n * d unit
  /// centroids, G * min(M, n) candidate rows.
  MoeLayer(comm::Communicator& comm, const ModelConfig& config, int64_t layer, uint64_t seed,
           ParameterSet& parameters, experts::Path path = experts::Path::automatic,
           SumPrecision sums = SumPrecision::f64);

  /// Local.
  void begin_micro_batch(const MicroBatch& batch) { batch_ = batch; }
  void forward(ConstMatrix hidden, Matrix out) override;
  void backward(ConstMatrix d_out, Matrix d_hidden) override;

  /// Local, once per optimizer step before the norm and the update: rounds the sums of gradients to
  /// float and takes those of centroids through the projection to the sphere.
  void finish_gradients();
  /// Local, after parameters changed: projects centroids, drops the lists.
  void parameters_changed();

  /// Collective, after forward(): who was selected for each home token.
  void capture(RoutingRecord& record);
  /// Collective. Lists of the present codebook and centroids without jitter; a no-op if they are
  /// current.
  void rebuild_evaluation_lists();

  int64_t layer() const { return layer_; }
  int rank() const { return rank_; }
  const ModelConfig& config() const { return config_; }
  router::Codebook& codebook() { return codebook_; }
  const router::Codebook& codebook() const { return codebook_; }
  bool codebook_initialised() const { return codebook_initialised_; }
  void set_codebook_initialised() { codebook_initialised_ = true; }
  const Shortlists& shortlists() const { return shortlists_; }
  ConstMatrix unit_centroids() const { return {unit_.data(), local_experts_, config_.dim}; }
  router::ExpertUsage& usage() { return usage_; }
  Parameter& centroid() { return *centroid_; }
  Parameter& up() { return *up_; }
  Parameter& down() { return *down_; }
  Parameter* gate_proj() { return gate_proj_; }
  MoeCounters& counters() { return counters_; }
  PhaseClock& clock() { return clock_; }
  const DispatchPlan& plan() const { return plan_; }
  /// Seconds inside matrix-product kernels so far (assign, score, experts and the dense backward).
  double kernel_seconds() const {
    return panel_.seconds + assign_.panel.seconds + dense_.panel.seconds + grouped_.panel.seconds +
           dense_.accumulate.seconds + grouped_.accumulate.seconds + score_backward_.seconds;
  }
  /// The path that the last forward took.
  experts::Path last_path() const { return path_taken_; }

 private:
  enum class ListState : uint8_t { none, training, evaluation };

  // forward
  void route(ConstMatrix hidden);
  void dispatch(ConstMatrix hidden);
  void score();
  void select();
  void report_scores();
  void cut_at_home();
  void cut_locally();
  void apply_cuts();
  void run_experts();
  void combine(Matrix out);
  // backward
  void dispatch_gradients(ConstMatrix d_out);
  void differentiate();
  void return_gradients(Matrix d_hidden);

  const char* phase_name(const char* training, const char* evaluation) const {
    return batch_.training ? training : evaluation;
  }
  float balance_slope() const;
  int64_t return_width() const;
  experts::PathShape path_shape() const;
  int64_t kept(int64_t candidates) const { return std::min(config_.active, candidates); }
  experts::ExpertTable table() const;
  experts::ExpertGradients gradients();
  SelectionView selection(int64_t token_begin, int64_t tokens) const {
    return {tokens, pair_offset_.data() + token_begin, position_.data(), gate_.data()};
  }
  // Rows of `width` floats from each peer's stream to its counterpart, peers ascending on both
  // sides.
  void exchange_rows(const float* out, const std::vector<int64_t>& out_rows, float* in,
                     const std::vector<int64_t>& in_rows, int64_t width, int tag);
  // Sums of rows over the candidate ranks of each home token; see moe_return.cpp.
  void return_rows(const Buffer<double>& partial, int64_t width, int tag);
  int64_t row_bytes(int64_t taken, int64_t width) const;
  // Calls visit(count) for blocks of at most kBlockTokens tokens that have pairs
  // (active_blocks.hpp).
  template <class Visit>
  void for_each_active_block(const TokenGroup& group, Visit&& visit);

  static constexpr int64_t kBlockTokens = 64;

  comm::Communicator& comm_;
  ModelConfig config_;
  int64_t layer_;
  uint64_t seed_;
  experts::Path path_;
  experts::Path path_taken_ = experts::Path::dense;
  SumPrecision sums_;
  int rank_, ranks_;
  int64_t dim_, local_experts_;
  int32_t first_expert_;

  Parameter* centroid_;
  Parameter* up_;
  Parameter* down_;
  Parameter* gate_proj_ = nullptr;
  Buffer<float> unit_, inverse_norm_;

  router::Codebook codebook_;
  bool codebook_initialised_ = false;
  CodebookStep codebook_step_;
  Shortlists shortlists_;
  ListState lists_ = ListState::none;
  router::ExpertUsage usage_;
  MicroBatch batch_;
  MoeCounters counters_;
  PhaseClock clock_;

  // Home side, one micro-batch.
  Buffer<int32_t> codeword_;
  router::CodewordOrder order_;
  DispatchPlan plan_;
  int64_t home_tokens_ = 0;
  Buffer<float> sorted_, packed_, output_, balance_dot_, row_out_, row_in_;
  Buffer<uint8_t> return_out_, return_in_;
  Buffer<double> total_;  // [home tokens, width]: what return_rows() brought back
  Buffer<float> score_in_, token_scores_;
  Buffer<router::Cut> cut_out_, cut_in_, cuts_, token_cuts_;
  Buffer<int32_t> taken_, token_taken_;               // [home stream]: selected per (token, rank)
  std::vector<int64_t> segment_score_, segment_cut_;  // first element of a home segment
  std::vector<int64_t> segment_of_;                   // [rank * present + i], -1: none
  std::vector<int64_t> token_sizes_;
  std::vector<int> token_ranks_;
  std::vector<int64_t> home_rows_, candidate_rows_;
  std::vector<comm::Send<float>> float_sends_;
  std::vector<comm::Recv<float>> float_recvs_;
  std::vector<comm::Send<uint8_t>> byte_sends_;
  std::vector<comm::Recv<uint8_t>> byte_recvs_;

  // Candidate side, one micro-batch; tokens in group order.
  Buffer<float> hidden_, tile_, score_out_, d_y_, dot_;
  Buffer<double> partial_;  // [tokens, width]: y, then d_hidden
  Buffer<int32_t> position_, pair_expert_, noise_index_;
  Buffer<float> gate_, saved_, d_gate_, d_score_;
  Buffer<int64_t> pair_offset_;  // [tokens + 1]
  Buffer<int64_t> group_pairs_;  // [groups + 1]: before the cut
  Buffer<float> block_hidden_, block_d_y_, block_dot_;
  Buffer<double> block_sum_, quantum_, block_quantum_;
  Buffer<int64_t> block_token_, block_offset_;
  PanelWorkspace panel_;
  router::AssignWorkspace assign_;
  router::CutWorkspace cut_workspace_;
  PairAccumulateWorkspace score_backward_;
  experts::DenseWorkspace dense_;
  experts::GroupedWorkspace grouped_;
  PairGrouping grouping_;  // of all pairs (grouped path) or of a block (dense backward)
};

}  // namespace airmoe::scheduler
