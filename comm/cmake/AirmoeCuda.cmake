# Looks for CUDA as AIRMOE_WITH_CUDA says and sets AIRMOE_CUDA. Kernels are built for sm_80 and sm_90a
# (with what only Hopper has, see comm/base/cuda/wgmma.cuh), and as PTX for what comes after.
set(AIRMOE_CUDA OFF)
if(AIRMOE_WITH_CUDA)
  include(CheckLanguage)
  if(NOT DEFINED CMAKE_CUDA_COMPILER AND EXISTS /usr/local/cuda/bin/nvcc)
    set(CMAKE_CUDA_COMPILER /usr/local/cuda/bin/nvcc)
  endif()
  check_language(CUDA)
  if(CMAKE_CUDA_COMPILER)
    if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES)
      set(CMAKE_CUDA_ARCHITECTURES 80-real 90a-real 90-virtual)
    endif()
    enable_language(CUDA)
    if(NOT DEFINED CMAKE_CUDA20_STANDARD_COMPILE_OPTION)  # CMake 3.25 does not know it
      set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION -std=c++20)
      set(CMAKE_CUDA20_EXTENSION_COMPILE_OPTION -std=c++20)
    endif()
    set(CMAKE_CUDA_STANDARD 20)
    set(CMAKE_CUDA_STANDARD_REQUIRED ON)
    set(CMAKE_CUDA_EXTENSIONS OFF)
    find_package(CUDAToolkit 12.0 REQUIRED)
    set(AIRMOE_CUDA ON)
  elseif(NOT AIRMOE_WITH_CUDA STREQUAL "AUTO")
    message(FATAL_ERROR "AIRMOE_WITH_CUDA=${AIRMOE_WITH_CUDA}: no CUDA compiler found; set "
            "CMAKE_CUDA_COMPILER, or AIRMOE_WITH_CUDA=OFF")
  endif()
endif()

# Compiler options of a target's CUDA sources.
function(airmoe_cuda_options target)
  target_compile_options(${target} PRIVATE
    $<$<COMPILE_LANGUAGE:CUDA>:--expt-relaxed-constexpr -lineinfo -Xcompiler=-Wall>
    # nvcc cannot run the compile-time check of format strings.
    $<$<COMPILE_LANGUAGE:CUDA>:-DFMT_CONSTEVAL= -DFMT_USE_CONSTEXPR=1>)
  if(CMAKE_CUDA_ARCHITECTURES MATCHES "90a")
    target_compile_definitions(${target} PRIVATE AIRMOE_CUDA_SM90A)
  endif()
endfunction()

# NCCL, where CUDA is, as AIRMOE_WITH_NCCL says.
if(AIRMOE_CUDA AND AIRMOE_WITH_NCCL)
  find_package(NCCL 2.18)  # its nonblocking communicators
  if(NOT NCCL_FOUND AND NOT AIRMOE_WITH_NCCL STREQUAL "AUTO")
    message(FATAL_ERROR "AIRMOE_WITH_NCCL=${AIRMOE_WITH_NCCL}: NCCL not found; set NCCL_LIBRARY and "
            "NCCL_INCLUDE_DIR, or AIRMOE_WITH_NCCL=OFF")
  endif()
endif()

# airmoe_cuda_sources(<name>): adds cuda/src/ of this folder to airmoe_<name>, if CUDA is there.
function(airmoe_cuda_sources name)
  if(NOT AIRMOE_CUDA)
    return()
  endif()
  file(GLOB sources CONFIGURE_DEPENDS "${CMAKE_CURRENT_SOURCE_DIR}/cuda/src/*.cu"
       "${CMAKE_CURRENT_SOURCE_DIR}/cuda/src/*.cpp")
  if(sources)
    target_sources(airmoe_${name} PRIVATE ${sources})
    airmoe_cuda_options(airmoe_${name})
    target_link_libraries(airmoe_${name} PUBLIC CUDA::cudart_static)
  endif()
endfunction()
