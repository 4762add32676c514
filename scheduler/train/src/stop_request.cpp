#include "scheduler/train/stop_request.hpp"

#include <csignal>

namespace airmoe::scheduler {

namespace {

volatile std::sig_atomic_t received = 0;
struct sigaction old_term;
struct sigaction old_usr1;

void on_signal(int number) {
  received = number;
}

}  // namespace

StopRequest::StopRequest() {
  received = 0;
  struct sigaction action = {};
  action.sa_handler = on_signal;
  action.sa_flags = SA_RESTART;
  sigaction(SIGTERM, &action, &old_term);
  sigaction(SIGUSR1, &action, &old_usr1);
}

StopRequest::~StopRequest() {
  sigaction(SIGTERM, &old_term, nullptr);
  sigaction(SIGUSR1, &old_usr1, nullptr);
}

int StopRequest::signal() const {
  return received;
}

}  // namespace airmoe::scheduler
