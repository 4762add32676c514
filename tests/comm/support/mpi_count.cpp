#include "tests/comm/support/mpi_count.hpp"

#include <mpi.h>

namespace airmoe::test {
namespace {

const char* current_phase = "outside";

MpiCount& current() {
  return mpi_counts()[current_phase];
}

int64_t bytes_of(int64_t count, MPI_Datatype type) {
  int size = 0;
  PMPI_Type_size(type, &size);
  return count * size;
}

int rank_in(MPI_Comm comm) {
  int rank = 0;
  PMPI_Comm_rank(comm, &rank);
  return rank;
}

int64_t others_in(MPI_Comm comm) {
  int size = 1;
  PMPI_Comm_size(comm, &size);
  return size - 1;
}

void count_send(int64_t count, MPI_Datatype type, int peer, MPI_Comm comm, bool is_synchronous) {
  if (peer == rank_in(comm) || peer == MPI_PROC_NULL) return;
  MpiCount& c = current();
  (is_synchronous ? c.synchronous_sends : c.sends) += 1;
  (is_synchronous ? c.synchronous_send_bytes : c.send_bytes) += bytes_of(count, type);
}

void count_gather_to_all(int64_t count, MPI_Datatype type, MPI_Comm comm) {
  const int64_t bytes = bytes_of(count, type);
  if (bytes == 0) return;
  current().gathers_to_all += others_in(comm);
  current().gather_to_all_bytes += bytes * others_in(comm);
}

void count_neighbour(int64_t bytes) {
  if (bytes == 0) return;
  current().neighbour_sends += 1;
  current().neighbour_bytes += bytes;
}

}  // namespace

std::map<std::string, MpiCount>& mpi_counts() {
  static std::map<std::string, MpiCount> counts;
  return counts;
}

PhaseTap::PhaseTap(comm::Communicator& inner) : ForwardingCommunicator(inner) {
  current_phase = inner.phase();
}

PhaseTap::~PhaseTap() {
  current_phase = "outside";
}

void PhaseTap::do_set_phase(const char* phase) {
  current_phase = phase;
  ForwardingCommunicator::do_set_phase(phase);
}

}  // namespace airmoe::test

// In place of the library's. Whatever the code under test does not call today is here too, so that
// a change to other calls is seen.

using namespace airmoe::test;  // NOLINT

extern "C" {

int MPI_Send(const void* data, int count, MPI_Datatype type, int peer, int tag, MPI_Comm comm) {
  count_send(count, type, peer, comm, false);
  return PMPI_Send(data, count, type, peer, tag, comm);
}

int MPI_Ssend(const void* data, int count, MPI_Datatype type, int peer, int tag, MPI_Comm comm) {
  count_send(count, type, peer, comm, true);
  return PMPI_Ssend(data, count, type, peer, tag, comm);
}

int MPI_Isend(const void* data, int count, MPI_Datatype type, int peer, int tag, MPI_Comm comm,
              MPI_Request* request) {
  count_send(count, type, peer, comm, false);
  return PMPI_Isend(data, count, type, peer, tag, comm, request);
}

int MPI_Issend(const void* data, int count, MPI_Datatype type, int peer, int tag, MPI_Comm comm,
               MPI_Request* request) {
  count_send(count, type, peer, comm, true);
  return PMPI_Issend(data, count, type, peer, tag, comm, request);
}

int MPI_Ibcast(void* data, int count, MPI_Datatype type, int root, MPI_Comm comm,
               MPI_Request* request) {
  if (rank_in(comm) == root && others_in(comm) > 0 && count > 0) {
    current().broadcasts += 1;
    current().broadcast_bytes += bytes_of(count, type);
  }
  return PMPI_Ibcast(data, count, type, root, comm, request);
}

int MPI_Iallreduce(const void* in, void* out, int count, MPI_Datatype type, MPI_Op op,
                   MPI_Comm comm, MPI_Request* request) {
  if (others_in(comm) > 0 && count > 0) {
    current().reductions += 1;
    current().reduction_bytes += bytes_of(count, type);
  }
  return PMPI_Iallreduce(in, out, count, type, op, comm, request);
}

int MPI_Iallgather(const void* in, int in_count, MPI_Datatype in_type, void* out, int out_count,
                   MPI_Datatype out_type, MPI_Comm comm, MPI_Request* request) {
  count_gather_to_all(in_count, in_type, comm);
  return PMPI_Iallgather(in, in_count, in_type, out, out_count, out_type, comm, request);
}

int MPI_Iallgatherv(const void* in, int in_count, MPI_Datatype in_type, void* out,
                    const int out_counts[], const int offsets[], MPI_Datatype out_type,
                    MPI_Comm comm, MPI_Request* request) {
  count_gather_to_all(in_count, in_type, comm);
  return PMPI_Iallgatherv(in, in_count, in_type, out, out_counts, offsets, out_type, comm, request);
}

int MPI_Ineighbor_alltoall(const void* in, int in_count, MPI_Datatype in_type, void* out,
                           int out_count, MPI_Datatype out_type, MPI_Comm comm,
                           MPI_Request* request) {
  int senders = 0;
  int receivers = 0;
  int weighted = 0;
  PMPI_Dist_graph_neighbors_count(comm, &senders, &receivers, &weighted);
  for (int i = 0; i < receivers; ++i) count_neighbour(bytes_of(in_count, in_type));
  return PMPI_Ineighbor_alltoall(in, in_count, in_type, out, out_count, out_type, comm, request);
}

int MPI_Ineighbor_alltoallw(const void* in, const int in_counts[], const MPI_Aint in_places[],
                            const MPI_Datatype in_types[], void* out, const int out_counts[],
                            const MPI_Aint out_places[], const MPI_Datatype out_types[],
                            MPI_Comm comm, MPI_Request* request) {
  int senders = 0;
  int receivers = 0;
  int weighted = 0;
  PMPI_Dist_graph_neighbors_count(comm, &senders, &receivers, &weighted);
  for (int i = 0; i < receivers; ++i) count_neighbour(bytes_of(in_counts[i], in_types[i]));
  return PMPI_Ineighbor_alltoallw(in, in_counts, in_places, in_types, out, out_counts, out_places,
                                  out_types, comm, request);
}

}  // extern "C"
