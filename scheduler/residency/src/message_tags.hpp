#pragma once
// Tags of the residency's messages; one per phase, apart from those of the MoE layer.

namespace airmoe::scheduler {

enum ResidencyTag : int {
  kTagCopies = 101,
  kTagCopyGradients = 102,
  kTagUsage = 103,
  kTagMoveExperts = 104,
  kTagToBlocks = 105,
  kTagFromBlocks = 106,
};

}  // namespace airmoe::scheduler
