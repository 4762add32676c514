#include "scheduler/data/corpus.hpp"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <limits>

#include <isa-l/crc.h>

#include "comm/base/error.hpp"
#include "comm/base/in_parallel.hpp"
#include "scheduler/data/src/file_list.hpp"
#include "scheduler/data/src/mapped_file.hpp"
#include "scheduler/data/src/token_file.hpp"

namespace airmoe::scheduler {
namespace {

constexpr uint8_t kDocumentSeparator = 0;

uint32_t crc32c(uint32_t state, const uint8_t* data, int64_t bytes) {
  constexpr int64_t kPiece = int64_t{1} << 30;
  for (int64_t done = 0; done < bytes; done += kPiece) {
    const int piece = static_cast<int>(std::min(kPiece, bytes - done));
    state = crc32_iscsi(const_cast<unsigned char*>(data + done), piece, state);
  }
  return state;
}

/// Calls body with the ids as const uint8_t*, uint16_t* or uint32_t*.
template <class Body>
void with_ids(const uint8_t* data, int64_t width, Body body) {
  if (width == 1) body(data);
  if (width == 2) body(reinterpret_cast<const uint16_t*>(data));
  if (width == 4) body(reinterpret_cast<const uint32_t*>(data));
}

int64_t largest_id(const uint8_t* data, int64_t width, int64_t count) {
  int64_t largest = 0;
  with_ids(data, width, [&](const auto* ids) {
    auto top = ids[0];
    for (int64_t i = 0; i < count; ++i) top = ids[i] > top ? ids[i] : top;
    largest = top;
  });
  return largest;
}

void read_whole(const DataFile& file, uint8_t* to) {
  errno = 0;
  std::ifstream in(file.path, std::ios::binary);
  in.read(reinterpret_cast<char*>(to), file.bytes);
  if (in.gcount() != file.bytes) {
    fail(ExitCode::bad_data, "--data {}: {} of {} bytes read: {}", file.path, in.gcount(),
         file.bytes, errno != 0 ? std::strerror(errno) : "the file became shorter meanwhile");
  }
}

std::string joined(const std::vector<std::string>& paths) {
  return paths.size() == 1 ? paths[0] : fmt::format("{} and {} more", paths[0], paths.size() - 1);
}

}  // namespace

Corpus::Corpus() = default;
Corpus::Corpus(Corpus&&) noexcept = default;
Corpus& Corpus::operator=(Corpus&&) noexcept = default;
Corpus::~Corpus() = default;

Corpus Corpus::open(const CorpusOptions& options) {
  std::vector<std::string> paths = options.paths;
  if (paths.empty()) {
    paths = {kDefaultCorpus};
    if (!std::filesystem::is_directory(kDefaultCorpus)) {
      fail(ExitCode::bad_data,
           "the default corpus {} does not exist: install a C library's headers (Debian: apt "
           "install libc6-dev) or pass --data",
           kDefaultCorpus);
    }
  }
  const FileList list = list_files(paths, options.max_folder_bytes);
  Corpus corpus;
  corpus.paths_ = joined(paths);
  corpus.is_text_ = !list.tokens;
  corpus.files_ = static_cast<int64_t>(list.files.size());
  corpus.files_left_out_ = list.left_out;
  if (list.tokens) {
    corpus.map_tokens(options, list.files);
  } else {
    corpus.read_text(list.files);
  }
  corpus.scan();
  return corpus;
}

void Corpus::read_text(const std::vector<DataFile>& files) {
  int64_t size = static_cast<int64_t>(files.size()) - 1;  // separators
  for (const DataFile& file : files) size += file.bytes;
  text_.ensure(size);
  std::vector<uint8_t*> places;
  uint8_t* to = text_.data();
  for (const DataFile& file : files) {
    if (to != text_.data()) *to++ = kDocumentSeparator;
    places.push_back(to);
    to += file.bytes;
  }
  in_parallel(std::ssize(files), kReaders, [&](int64_t i) { read_whole(files[i], places[i]); });
  sources_.push_back({paths_, text_.data(), 1, 0, size, 0});
  natural_vocab_ = 256;
}

void Corpus::map_tokens(const CorpusOptions& options, const std::vector<DataFile>& files) {
  natural_vocab_ = 0;
  for (const DataFile& named : files) {
    const std::string& path = named.path;
    mapped_.push_back(std::make_unique<MappedFile>(path));
    const MappedFile& file = *mapped_.back();
    const TokenLayout layout = token_layout(path, file.data(), file.size(), options.token_type);
    const int64_t begin = sources_.empty() ? 0 : sources_.back().begin + sources_.back().count;
    sources_.push_back({path, file.data() + layout.offset, layout.width, begin, layout.count, 0});
    natural_vocab_ = std::max(natural_vocab_, layout.vocab);
  }
}

void Corpus::scan() {
  uint32_t state = ~uint32_t{0};
  for (Source& source : sources_) {
    const int64_t largest = largest_id(source.data, source.width, source.count);
    if (largest >= std::numeric_limits<int32_t>::max()) {
      fail(ExitCode::bad_data,
           "--data {}: token {} is far beyond any vocabulary: wrong --token-type, or not a token "
           "file",
           source.path, largest);
    }
    source.largest = static_cast<int32_t>(largest);
    largest_token_ = std::max(largest_token_, source.largest);
    state = crc32c(state, source.data, source.count * source.width);
    const int64_t shape[2] = {source.width, source.count};
    state = crc32c(state, reinterpret_cast<const uint8_t*>(shape), sizeof shape);
  }
  digest_ = ~state;
  size_ = sources_.back().begin + sources_.back().count;
  natural_vocab_ = std::max<int64_t>(natural_vocab_, int64_t{largest_token_} + 1);
}

void Corpus::check_vocab(int64_t vocab) const {
  for (const Source& source : sources_) {
    if (source.largest >= vocab) {
      fail(ExitCode::config, "--vocab {} is too small: {} holds token {}: choose --vocab {}", vocab,
           source.path, source.largest, natural_vocab_);
    }
  }
}

std::string Corpus::description() const {
  const std::string left_out =
      files_left_out_ > 0 ? fmt::format(" ({} left out by --data-max-bytes)", files_left_out_) : "";
  return fmt::format("{} {} from {}: {} files{}, digest {:08x}", size_,
                     is_text_ ? "bytes of text" : "tokens", paths_, files_, left_out, digest_);
}

void Corpus::copy(int64_t begin, int64_t count, int32_t* out) const {
  AIRMOE_CHECK(begin >= 0 && count >= 0 && begin + count <= size_, "tokens {} to {} of {}", begin,
               begin + count, size_);
  auto source = std::upper_bound(sources_.begin(), sources_.end(), begin,
                                 [](int64_t at, const Source& s) { return at < s.begin; });
  --source;
  while (count > 0) {
    const int64_t from = begin - source->begin;
    const int64_t piece = std::min(count, source->count - from);
    with_ids(source->data, source->width, [&](const auto* ids) {
      for (int64_t i = 0; i < piece; ++i) out[i] = static_cast<int32_t>(ids[from + i]);
    });
    begin += piece;
    out += piece;
    count -= piece;
    ++source;
  }
}

TokenType parse_token_type(const std::string& name) {
  if (name == "u16") return TokenType::u16;
  if (name == "u32") return TokenType::u32;
  fail(ExitCode::usage, "--token-type {} is unknown: choose u16 or u32", name);
}

}  // namespace airmoe::scheduler
