#pragma once
// Makes the algorithm of sparse exchanges that a communicator was asked for.

#include <memory>

#include "comm/mpi_communicator.hpp"
#include "comm/src/sparse/sparse_route.hpp"

namespace airmoe::comm {

/// Collective. Uses the tags from `first_tag` to first_tag + kSparseTags - 1.
std::unique_ptr<SparseRoute> make_sparse_route(const SparseLink& link, const MpiOptions& options,
                                               int first_tag);
inline constexpr int kSparseTags = 12;

}  // namespace airmoe::comm
