#include "comm/src/mpi_sparse_exchange.hpp"

#include "comm/src/sparse/nbx.hpp"

namespace airmoe::comm {

std::unique_ptr<SparseRoute> make_sparse_route(const SparseLink& link, const MpiOptions&,
                                               int first_tag) {
  return std::make_unique<NbxRoute>(link, std::array{first_tag, first_tag + 1}, first_tag + 2);
}

}  // namespace airmoe::comm
