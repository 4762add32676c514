#pragma once
// Where a training step runs and what it computes in.

#include <cstdint>
#include <string>

namespace airmoe::scheduler {

enum class DeviceKind : uint8_t { cpu, cuda };

/// What matrix products read. Sums, master weights, gradients and moments are fp32 (or more) in
/// both.
enum class ComputeType : uint8_t { f32, bf16 };

const char* name_of(DeviceKind device);
const char* name_of(ComputeType type);
/// Throw Error(ExitCode::usage) naming the choices.
DeviceKind parse_device(const std::string& name);
ComputeType parse_compute_type(const std::string& name);

}  // namespace airmoe::scheduler
