# Highway::hwy, portable SIMD with run-time dispatch.
find_path(HIGHWAY_INCLUDE_DIR NAMES hwy/highway.h)
find_library(HIGHWAY_LIBRARY NAMES hwy)
include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(Highway REQUIRED_VARS HIGHWAY_LIBRARY HIGHWAY_INCLUDE_DIR
  REASON_FAILURE_MESSAGE "Debian and Ubuntu: apt install libhwy-dev")
if(Highway_FOUND AND NOT TARGET Highway::hwy)
  add_library(Highway::hwy UNKNOWN IMPORTED)
  set_target_properties(Highway::hwy PROPERTIES IMPORTED_LOCATION "${HIGHWAY_LIBRARY}"
                        INTERFACE_INCLUDE_DIRECTORIES "${HIGHWAY_INCLUDE_DIR}")
endif()
mark_as_advanced(HIGHWAY_INCLUDE_DIR HIGHWAY_LIBRARY)
