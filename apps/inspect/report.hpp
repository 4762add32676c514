#pragma once
// What the parts of airmoe-inspect find out: facts as JSON, printed as it is or as text, and
// problems.

#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "scheduler/store/stored_data.hpp"
#include "scheduler/store/stored_file.hpp"

namespace airmoe::inspect {

using Json = nlohmann::ordered_json;

/// Every message names the place; listed one a line.
using Problems = std::vector<std::string>;

/// File, attributes, configuration, datasets. Reads no data.
Json describe(const scheduler::StoredFile& file);

/// Checksums and finite values of every block. Returns counts; adds a problem per bad block.
Json verify_blocks(const scheduler::StoredFile& file, scheduler::StoredData& data,
                   Problems& problems);

/// Per MoE layer of a checkpoint or trace: norms of centroids, counts of codewords, statistics of
/// the shortlists. Adds a problem per list with ids out of range or repeated.
Json summarise_moe_layers(const scheduler::StoredFile& file, scheduler::StoredData& data,
                          Problems& problems);

/// Recomputes codeword, selection, gates and output of every traced layer in double precision from
/// the arrays of the trace. Returns the largest errors; adds a problem per quantity that is off.
Json check_traces(const scheduler::StoredFile& file, scheduler::StoredData& data,
                  Problems& problems);

/// The report for people.
std::string as_text(const Json& report);

}  // namespace airmoe::inspect
