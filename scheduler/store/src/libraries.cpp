#include "scheduler/store/libraries.hpp"

#include <fmt/format.h>
#include <isa-l.h>
#include <nlohmann/json.hpp>

#include "scheduler/store/src/hdf5_file.hpp"

namespace airmoe::scheduler {

std::vector<std::pair<std::string, std::string>> store_libraries() {
  return {{"HDF5", hdf5_version()},
          {"ISA-L",
           fmt::format("{}.{}.{}", ISAL_MAJOR_VERSION, ISAL_MINOR_VERSION, ISAL_PATCH_VERSION)},
          {"nlohmann-json", fmt::format("{}.{}.{}", NLOHMANN_JSON_VERSION_MAJOR,
                                        NLOHMANN_JSON_VERSION_MINOR, NLOHMANN_JSON_VERSION_PATCH)}};
}

}  // namespace airmoe::scheduler
