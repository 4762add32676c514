#include "scheduler/store/src/checkpoint_meta.hpp"

#include <array>
#include <ctime>

#include "comm/base/error.hpp"
#include "scheduler/store/src/posix_file.hpp"

namespace airmoe::scheduler {

FileHeader header_of(const CheckpointMeta& meta) {
  FileHeader header{kCheckpointFormat, kCheckpointVersion, {}};
  const auto add = [&](const char* name, AttributeValue value) {
    header.attributes.push_back({"/", name, std::move(value)});
  };
  add("step", meta.step);
  add("tokens", meta.tokens);
  add("samples", meta.samples);
  add("world_size_at_save", meta.world_size);
  add("config_json", meta.config_json);
  add("model_digest", meta.model_digest);
  add("writer", meta.writer);
  add("created_utc", meta.created_utc);
  add("uuid", meta.uuid);
  add("parent_uuid", meta.parent_uuid);
  return header;
}

CheckpointMeta meta_of(const StoredFile& file) {
  if (file.format != kCheckpointFormat) {
    fail(ExitCode::bad_data, "{}: its format is `{}`, not {}", file.path, file.format,
         kCheckpointFormat);
  }
  CheckpointMeta meta;
  meta.step = file.integer("step");
  meta.tokens = file.integer("tokens");
  meta.samples = file.integer("samples");
  meta.world_size = file.integer("world_size_at_save");
  meta.config_json = file.text("config_json");
  meta.model_digest = file.text("model_digest");
  meta.writer = file.text("writer");
  meta.created_utc = file.text("created_utc");
  meta.uuid = file.text("uuid");
  meta.parent_uuid = file.text("parent_uuid");
  return meta;
}

std::string utc_now() {
  const std::time_t now = std::time(nullptr);
  std::tm parts{};
  gmtime_r(&now, &parts);
  std::array<char, 32> text{};
  std::strftime(text.data(), text.size(), "%Y-%m-%dT%H:%M:%SZ", &parts);
  return text.data();
}

std::string make_uuid() {
  std::string hex = random_hex(32);
  hex[12] = '4';
  hex[16] = "89ab"[hex[16] % 4];
  return fmt::format("{}-{}-{}-{}-{}", hex.substr(0, 8), hex.substr(8, 4), hex.substr(12, 4),
                     hex.substr(16, 4), hex.substr(20));
}

}  // namespace airmoe::scheduler
