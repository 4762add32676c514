#pragma once
// airmoe-study --run: the strategies on the ranks at hand, measured beside predicted.

#include "apps/study/study_options.hpp"
#include "comm/base/error.hpp"
#include "comm/communicator.hpp"

namespace airmoe::study {

/// Collective. Runs one optimizer step of a real MoE layer on made-up clustered tokens under each
/// strategy, predicts its traffic from the routing that the layer had, and prints both. The same
/// step is repeated for the times. Throws Error(ExitCode::failure) on all ranks when any byte count
/// of any rank and phase differs from the prediction.
ExitCode run_strategies(const Options& options, comm::Communicator& comm);

}  // namespace airmoe::study
