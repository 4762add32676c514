# airmoe_test(<folder>/<name> LIBS <targets> [RANKS <n>...] [LABELS <labels>] [TIMEOUT <seconds>])
#
# Builds test.<folder>.<name> from tests/<folder>/<name>_test.cpp and registers it with CTest.
#   without RANKS  one entry <folder>.<name>, label unit, an ordinary process (support/unit_main.cpp)
#   with RANKS     one entry <folder>.<name>.np<N> per rank count, label mpi, under mpirun
#                  (support/mpi_main.cpp)
#
# airmoe_python_test(<folder>/<name> [ARGS <arguments>] [LABELS <labels>] [TIMEOUT <seconds>])
#
# Registers tests/<folder>/<name>_test.py as <folder>.<name>, run by AIRMOE_PYTHON. It may start
# mpirun itself; label it mpi if it does.
#
# airmoe_gpu_test(<folder>/cuda/<name> LIBS <targets> [RANKS <n>...] [TIMEOUT <seconds>])
#
# The same with label gpu (support/gpu_main.cpp; with RANKS support/mpi_main.cpp, whose tests skip
# by themselves); nothing where CUDA is not built. A <name>_test.cu is taken instead of
# <name>_test.cpp where there is one (tests with kernels).
#
# Where every test of a program skipped itself, CTest shows it as skipped (support/skipped.hpp); on
# one GPU also where there is none. Where only some did, it counts as passed; ctest -V shows which
# and why.
#
# TIMEOUT is per entry, 120 s unless given: a hang is a failure that names the entry.

# More ranks than cores, any user, no pinning. Ranks that wait give the core to the others. The
# OMPI_ names are Open MPI 4's, the PRTE_ names Open MPI 5's; other MPI libraries ignore both.
set(AIRMOE_MPI_ENVIRONMENT
    OMPI_ALLOW_RUN_AS_ROOT=1
    OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
    OMPI_MCA_rmaps_base_oversubscribe=1
    OMPI_MCA_hwloc_base_binding_policy=none
    OMPI_MCA_mpi_yield_when_idle=1
    OMPI_MCA_pml=^cm  # looks for PSM2 and libfabric devices, 0.2 s at each start
    OMPI_MCA_btl_vader_single_copy_mechanism=none  # containers often forbid process_vm_readv
    PRTE_ALLOW_RUN_AS_ROOT=1
    PRTE_ALLOW_RUN_AS_ROOT_CONFIRM=1
    PRTE_MCA_rmaps_default_mapping_policy=:oversubscribe
    PRTE_MCA_hwloc_default_binding_policy=none)
set(AIRMOE_TEST_ENVIRONMENT OPENBLAS_NUM_THREADS=1)

set(AIRMOE_TEST_HEADERS ${AIRMOE_COMMON_HEADERS} <cmath> <limits> <random> <set> <gtest/gtest.h>)

# As in support/skipped.hpp.
set(AIRMOE_SKIPPED_LINE "(^|\n)skipped: every test of this program\n")

# The two main() functions, compiled once. Test sources include by paths from the top of the
# repository or from tests/.
foreach(kind unit mpi)
  set(main airmoe_test_${kind}_main)
  add_library(${main} OBJECT "${PROJECT_SOURCE_DIR}/tests/support/${kind}_main.cpp")
  target_include_directories(${main} PUBLIC "${PROJECT_SOURCE_DIR}" "${PROJECT_SOURCE_DIR}/tests")
  target_link_libraries(${main} PUBLIC GTest::gtest airmoe::base PRIVATE airmoe::warnings)
  target_precompile_headers(${main} PRIVATE ${AIRMOE_TEST_HEADERS})
endforeach()
target_link_libraries(airmoe_test_mpi_main PUBLIC airmoe::comm)

