# CBLAS::CBLAS, any library with cblas_sgemm and cblas.h. OpenBLAS first; -DCBLAS_LIBRARY= and
# -DCBLAS_INCLUDE_DIR= choose another (BLIS, MKL's mkl_rt, ...).
find_path(CBLAS_INCLUDE_DIR NAMES cblas.h
          PATH_SUFFIXES ${CMAKE_LIBRARY_ARCHITECTURE}/openblas-pthread openblas ${CMAKE_LIBRARY_ARCHITECTURE} blis)
find_library(CBLAS_LIBRARY NAMES openblas blis cblas mkl_rt
             PATH_SUFFIXES openblas-pthread openblas-serial)
include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(CBLAS REQUIRED_VARS CBLAS_LIBRARY CBLAS_INCLUDE_DIR
  REASON_FAILURE_MESSAGE "Debian and Ubuntu: apt install libopenblas-dev")
if(CBLAS_FOUND AND NOT TARGET CBLAS::CBLAS)
  add_library(CBLAS::CBLAS UNKNOWN IMPORTED)
  set_target_properties(CBLAS::CBLAS PROPERTIES IMPORTED_LOCATION "${CBLAS_LIBRARY}"
                        INTERFACE_INCLUDE_DIRECTORIES "${CBLAS_INCLUDE_DIR}")
endif()
mark_as_advanced(CBLAS_INCLUDE_DIR CBLAS_LIBRARY)
