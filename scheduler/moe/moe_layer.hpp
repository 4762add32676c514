#pragma once
// One distributed MoE layer: assign, dispatch, score, select, experts, combine, and their backward
// (design: "One MoE layer"). The selected experts are the exact global top K of the candidates,
// wherever these live, and every sum is exact: exchange strategy, placement, copies and rank count
// do not change a bit of the result.

#include <chrono>
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
#include "scheduler/exchange_config.hpp"
#include "scheduler/model_config.hpp"
#include "scheduler/moe/codebook_step.hpp"
#include "scheduler/moe/dispatch_plan.hpp"
#include "scheduler/moe/exchange_clock.hpp"
#include "scheduler/moe/phase_clock.hpp"
#include "scheduler/moe/placement_step.hpp"
#include "scheduler/moe/routes.hpp"
#include "scheduler/moe/shortlists.hpp"
#include "scheduler/parameter.hpp"
#include "scheduler/residency/expert_residency.hpp"
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
  int64_t count = 1;        ///< micro-batches of the step; index + 1 == count: the last one
  bool captured = false;    ///< capture() follows the passes of this training micro-batch
};

/// Local: d(balance loss) / d(gate) per selection of an expert, loss_scale * weight * E / (T K); 0
/// outside training.
float balance_slope(const ModelConfig& config, const MicroBatch& batch);

/// Sums over training micro-batches since reset, of this rank's home tokens unless said.
struct MoeCounters {
  int64_t tokens = 0;
  int64_t candidate_ranks = 0;    ///< sum of cover sizes: / tokens = lambda_candidate
  int64_t selected_ranks = 0;     ///< ranks with a selected expert: / tokens = lambda_selected
  int64_t revived_codewords = 0;  ///< restarted, the same on all ranks
  int64_t copies = 0;             ///< most experts of other owners that this rank held
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
  /// initialises them from `seed`. Memory per rank for n = E/R experts owned and c copies:
  /// n (2 m + 1) d parameters, twice that for moments, (n + c) (2 m + 1) d gradients in double,
  /// c (2 m + 1) d copied values, n d unit centroids, 4 E bytes of owners and as many of rows, G *
  /// R counts. Strategy selected: E d unit centroids and gradients on every rank and, as gather,
  /// all lists, G * M.
  MoeLayer(comm::Communicator& comm, const ModelConfig& config, int64_t layer, uint64_t seed,
           ParameterSet& parameters, experts::Path path = experts::Path::automatic,
           SumPrecision sums = SumPrecision::f64,
           const ExchangeConfig& exchange = {.exchange = Exchange::cover});

  /// Local.
  void begin_micro_batch(const MicroBatch& batch) { batch_ = batch; }
  void forward(ConstMatrix hidden, Matrix out) override;
  void backward(ConstMatrix d_out, Matrix d_hidden) override;

  /// Collective, once per optimizer step before the norm and the update: copies give their
  /// gradients back, sums become gradients, the centroids' pass through the projection to the
  /// sphere.
  void finish_gradients();
  /// Local, after parameters changed: drops copies, lists and unit centroids.
  void parameters_changed();

  /// Collective, after forward(): who was selected for each home token.
  void capture(RoutingRecord& record);
  /// Collective. Lists of the present codebook and centroids without jitter; a no-op if they are
  /// current.
  void rebuild_evaluation_lists();
  /// Collective. The same lists in shortlists() alone, for files: nobody is told what to score and
  /// no copy is fetched, the next forward rebuilds them.
  void rebuild_stored_lists();
  /// Local: takes the lists that this rank merges from a device, after its centroids and codebook.
  /// @param evaluation  they are the lists of the present state without jitter
  void adopt_lists(std::span<const int32_t> merged, bool evaluation);

  int64_t layer() const { return layer_; }
  int rank() const { return rank_; }
  const ModelConfig& config() const { return config_; }
  const ExchangeConfig& exchange_config() const { return exchange_; }
  /// The strategy that the present lists are routed for; never automatic.
  Exchange exchange() const { return routes_.exchange(); }
  router::Codebook& codebook() { return codebook_; }
  const router::Codebook& codebook() const { return codebook_; }
  bool codebook_initialised() const { return codebook_initialised_; }
  void set_codebook_initialised() { codebook_initialised_ = true; }
  const Shortlists& shortlists() const { return shortlists_; }
  const Routes& routes() const { return routes_; }
  ExpertResidency& residency() { return residency_; }
  const ExpertResidency& residency() const { return residency_; }
  PlacementStep& placement() { return placement_; }
  const PlacementStep& placement() const { return placement_; }
  /// Local. Of the owned experts, by ascending id; made by the first call after parameters changed.
  /// Shape: [owned, d]
  ConstMatrix unit_centroids();
  /// Local. Rows [first, first + count) of them: where they have not been made, as on a host whose
  /// device routes, these rows alone, in `scratch`.
  ConstMatrix unit_centroids(int64_t first, int64_t count, Buffer<float>& scratch) const;
  router::ExpertUsage& usage() { return usage_; }
  Parameter& centroid() { return *centroid_; }
  Parameter& up() { return *up_; }
  Parameter& down() { return *down_; }
  Parameter* gate_proj() { return gate_proj_; }
  MoeCounters& counters() { return counters_; }
  PhaseClock& clock() { return clock_; }
  ExchangeClock& exchange_clock() { return exchange_clock_; }
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

