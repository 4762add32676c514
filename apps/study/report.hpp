#pragma once
// Rows as text, CSV and HDF5.

#include <span>
#include <string>

#include "apps/study/sweep.hpp"

namespace airmoe::study {

/// What the rows are about; goes into every output.
struct Subject {
  std::string source;  ///< "FILE step 300 layer 2" or "synthetic, seed 1"
  bool synthetic = false;
  int64_t experts = 0, codewords = 0, length = 0, active = 0, tokens = 0;
  scheduler::TrafficShape shape;
  scheduler::MachineConstants machine;

  /// One line: E, K, M, G, d, m, distinct tokens.
  std::string text() const;
};

/// Legend and constants, printed once before the tables.
std::string table_head(const Subject& subject);
/// The rows of one rank count and batch size.
std::string table(std::span<const Row> rows);

/// Throws Error(ExitCode::io) when the file cannot be written.
void write_csv(const std::string& path, const Subject& subject, std::span<const Row> rows);
/// One dataset per column, [rows]; bytes [rows, channels]; strategy and placement as indices into
/// the comma-separated attributes `strategies` and `placements` of /study. A sealed file like
/// airmoe's others. Starts no ranks; MPI must run.
void write_hdf5(const std::string& path, const Subject& subject, std::span<const Row> rows);

}  // namespace airmoe::study
