#include "scheduler/exchange_config.hpp"

#include "comm/base/error.hpp"

namespace airmoe::scheduler {

const char* name_of(Exchange exchange) {
  switch (exchange) {
    case Exchange::cover:
      return "cover";
    case Exchange::selected:
      return "selected";
    case Exchange::gather:
      return "gather";
    case Exchange::automatic:
      return "auto";
  }
  return "?";
}

Exchange parse_exchange(const std::string& name) {
  for (const Exchange e :
       {Exchange::cover, Exchange::selected, Exchange::gather, Exchange::automatic}) {
    if (name == name_of(e)) return e;
  }
  fail(ExitCode::usage, "--exchange {} is unknown: give cover, selected, gather or auto", name);
}

}  // namespace airmoe::scheduler
