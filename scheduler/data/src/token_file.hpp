#pragma once
// The layout of .bin token files: nanoGPT (raw ids) and llm.c (256 int32 of header, then ids).

#include <cstdint>
#include <string>

#include "scheduler/data/corpus.hpp"

namespace airmoe::scheduler {

/// Where the ids lie in a token file.
struct TokenLayout {
  int64_t offset = 0;  ///< bytes before the first id
  int64_t width = 2;   ///< bytes per id: 2 or 4, little-endian, unsigned
  int64_t count = 0;
  int64_t vocab = 0;  ///< of the tokenizer that the header stands for; 0 when raw
};

/// Reads the header, if there is one. Throws Error(ExitCode::bad_data) naming the file and what is
/// wrong with its size or header.
/// @param data  the whole file, `bytes` long
TokenLayout token_layout(const std::string& path, const uint8_t* data, int64_t bytes,
                         TokenType raw_type);

}  // namespace airmoe::scheduler
