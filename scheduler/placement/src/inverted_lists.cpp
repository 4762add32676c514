#include "scheduler/placement/src/inverted_lists.hpp"

namespace airmoe::scheduler::placement {

InvertedLists::InvertedLists(const PlanInput& input, const Parts& parts, int64_t stride)
    : begin_(input.experts + 2, 0), length_(parts.count(), 0), stride_(stride) {
  const auto for_each_entry = [&](const auto& visit) {
    for (int64_t p = 0; p < parts.count(); ++p) {
      if (parts.tokens[p] == 0) continue;
      const int32_t* list = input.lists.data() + parts.codeword[p] * input.length;
      for (int64_t j = 0; j < input.length; ++j) {
        if (sampled(list[j])) visit(list[j], static_cast<int32_t>(p));
      }
    }
  };
  // Counted two places ahead, so that filling leaves every begin where it belongs.
  for_each_entry([&](int32_t expert, int32_t part) {
    ++begin_[expert + 2];
    ++length_[part];
  });
  for (int64_t e = 0; e < input.experts; ++e) {
    const auto n = static_cast<double>(begin_[e + 2]);
    pairs_ += n * n;
    begin_[e + 2] += begin_[e + 1];
  }
  part_.ensure(begin_[input.experts + 1]);
  for_each_entry([&](int32_t expert, int32_t part) { part_[begin_[expert + 1]++] = part; });
}

}  // namespace airmoe::scheduler::placement
