#include "scheduler/device_kind.hpp"

#include "comm/base/error.hpp"

namespace airmoe::scheduler {

const char* name_of(DeviceKind device) {
  return device == DeviceKind::cpu ? "cpu" : "cuda";
}

const char* name_of(ComputeType type) {
  return type == ComputeType::f32 ? "f32" : "bf16";
}

DeviceKind parse_device(const std::string& name) {
  if (name == "cpu") return DeviceKind::cpu;
  if (name == "cuda") return DeviceKind::cuda;
  fail(ExitCode::usage, "--device {}: give cpu or cuda", name);
}

ComputeType parse_compute_type(const std::string& name) {
  if (name == "f32") return ComputeType::f32;
  if (name == "bf16") return ComputeType::bf16;
  fail(ExitCode::usage, "--compute-type {}: give f32 or bf16", name);
}

}  // namespace airmoe::scheduler
