#pragma once
// Hashes of short texts that are the same in every process and version.

#include <cstdint>
#include <string_view>

namespace airmoe {

/// 64-bit FNV-1a. Similar texts have similar values: finalise before using few bits.
constexpr uint64_t fnv1a(std::string_view text) {
  uint64_t h = 14695981039346656037ull;
  for (const char c : text) h = (h ^ static_cast<unsigned char>(c)) * 1099511628211ull;
  return h;
}

}  // namespace airmoe
