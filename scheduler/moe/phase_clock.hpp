#pragma once
// Where the time of a layer goes.

#include <array>
#include <chrono>
#include <cstdint>

namespace airmoe::scheduler {

enum class Phase : uint8_t {
  codebook,
  lists,
  placement,
  copies,
  assign,
  dispatch,
  score,
  select,
  experts,
  combine,
  backward_dispatch,
  backward_compute,
  backward_combine,
  count
};

inline constexpr std::array<const char*, static_cast<std::size_t>(Phase::count)> kPhaseNames = {
    "codebook",
    "lists",
    "placement",
    "copies",
    "assign",
    "dispatch",
    "score",
    "select",
    "experts",
    "combine",
    "backward_dispatch",
    "backward_compute",
    "backward_combine"};

/// Seconds per phase since reset(). Local.
class PhaseClock {
 public:
  /// Adds the time until it goes out of scope to a phase.
  class Scope {
   public:
    Scope(PhaseClock& clock, Phase phase)
        : clock_(clock), phase_(phase), start_(std::chrono::steady_clock::now()) {}
    ~Scope() {
      clock_.seconds_[static_cast<std::size_t>(phase_)] +=
          std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
    }
    Scope(const Scope&) = delete;
    Scope& operator=(const Scope&) = delete;

   private:
    PhaseClock& clock_;
    Phase phase_;
    std::chrono::steady_clock::time_point start_;
  };

  double seconds(Phase phase) const { return seconds_[static_cast<std::size_t>(phase)]; }
  double total() const {
    double sum = 0.0;
    for (const double s : seconds_) sum += s;
    return sum;
  }
  void reset() { seconds_.fill(0.0); }

 private:
  std::array<double, static_cast<std::size_t>(Phase::count)> seconds_{};
};

}  // namespace airmoe::scheduler
