#pragma once
// Name of the file that airmoe-study --hdf5 writes: /study with one array per column of its table.

#include <cstdint>

namespace airmoe::scheduler {

inline constexpr const char* kStudyFormat = "airmoe-study";
inline constexpr int64_t kStudyVersion = 1;

}  // namespace airmoe::scheduler
