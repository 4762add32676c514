#pragma once
// The training text as one long array of token ids, from text files and folders (bytes) or from
// .bin token files (nanoGPT raw, llm.c with header). Every rank opens it by itself.

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "comm/base/buffer.hpp"

namespace airmoe::scheduler {

/// Read when --data is absent: real text that every machine with a C compiler has.
inline constexpr const char* kDefaultCorpus = "/usr/include";

/// Text taken from folders unless --data-max-bytes says otherwise: 64 MiB.
inline constexpr int64_t kDefaultFolderBytes = int64_t{64} << 20;

/// Width of the ids in raw .bin files; files with an llm.c header say it themselves.
enum class TokenType : uint8_t { u16, u32 };

struct CorpusOptions {
  std::vector<std::string> paths;                  ///< empty: kDefaultCorpus
  int64_t max_folder_bytes = kDefaultFolderBytes;  ///< --data-max-bytes: cap over all folders
  TokenType token_type = TokenType::u16;           ///< --token-type
};

struct DataFile;
class MappedFile;

/// Text: paths are files or folders. A folder is walked recursively; its regular files count once
/// each (by inode), in sorted path order; links to files are followed, links to folders are not,
/// and files with a zero byte in their first 8 KiB are skipped as not text. When the folders hold
/// more than max_folder_bytes, files are chosen by a hash of their path below the folder, so that
/// every part of the tree stays represented. A zero byte separates documents (= files). Tokens:
/// paths (or all files of folders) end in .bin; they are mapped, not copied, and read in order.
/// Text and .bin together are an error.
class Corpus {
 public:
  /// Local, every rank sees the same corpus when it sees the same files (compare digest()). Reads
  /// everything once. Memory: the text itself; .bin files only occupy page cache.
  /// Throws Error(ExitCode::bad_data or usage) naming the file, what is wrong and the remedy.
  static Corpus open(const CorpusOptions& options);
  Corpus(Corpus&&) noexcept;
  Corpus& operator=(Corpus&&) noexcept;
  ~Corpus();

  int64_t size() const { return size_; }  ///< tokens
  int64_t files() const { return files_; }
  int64_t files_left_out() const { return files_left_out_; }  ///< by the cap on folders
  bool is_text() const { return is_text_; }
  /// CRC32C over each source's ids, width and count, in order. Text is one source.
  uint32_t digest() const { return digest_; }
  int32_t largest_token() const { return largest_token_; }
  /// Vocabulary that fits: 256 for text, 50257 and 128256 for llm.c headers, else largest token
  /// + 1.
  int64_t natural_vocab() const { return natural_vocab_; }
  /// Throws Error(ExitCode::config) naming the file and token when an id is not below `vocab`.
  void check_vocab(int64_t vocab) const;
  /// One line for the log: paths, files, tokens.
  std::string description() const;

  /// out[k] = token begin + k. 0 <= begin, begin + count <= size().
  void copy(int64_t begin, int64_t count, int32_t* out) const;

 private:
  Corpus();
  void read_text(const std::vector<DataFile>& files);
  void map_tokens(const CorpusOptions& options, const std::vector<DataFile>& files);
  void scan();  ///< one pass for digest and largest token

  struct Source {
    std::string path;
    const uint8_t* data = nullptr;
    int64_t width = 1;  ///< bytes per token
    int64_t begin = 0;  ///< first token's position in the corpus
    int64_t count = 0;
    int32_t largest = 0;
  };
  std::vector<Source> sources_;  ///< ascending begin; text is one source
  std::vector<std::unique_ptr<MappedFile>> mapped_;
  Buffer<uint8_t> text_;
  std::string paths_;
  bool is_text_ = true;
  int64_t size_ = 0, files_ = 0, files_left_out_ = 0;
  uint32_t digest_ = 0;
  int32_t largest_token_ = 0;
  int64_t natural_vocab_ = 256;
};

/// "u16" or "u32"; throws Error(ExitCode::usage) for any other name.
TokenType parse_token_type(const std::string& name);

}  // namespace airmoe::scheduler
