# AIRMOE_PYTHON, a Python 3 with h5py, numpy and matplotlib: tests read files back with it and the
# plotting script draws with it. /usr/bin comes first, because that is where the system packages
# go; -DAIRMOE_PYTHON= or the environment variable AIRMOE_PYTHON chooses another.
function(airmoe_python_has_modules result candidate)
  execute_process(COMMAND "${candidate}" -c "import h5py, numpy, matplotlib"
                  RESULT_VARIABLE status OUTPUT_QUIET ERROR_QUIET)
  if(NOT status EQUAL 0)
    set(${result} FALSE PARENT_SCOPE)
  endif()
endfunction()

if(DEFINED ENV{AIRMOE_PYTHON} AND NOT DEFINED CACHE{AIRMOE_PYTHON})
  set(AIRMOE_PYTHON "$ENV{AIRMOE_PYTHON}" CACHE FILEPATH "Python 3 with h5py, numpy and matplotlib")
endif()
find_program(AIRMOE_PYTHON NAMES python3 HINTS /usr/bin VALIDATOR airmoe_python_has_modules
             DOC "Python 3 with h5py, numpy and matplotlib")
include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(AirmoePython REQUIRED_VARS AIRMOE_PYTHON
  REASON_FAILURE_MESSAGE "Debian and Ubuntu: apt install python3-h5py python3-numpy python3-matplotlib")
mark_as_advanced(AIRMOE_PYTHON)
