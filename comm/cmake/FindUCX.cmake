# UCX::ucp, Unified Communication X: messages without MPI in between.
find_path(UCX_INCLUDE_DIR NAMES ucp/api/ucp.h)
find_library(UCX_UCP_LIBRARY NAMES ucp)
find_library(UCX_UCS_LIBRARY NAMES ucs)
if(UCX_INCLUDE_DIR AND EXISTS "${UCX_INCLUDE_DIR}/ucp/api/ucp_version.h")
  file(STRINGS "${UCX_INCLUDE_DIR}/ucp/api/ucp_version.h" UCX_VERSION_LINES
       REGEX "#define UCP_API_(MAJOR|MINOR)[ \t]+[0-9]+")
  string(REGEX REPLACE "[^0-9;]" "" UCX_VERSION "${UCX_VERSION_LINES}")
  string(REPLACE ";" "." UCX_VERSION "${UCX_VERSION}")
endif()
include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(UCX
  REQUIRED_VARS UCX_UCP_LIBRARY UCX_UCS_LIBRARY UCX_INCLUDE_DIR VERSION_VAR UCX_VERSION
  REASON_FAILURE_MESSAGE "Debian and Ubuntu: apt install libucx-dev")
if(UCX_FOUND AND NOT TARGET UCX::ucp)
  add_library(UCX::ucp UNKNOWN IMPORTED)
  set_target_properties(UCX::ucp PROPERTIES IMPORTED_LOCATION "${UCX_UCP_LIBRARY}"
                        INTERFACE_INCLUDE_DIRECTORIES "${UCX_INCLUDE_DIR}"
                        INTERFACE_LINK_LIBRARIES "${UCX_UCS_LIBRARY}")  # ucs_status_string
endif()
mark_as_advanced(UCX_INCLUDE_DIR UCX_UCP_LIBRARY UCX_UCS_LIBRARY)
