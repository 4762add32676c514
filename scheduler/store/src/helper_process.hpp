#pragma once
// Runs a function in a forked copy of this process: what may hang or crash there cannot do so here.

#include <functional>
#include <string>

namespace airmoe::scheduler {

/// Returns what `work` returns, computed in a child process; throws the airmoe::Error that it
/// threw. Error(ExitCode::bad_data), beginning with `what`, when the child crashed or took longer
/// than `seconds` (it is killed then). `work` must not communicate; its other effects are lost.
/// Local.
///
/// Safe beside MPI: the child makes no MPI call and ends with _exit. When the system cannot fork
/// (memory limits), `work` runs here.
std::string run_in_helper(const std::string& what, double seconds,
                          const std::function<std::string()>& work);

}  // namespace airmoe::scheduler