  // Home side: a token whose ties are not settled yet.
  struct TiedToken {
    int64_t present;  // part, index into plan_.present()
    int64_t token;    // of the part
  };
  // What one chunk of a micro-batch keeps from forward to backward, and its messages under way.
  struct Chunk {
    TrackedTicket rows, scores, cuts, result;
    Buffer<float> row_out, row_in, score_out, score_in;
    Buffer<router::Cut> cut_out, cut_in;
    Buffer<uint8_t> result_out, result_in;
    Buffer<float> saved;  // pre-activations
    int64_t pair_begin = 0, pair_end = 0;
    PairGrouping grouping;
    std::vector<TiedToken> tied;
  };

  // lists and placement (moe_lists.cpp)
  void rebuild_lists(std::span<const int32_t> which, const std::optional<router::Jitter>& jitter);
  void make_resident(std::span<const int32_t> ids);
  int64_t missing_rows(std::span<const int32_t> ids);
  void replan();
  void cut_chunks();
  void acquire_centroids();

  // forward
  void route(ConstMatrix hidden);
  void post_dispatch(ConstMatrix hidden);
  void unpack_tokens(int64_t c);
  void score(int64_t c);
  void fetch_experts(int64_t c);
  void run_experts(int64_t c);
  void share_usage();
  void finish_forward(Matrix out);
  // select where candidates are scored (moe_select.cpp)
  void begin_select();
  void post_scores(int64_t c);
  int64_t list_cover(int32_t part);
  void gather_token_scores(const Chunk& chunk, int64_t p, int64_t j);
  void cut_at_home(int64_t c);
  void post_cuts(int64_t c);
  void receive_cuts(int64_t c);
  int64_t cut_of(const TiedToken& token, std::size_t i) const;
  void resolve_ties(int64_t c);
  void apply_cuts(int64_t c);
  // select at home (moe_selected.cpp)
  void look_up_list(int32_t codeword);
  void select_at_home(ConstMatrix hidden);
  void select_token(int64_t place);
  void post_selected(ConstMatrix hidden);
  int64_t words_from(int r, int64_t c) const;
  void unpack_selected(int64_t c);
  void backward_at_home(ConstMatrix d_out);
  // backward
  void post_gradients(ConstMatrix d_out);
  void unpack_gradients(int64_t c);
  void differentiate(int64_t c);
  // rows back to the home ranks (moe_return.cpp)
  int64_t row_bytes(int64_t taken, int64_t width, bool with_d_gate) const;
  void post_return(int64_t c, int64_t width, bool with_d_gate, const Buffer<double>& partial,
                   int tag);
  void finish_return(int64_t c, int64_t width, bool with_d_gate, Buffer<double>& total);

  // capture (moe_capture.cpp)
  void capture_at_home(RoutingRecord& record) const;
  void capture_returned(RoutingRecord& record);
  std::pair<int64_t, int64_t> home_stream(int r) const;
  std::span<const CandidateSegment> segments_from(int r) const;

  void poll();
  const char* phase_name(const char* training, const char* evaluation) const {
    return batch_.training ? training : evaluation;
  }
  bool home_selects() const { return routes_.exchange() == Exchange::selected; }
  bool residency_shared() const {
    return routes_.exchange() == Exchange::gather ||
           (routes_.exchange() == Exchange::cover && routes_.copies());
  }
  bool jittered() const { return batch_.training && config_.jitter > 0.0f; }
  experts::PathShape path_shape() const;
  int64_t kept(int64_t candidates) const { return std::min(config_.active, candidates); }
  experts::ExpertTable table() const;
  experts::ExpertGradients gradients();
  MatrixView<double> unit_gradients();
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
  ExchangeConfig exchange_;
  int rank_, ranks_;
  int64_t dim_;
  double expert_quantum_;

