#pragma once

namespace airmoe::apps {

/// Version of the build, from CMakeLists.txt.
inline constexpr const char* kVersion = AIRMOE_VERSION;

}  // namespace airmoe::apps
