#pragma once
// Tags of the MoE layer's messages; one per phase, so that a mix-up is an error and not a wrong
// number.

namespace airmoe::scheduler {

enum MessageTag : int {
  kTagDispatch = 1,
  kTagScores = 2,
  kTagCuts = 3,
  kTagCombine = 4,
  kTagBackwardDispatch = 5,
  kTagBackwardCombine = 6,
  kTagCaptureExpert = 7,
  kTagCaptureGate = 8,
  kTagTieIds = 9,
  kTagTies = 10,
  kTagBalance = 11,
  kTagPlacement = 12,
};

}  // namespace airmoe::scheduler