  Parameter* centroid_;
  Parameter* up_;
  Parameter* down_;
  Parameter* gate_proj_ = nullptr;
  Buffer<float> unit_, inverse_norm_;  // of the centroids only if unit_current_
  bool unit_current_ = false;

  router::Codebook codebook_;
  bool codebook_initialised_ = false;
  CodebookStep codebook_step_;
  Shortlists shortlists_;
  ExpertResidency residency_;
  Routes routes_;
  PlacementStep placement_;
  ListState lists_ = ListState::none;
  std::vector<int32_t> chunk_begin_;  // [chunks + 1]: first part of each
  router::ExpertUsage usage_;
  MicroBatch batch_;
  MoeCounters counters_;
  PhaseClock clock_;
  ExchangeClock exchange_clock_;
  std::chrono::steady_clock::time_point last_poll_{};
  std::vector<int32_t> unique_ids_;
  double held_copies_ = 0, used_copies_ = 0;  // of the last steps with copies, this rank's
  Buffer<float> window_;                      // usage window of the owned experts, while they move

  // Strategy selected: unit centroids of all listed experts, rows as in centroids_.
  std::unique_ptr<ExpertResidency> centroids_;
  Buffer<float> all_unit_;
  Buffer<double> d_all_unit_;
  Buffer<int32_t> home_position_, home_slot_;  // [home tokens in home order, K]
  Buffer<float> home_gate_, home_d_gate_, home_d_score_;
  Buffer<float> home_lse_;  // [home tokens], in home order
  std::vector<int32_t> list_row_, list_owner_, list_slot_, owner_count_;
  std::vector<std::vector<Selected>> to_;             // [ranks]
  std::vector<std::vector<int64_t>> pairs_to_;        // [ranks]: pairs in stream order
  std::vector<int64_t> home_pair_, home_pair_begin_;  // pairs of the concatenated streams

  // Home side, one micro-batch.
  Buffer<int32_t> codeword_;
  router::CodewordOrder order_;
  DispatchPlan plan_;
  std::vector<Chunk> chunks_;
  int64_t home_tokens_ = 0;
  Buffer<float> hidden_home_, output_, balance_dot_, home_tile_;
  Buffer<double> total_;    // [home tokens, d]: what came back
  Buffer<double> balance_;  // [home tokens]: sum of gate * selections
  Buffer<float> token_scores_;
  Buffer<int32_t> token_ids_;
  Buffer<router::Cut> cuts_, token_cuts_;
  Buffer<int32_t> taken_, token_taken_;               // [home stream]: selected per (token, rank)
  std::vector<int64_t> segment_of_;                   // [ranks, present parts]
  std::vector<int64_t> segment_score_, segment_cut_;  // [home segments]: places in chunk buffers
  std::vector<int64_t> cuts_arriving_;
  std::vector<std::vector<int32_t>> tie_ids_out_, tie_ids_in_, ties_out_, ties_in_;  // [ranks]
  std::vector<std::size_t> tie_cursor_;
  std::vector<comm::Send<int32_t>> int_sends_;
  std::vector<comm::Recv<int32_t>> int_recvs_;
  std::vector<int64_t> token_sizes_;
  std::vector<int32_t> token_ranks_;
  std::vector<comm::Send<float>> float_sends_;
  std::vector<comm::Recv<float>> float_recvs_;
  std::vector<comm::Send<uint8_t>> byte_sends_;
  std::vector<comm::Recv<uint8_t>> byte_recvs_;

  // Candidate side, one micro-batch; tokens in group order.
  Buffer<float> hidden_, tile_, d_y_, dot_;
  Buffer<double> partial_;  // [tokens, d]: y, then d_hidden
  Buffer<double> share_;    // [tokens]: sum of gate * selections
  Buffer<int32_t> position_, pair_expert_, token_index_;
  Buffer<float> gate_, d_gate_, d_score_;
  Buffer<int64_t> pair_offset_;  // [tokens + 1]
  Buffer<int64_t> group_pairs_;  // [groups + 1]: before the cut
  Buffer<float> block_hidden_, block_d_y_, block_dot_, row_;
  Buffer<double> block_sum_, quantum_, block_quantum_;
  Buffer<int64_t> block_token_, block_offset_;
  PanelWorkspace panel_;
  router::AssignWorkspace assign_;
  router::CutWorkspace cut_workspace_;
  PairAccumulateWorkspace score_backward_;
  PairGrouping block_grouping_;
  experts::DenseWorkspace dense_;
  experts::GroupedWorkspace grouped_;
};

}  // namespace airmoe::scheduler