function(airmoe_test path)
  cmake_parse_arguments(T "" "TIMEOUT" "LIBS;RANKS;LABELS" ${ARGN})
  if(T_UNPARSED_ARGUMENTS)
    message(FATAL_ERROR "airmoe_test(${path}): unknown arguments: ${T_UNPARSED_ARGUMENTS}")
  endif()
  if(NOT T_TIMEOUT)
    set(T_TIMEOUT 120)
  endif()
  string(REPLACE "/" "." name ${path})
  set(target test.${name})
  set(kind unit)
  if(T_RANKS)
    set(kind mpi)
  endif()
  add_executable(${target} "${PROJECT_SOURCE_DIR}/tests/${path}_test.cpp")
  target_link_libraries(${target} PRIVATE ${T_LIBS} airmoe_test_${kind}_main airmoe::warnings)
  target_precompile_headers(${target} REUSE_FROM airmoe_test_${kind}_main)

  if(kind STREQUAL unit)
    add_test(NAME ${name} COMMAND ${target})
    set_tests_properties(${name} PROPERTIES TIMEOUT ${T_TIMEOUT} LABELS "unit;${T_LABELS}"
                         ENVIRONMENT "${AIRMOE_TEST_ENVIRONMENT}")
  endif()
  foreach(ranks IN LISTS T_RANKS)
    set(processors 2)  # oversubscribed on purpose: a test of 4 ranks must run on a 2-core machine
    if(ranks LESS 2)
      set(processors ${ranks})
    endif()
    add_test(NAME ${name}.np${ranks}
             COMMAND ${MPIEXEC_EXECUTABLE} ${MPIEXEC_NUMPROC_FLAG} ${ranks} ${MPIEXEC_PREFLAGS}
                     $<TARGET_FILE:${target}> ${MPIEXEC_POSTFLAGS})
    set_tests_properties(${name}.np${ranks} PROPERTIES
      TIMEOUT ${T_TIMEOUT} PROCESSORS ${processors} LABELS "mpi;${T_LABELS}"
      SKIP_REGULAR_EXPRESSION "${AIRMOE_SKIPPED_LINE}"
      ENVIRONMENT "${AIRMOE_TEST_ENVIRONMENT};${AIRMOE_MPI_ENVIRONMENT}")
  endforeach()
endfunction()

if(AIRMOE_CUDA)
  add_library(airmoe_test_gpu_main OBJECT "${PROJECT_SOURCE_DIR}/tests/support/gpu_main.cpp")
  target_include_directories(airmoe_test_gpu_main PUBLIC "${PROJECT_SOURCE_DIR}"
                             "${PROJECT_SOURCE_DIR}/tests")
  target_link_libraries(airmoe_test_gpu_main PUBLIC GTest::gtest airmoe::base
                        PRIVATE airmoe::warnings)
  target_precompile_headers(airmoe_test_gpu_main PRIVATE ${AIRMOE_TEST_HEADERS})
endif()

function(airmoe_gpu_test path)
  if(NOT AIRMOE_CUDA)
    return()
  endif()
  cmake_parse_arguments(T "" "TIMEOUT" "LIBS;RANKS" ${ARGN})
  if(NOT T_TIMEOUT)
    set(T_TIMEOUT 120)
  endif()
  if(T_RANKS)
    airmoe_test(${path} LIBS ${T_LIBS} RANKS ${T_RANKS} LABELS gpu TIMEOUT ${T_TIMEOUT})
    return()
  endif()
  string(REPLACE "/" "." name ${path})
  set(target test.${name})
  set(source "${PROJECT_SOURCE_DIR}/tests/${path}_test.cpp")
  if(EXISTS "${PROJECT_SOURCE_DIR}/tests/${path}_test.cu")
    set(source "${PROJECT_SOURCE_DIR}/tests/${path}_test.cu")
  endif()
  add_executable(${target} ${source})
  airmoe_cuda_options(${target})
  target_link_libraries(${target} PRIVATE ${T_LIBS} airmoe_test_gpu_main airmoe::warnings)
  target_precompile_headers(${target} REUSE_FROM airmoe_test_gpu_main)
  add_test(NAME ${name} COMMAND ${target})
  set_tests_properties(${name} PROPERTIES TIMEOUT ${T_TIMEOUT} LABELS gpu SKIP_RETURN_CODE 77
                       ENVIRONMENT "${AIRMOE_TEST_ENVIRONMENT}")
endfunction()

function(airmoe_python_test path)
  cmake_parse_arguments(T "" "TIMEOUT" "ARGS;LABELS" ${ARGN})
  if(T_UNPARSED_ARGUMENTS)
    message(FATAL_ERROR "airmoe_python_test(${path}): unknown arguments: ${T_UNPARSED_ARGUMENTS}")
  endif()
  if(NOT T_TIMEOUT)
    set(T_TIMEOUT 120)
  endif()
  if(NOT T_LABELS)
    set(T_LABELS unit)
  endif()
  string(REPLACE "/" "." name ${path})
  set(processors 1)
  if("mpi" IN_LIST T_LABELS)
    set(processors 2)
  endif()
  add_test(NAME ${name}
           COMMAND ${AIRMOE_PYTHON} -B "${PROJECT_SOURCE_DIR}/tests/${path}_test.py" ${T_ARGS})
  set_tests_properties(${name} PROPERTIES
    TIMEOUT ${T_TIMEOUT} PROCESSORS ${processors} LABELS "${T_LABELS}"
    ENVIRONMENT "${AIRMOE_TEST_ENVIRONMENT};${AIRMOE_MPI_ENVIRONMENT}")
endfunction()
