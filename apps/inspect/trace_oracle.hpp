#pragma once
// The MoE layer by its definition, token by token in double precision, on the arrays of a trace.
// Shares no code with the layer that wrote it.

#include <cstdint>
#include <string>
#include <vector>

namespace airmoe::inspect {

/// One layer of one traced step; shapes and meaning as in scheduler/store/trace.hpp.
struct TraceArrays {
  int64_t tokens = 0, dim = 0, codewords = 0, list_length = 0, experts = 0, active = 0, width = 0;
  double jitter = 0;
  std::string activation;
  std::vector<float> hidden, gate, output, centroid, up, down, gate_proj, codebook;
  std::vector<int32_t> codeword, expert, shortlist, home_rank;
};

/// Largest differences between trace and recomputation, and how many tokens exceed what rounding
/// (and jitter, where there was any) explains.
struct TraceErrors {
  double codeword_gap = 0;  ///< cosine of the best codeword minus that of the stored one
  double score_gap = 0;     ///< best score left out minus worst score taken
  double gate_error = 0;
  double output_error = 0;  ///< absolute
  double output_size = 0;   ///< largest |output|, to compare with
  int64_t bad_codewords = 0, bad_selections = 0, bad_gates = 0, bad_outputs = 0;
  int64_t first_bad_token = -1;
};

TraceErrors compare_with_oracle(const TraceArrays& trace);

}  // namespace airmoe::inspect
