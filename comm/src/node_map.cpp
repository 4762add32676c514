#include "comm/node_map.hpp"

#include <algorithm>
#include <utility>

#include "comm/mpi_backend.hpp"
#include "comm/src/mpi_check.hpp"

namespace airmoe::comm {

NodeMap find_nodes(MPI_Comm comm, int64_t ranks_per_node) {
  int rank = 0;
  int size = 1;
  mpi_check(MPI_Comm_rank(comm, &rank), "MPI_Comm_rank");
  mpi_check(MPI_Comm_size(comm, &size), "MPI_Comm_size");
  MPI_Comm local = MPI_COMM_NULL;
  mpi_check(MPI_Comm_split_type(comm, MPI_COMM_TYPE_SHARED, rank, MPI_INFO_NULL, &local),
            "MPI_Comm_split_type");
  int local_rank = 0;
  mpi_check(MPI_Comm_rank(local, &local_rank), "MPI_Comm_rank");
  int first = rank;
  mpi_check(MPI_Bcast(&first, 1, MPI_INT, 0, local), "MPI_Bcast");
  mpi_check(MPI_Comm_free(&local), "MPI_Comm_free");
  // (first rank of the machine, run of ranks on it) names a node.
  const int mine[2] = {first,
                       ranks_per_node > 0 ? static_cast<int>(local_rank / ranks_per_node) : 0};
  std::vector<int> names(2 * static_cast<std::size_t>(size));
  mpi_check(MPI_Allgather(mine, 2, MPI_INT, names.data(), 2, MPI_INT, comm), "MPI_Allgather");

  NodeMap map;
  std::vector<std::pair<std::pair<int, int>, int>> numbered;
  map.node_of.resize(static_cast<std::size_t>(size));
  for (int r = 0; r < size; ++r) {
    const std::pair<int, int> name = {names[2 * static_cast<std::size_t>(r)],
                                      names[2 * static_cast<std::size_t>(r) + 1]};
    auto known = std::find_if(numbered.begin(), numbered.end(),
                              [&](const auto& entry) { return entry.first == name; });
    if (known == numbered.end()) {
      numbered.push_back({name, map.num_nodes()});
      map.ranks_of.emplace_back();
      known = numbered.end() - 1;
    }
    map.node_of[static_cast<std::size_t>(r)] = known->second;
    auto& ranks = map.ranks_of[static_cast<std::size_t>(known->second)];
    map.place_of.push_back(static_cast<int>(ranks.size()));
    ranks.push_back(r);
  }
  return map;
}

NodeMap find_nodes(int64_t ranks_per_node) {
  return find_nodes(MPI_COMM_WORLD, ranks_per_node);
}

}  // namespace airmoe::comm
