#include "scheduler/data/src/token_file.hpp"

#include <array>
#include <bit>
#include <cstring>

#include "comm/base/error.hpp"

namespace airmoe::scheduler {
namespace {

static_assert(std::endian::native == std::endian::little, "token files are little-endian");

constexpr int64_t kHeaderWords = 256;
constexpr int64_t kHeaderBytes = kHeaderWords * 4;

/// One dialect of llm.c's header: word 0 magic, word 1 version, word 2 number of ids.
struct HeaderKind {
  const char* name;
  int32_t magic, version;
  int64_t width, vocab;
};
constexpr std::array<HeaderKind, 2> kHeaderKinds = {{
    {"GPT-2", 20240520, 1, 2, 50257},
    {"Llama-3", 20240801, 7, 4, 128256},
}};

TokenLayout read_header(const std::string& path, const uint8_t* data, int64_t bytes,
                        const HeaderKind& kind) {
  if (bytes < kHeaderBytes) {
    fail(ExitCode::bad_data, "--data {}: {} bytes, but the llm.c header alone has {}: truncated?",
         path, bytes, kHeaderBytes);
  }
  int32_t words[3];
  std::memcpy(words, data, sizeof words);
  if (words[1] != kind.version) {
    fail(ExitCode::bad_data, "--data {}: llm.c {} header of version {}: write version {}", path,
         kind.name, words[1], kind.version);
  }
  const int64_t expected = kHeaderBytes + int64_t{words[2]} * kind.width;
  if (words[2] < 1 || expected != bytes) {
    fail(ExitCode::bad_data,
         "--data {}: the header says {} tokens, {} bytes in all, but the file has {}: copy or "
         "convert it again",
         path, words[2], expected, bytes);
  }
  return {kHeaderBytes, kind.width, words[2], kind.vocab};
}

}  // namespace

TokenLayout token_layout(const std::string& path, const uint8_t* data, int64_t bytes,
                         TokenType raw_type) {
  int32_t magic = 0;
  if (bytes >= 4) std::memcpy(&magic, data, sizeof magic);
  for (const HeaderKind& kind : kHeaderKinds) {
    if (magic == kind.magic) return read_header(path, data, bytes, kind);
  }
  const int64_t width = raw_type == TokenType::u16 ? 2 : 4;
  if (bytes == 0) fail(ExitCode::bad_data, "--data {}: the file is empty", path);
  if (bytes % width != 0) {
    fail(ExitCode::bad_data,
         "--data {}: {} bytes is not a multiple of {} (--token-type {}): truncated, or another "
         "type?",
         path, bytes, width, raw_type == TokenType::u16 ? "u16" : "u32");
  }
  return {0, width, bytes / width, 0};
}

}  // namespace airmoe::scheduler
