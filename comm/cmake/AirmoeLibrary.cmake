# Targets, warnings and install rules shared by every folder.
include(CMakePackageConfigHelpers)

add_library(airmoe_warnings INTERFACE)
add_library(airmoe::warnings ALIAS airmoe_warnings)
target_compile_options(airmoe_warnings INTERFACE
  $<$<COMPILE_LANGUAGE:CXX>:-Wall;-Wextra;-Wshadow;-Wconversion;-Wno-sign-conversion>
  $<$<AND:$<COMPILE_LANGUAGE:CXX>,$<BOOL:${AIRMOE_WERROR}>>:-Werror>
  # False positives with std::string (GCC bug 105651).
  $<$<AND:$<COMPILE_LANGUAGE:CXX>,$<CXX_COMPILER_ID:GNU>,$<VERSION_LESS:$<CXX_COMPILER_VERSION>,13>>:-Wno-restrict>)

# What most sources include, parsed once per folder instead of once per source. Every source includes
# what it uses all the same: CMAKE_DISABLE_PRECOMPILE_HEADERS=ON builds without.
set(AIRMOE_COMMON_HEADERS <algorithm> <cstdint> <functional> <map> <memory> <numeric> <span> <string>
    <utility> <vector> <fmt/format.h>)

# airmoe_library(<name> SOURCES ... [PUBLIC <targets>] [PRIVATE <targets>])
#
# Makes target airmoe_<name> with alias airmoe::<name>. Every *.hpp of the folder outside src/ is a
# public header: it is installed, and checked to compile on its own. Headers in src/ are private.
function(airmoe_library name)
  cmake_parse_arguments(L "" "" "SOURCES;PUBLIC;PRIVATE" ${ARGN})
  file(GLOB_RECURSE headers CONFIGURE_DEPENDS "${CMAKE_CURRENT_SOURCE_DIR}/*.hpp")
  list(FILTER headers EXCLUDE REGEX "/src/")
  if(NOT AIRMOE_CUDA)
    list(FILTER headers EXCLUDE REGEX "/cuda/")
  endif()
  if(name STREQUAL "comm")  # comm/base is a library of its own
    list(FILTER headers EXCLUDE REGEX "/comm/base/")
  endif()
  set(target airmoe_${name})
  add_library(${target} STATIC ${L_SOURCES})
  add_library(airmoe::${name} ALIAS ${target})
  set_target_properties(${target} PROPERTIES EXPORT_NAME ${name} POSITION_INDEPENDENT_CODE ON)
  target_sources(${target} PUBLIC FILE_SET HEADERS BASE_DIRS "${PROJECT_SOURCE_DIR}" FILES ${headers})
  target_compile_features(${target} PUBLIC cxx_std_20)
  target_precompile_headers(${target} PRIVATE ${AIRMOE_COMMON_HEADERS})
  airmoe_cuda_sources(${name})
  target_link_libraries(${target} PUBLIC ${L_PUBLIC} PRIVATE ${L_PRIVATE} $<BUILD_INTERFACE:airmoe::warnings>)
  install(TARGETS ${target} EXPORT airmoe-targets
          ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR}
          FILE_SET HEADERS DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}/airmoe)
endfunction()

# Installs airmoe-config.cmake and the exported targets; call once, after every airmoe_library().
function(airmoe_install_package)
  set(dir ${CMAKE_INSTALL_LIBDIR}/cmake/airmoe)
  install(EXPORT airmoe-targets NAMESPACE airmoe:: DESTINATION ${dir})
  configure_package_config_file("${PROJECT_SOURCE_DIR}/comm/cmake/airmoe-config.cmake.in"
                                "${PROJECT_BINARY_DIR}/airmoe-config.cmake" INSTALL_DESTINATION ${dir})
  write_basic_package_version_file("${PROJECT_BINARY_DIR}/airmoe-config-version.cmake"
                                   COMPATIBILITY SameMinorVersion)
  install(FILES "${PROJECT_BINARY_DIR}/airmoe-config.cmake"
                "${PROJECT_BINARY_DIR}/airmoe-config-version.cmake"
                "${PROJECT_SOURCE_DIR}/comm/cmake/FindCBLAS.cmake"
                "${PROJECT_SOURCE_DIR}/comm/cmake/FindHighway.cmake"
                "${PROJECT_SOURCE_DIR}/comm/cmake/FindRandom123.cmake"
                "${PROJECT_SOURCE_DIR}/comm/cmake/FindNCCL.cmake"
                "${PROJECT_SOURCE_DIR}/comm/cmake/FindUCX.cmake"
                "${PROJECT_SOURCE_DIR}/comm/cmake/FindIsal.cmake"
                "${PROJECT_SOURCE_DIR}/comm/cmake/FindMetis.cmake" DESTINATION ${dir})
endfunction()
