#pragma once
// Which execution path is the faster one for a block of work.

#include <cstdint>
#include <string>

namespace airmoe::experts {

enum class Path : uint8_t { automatic, dense, grouped };

/// One forward on one rank.
struct Workload {
  int64_t tokens = 0;           ///< n
  int64_t groups = 0;           ///< codewords present: n / groups tokens share candidates
  int64_t pairs = 0;            ///< selected (token, expert) pairs
  int64_t candidate_pairs = 0;  ///< (token, resident candidate) pairs
  int64_t expert_dim = 1;       ///< m
  int64_t dim = 0;              ///< d
};

/// Predicted seconds of forward and backward. Local, pure.
double predict_dense_seconds(const Workload& work);
double predict_grouped_seconds(const Workload& work);
/// The path with the smaller prediction.
Path choose_path(const Workload& work);

const char* name_of(Path path);
/// "auto", "dense" or "grouped"; throws Error(ExitCode::usage) for any other name.
Path parse_path(const std::string& name);

}  // namespace airmoe::experts
