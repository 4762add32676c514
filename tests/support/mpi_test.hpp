#pragma once
// What multi-rank tests share. tests/support/mpi_main.cpp defines the functions.
//
// Rules: every rank runs the same tests in the same order; a fatal failure (ASSERT_*, an exception)
// on one rank ends all ranks, because the others would wait for it; use ASSERT_ON_ALL_RANKS to
// leave a test together and let the next one run.

#include <gtest/gtest.h>

#include "comm/communicator.hpp"
#include "comm/mpi_environment.hpp"

namespace airmoe::test {

/// Local: the process's MPI environment.
const comm::MpiEnvironment& environment();

/// Local: a communicator over all ranks, with a deadline of one minute.
comm::Communicator& world();

/// Collective: true when `condition` holds on every rank. Does not use Communicator.
bool on_all_ranks(bool condition);

}  // namespace airmoe::test

/// Collective: when `condition` fails on any rank, every rank records a failure and returns from
/// the test function.
#define ASSERT_ON_ALL_RANKS(condition)                                                    \
  do {                                                                                    \
    const bool holds_here_ = static_cast<bool>(condition);                                \
    if (!::airmoe::test::on_all_ranks(holds_here_)) {                                     \
      ADD_FAILURE() << #condition << (holds_here_ ? " fails on another rank" : " fails"); \
      return;                                                                             \
    }                                                                                     \
  } while (false)
