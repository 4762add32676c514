#include "comm/base/error.hpp"

namespace airmoe::detail {

void check_failed(const char* file, int line, const char* condition, const std::string& message) {
  throw Error(ExitCode::failure, fmt::format("{} ({}:{}: {})", message, file, line, condition));
}

}  // namespace airmoe::detail
