// Corpora from text, folders and token files, and the messages for what cannot be read.

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <map>
#include <random>

#include <gtest/gtest.h>

#include "comm/base/error.hpp"
#include "scheduler/data/corpus.hpp"

namespace airmoe::scheduler {
namespace {

namespace fs = std::filesystem;

class DataCorpus : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string name = (fs::temp_directory_path() / "airmoe-corpus-XXXXXX").string();
    ASSERT_NE(::mkdtemp(name.data()), nullptr);
    root = name;
  }
  void TearDown() override { fs::remove_all(root); }

  std::string write(const std::string& name, const std::string& content) {
    fs::create_directories((root / name).parent_path());
    std::ofstream(root / name, std::ios::binary) << content;
    return (root / name).string();
  }
  template <class T>
  std::string write_ids(const std::string& name, const std::vector<T>& ids,
                        std::vector<int32_t> header = {}) {
    if (!header.empty()) header.resize(256, 0);
    std::string content(reinterpret_cast<const char*>(header.data()), header.size() * 4);
    content.append(reinterpret_cast<const char*>(ids.data()), ids.size() * sizeof(T));
    return write(name, content);
  }
  Corpus open(std::vector<std::string> paths, int64_t cap = kDefaultFolderBytes,
              TokenType type = TokenType::u16) {
    return Corpus::open({std::move(paths), cap, type});
  }
  static std::vector<int32_t> all(const Corpus& corpus) {
    std::vector<int32_t> ids(static_cast<std::size_t>(corpus.size()));
    corpus.copy(0, corpus.size(), ids.data());
    return ids;
  }
  static std::string text(const Corpus& corpus) {
    const auto ids = all(corpus);
    return {ids.begin(), ids.end()};
  }
  template <class Action>
  static std::string message(Action action) {
    try {
      action();
    } catch (const Error& error) {
      EXPECT_TRUE(error.code() == ExitCode::bad_data || error.code() == ExitCode::config);
      EXPECT_EQ(std::string(error.what()).find('\n'), std::string::npos);
      return error.what();
    }
    return "no error";
  }
  std::string failure(std::vector<std::string> paths, TokenType type = TokenType::u16) {
    return message([&] { open(paths, kDefaultFolderBytes, type); });
  }

  fs::path root;
};

#define EXPECT_SAYS(message, part) \
  EXPECT_NE((message).find(part), std::string::npos) << "message: " << (message)

TEST_F(DataCorpus, FilesAreDocumentsInTheOrderGiven) {
  const auto b = write("b", "second"), a = write("a", "first\xff");
  const Corpus corpus = open({b, a});
  EXPECT_EQ(text(corpus), std::string("second\0first\xff", 13));
  EXPECT_EQ(corpus.largest_token(), 255);
  EXPECT_EQ(corpus.natural_vocab(), 256);
  EXPECT_EQ(corpus.files(), 2);
  EXPECT_TRUE(corpus.is_text());
  EXPECT_NO_THROW(corpus.check_vocab(256));
  EXPECT_EQ(message([&] { corpus.check_vocab(200); }),
            "--vocab 200 is too small: " + b + " and 1 more holds token 255: choose --vocab 256");
}

TEST_F(DataCorpus, FoldersAreWalkedInSortedOrder) {
  write("z", "last");
  write("m/b", "two");
  write("m/a/deep", "one");
  write("empty", "");
  write("binary", std::string("ab\0cd", 5));
  fs::create_symlink(root / "z", root / "n");                // the same file: once, at first sight
  fs::create_directory_symlink(root / "m", root / "again");  // not followed
  fs::create_symlink(root / "nowhere", root / "broken");
  const Corpus corpus = open({root.string()});
  EXPECT_EQ(text(corpus), std::string("one\0two\0last", 12));
  EXPECT_EQ(text(open({root.string() + "/"})), text(corpus));
  EXPECT_EQ(open({root.string()}).digest(), corpus.digest());
}

TEST_F(DataCorpus, FilesTakenTwiceCountOnce) {
  const auto a = write("d/a", "alpha");
  write("d/b", "beta");
  EXPECT_EQ(text(open({a, (root / "d").string(), a})), std::string("alpha\0beta", 10));
}

TEST_F(DataCorpus, TheCapChoosesFilesFromTheWholeTreeAndIsDeterministic) {
  for (int i = 0; i < 100; ++i) {
    write("tree/" + std::to_string(100 + i), std::string(100, static_cast<char>(i + 1)));
  }
  const Corpus corpus = open({(root / "tree").string()}, 2050);
  EXPECT_EQ(corpus.files(), 20);
  EXPECT_EQ(corpus.files_left_out(), 80);
  EXPECT_EQ(corpus.size(), 20 * 100 + 19);
  const auto ids = all(corpus);
  EXPECT_GT(ids.back(), 70);  // not only the first files
  EXPECT_LT(ids.front(), 30);
  EXPECT_TRUE(std::is_sorted(ids.begin(), ids.end(), [](int a, int b) { return b && a && a < b; }));
  // The choice depends on paths below the folder, not on where the folder is.
  fs::rename(root / "tree", root / "moved");
  EXPECT_EQ(all(open({(root / "moved").string()}, 2050)), ids);
  // Files that are named are never left out.
  EXPECT_EQ(open({(root / "moved/100").string()}, 10).size(), 100);
  EXPECT_SAYS(message([&] { open({(root / "moved").string()}, 99); }), "--data-max-bytes");
}

/// What the rules of corpus.hpp say about one folder, file by file.
std::string text_of_folder(const fs::path& folder, int64_t cap) {
  const auto hash = [](const std::string& name) {
    uint64_t h = 14695981039346656037ull;
    for (const char c : name) h = (h ^ static_cast<unsigned char>(c)) * 1099511628211ull;
    h = (h ^ (h >> 30)) * 0xbf58476d1ce4e5b9ull;
    h = (h ^ (h >> 27)) * 0x94d049bb133111ebull;
    return h ^ (h >> 31);
  };
  std::map<std::string, std::string> all, taken;  // by path below the folder
  for (const auto& entry : fs::recursive_directory_iterator(folder)) {
    if (!entry.is_regular_file() || entry.is_symlink()) continue;
    std::ifstream in(entry.path(), std::ios::binary);
    all[entry.path().string().substr(folder.string().size() + 1)] = {
        std::istreambuf_iterator<char>(in), {}};
  }
  std::map<uint64_t, std::string> order;
  for (const auto& file : all) order[hash(file.first)] = file.first;
  int64_t bytes = 0;
  for (const auto& [key, name] : order) {
    const std::string& content = all[name];
    if (bytes + std::ssize(content) > cap || content.empty()) continue;
    if (content.substr(0, 8192).find('\0') != std::string::npos) continue;
    bytes += std::ssize(content);
    taken[name] = content;
  }
  std::string text;
  for (const auto& file : taken) text += (text.empty() ? "" : std::string(1, '\0')) + file.second;
  return text;
}

TEST_F(DataCorpus, ManyFilesOfAllKindsGiveWhatTheRulesSay) {
  std::mt19937 random(7);
  const fs::path tree = root / "tree";
  for (int i = 0; i < 400; ++i) {
    std::string content(random() % 9000 * (i % 3), static_cast<char>('a' + i % 26));
    if (i % 4 == 0 && !content.empty()) content[random() % content.size()] = '\0';
    const std::string folders[] = {"", "a/", "a/b/", "a/b/c/d/", "ab/", "z/y/"};
    write(fmt::format("tree/{}{}", folders[random() % 6], i), content);
  }
  fs::create_directory_symlink(tree / "a", tree / "link");
  fs::create_symlink(tree / "nowhere", tree / "broken");
  for (const int64_t cap : {20'000, 300'000, 1'000'000, 100'000'000}) {
    const std::string expected = text_of_folder(tree, cap);
    const Corpus corpus = open({tree.string()}, cap);
    EXPECT_TRUE(text(corpus) == expected)
        << cap << ": " << corpus.size() << " bytes instead of " << expected.size();
  }
}

TEST_F(DataCorpus, DigestSeesEveryChange) {
  const auto a = write("a", "some text"), b = write("b", "some texT");
  const auto c = write_ids<uint16_t>("c.bin", {1, 2}), d = write_ids<uint16_t>("d.bin", {1, 3});
  EXPECT_NE(open({a}).digest(), open({b}).digest());
  EXPECT_NE(open({c}).digest(), open({d}).digest());
  EXPECT_NE(open({c, d}).digest(), open({d, c}).digest());
  const auto wide = write_ids<uint16_t>("e.bin", {1, 2, 3, 4});
  EXPECT_NE(open({wide}).digest(), open({wide}, 1, TokenType::u32).digest());
}

TEST_F(DataCorpus, RawTokenFilesOfBothWidths) {
  const auto narrow = write_ids<uint16_t>("n.bin", {7, 65535, 0});
  EXPECT_EQ(all(open({narrow})), (std::vector<int32_t>{7, 65535, 0}));
  EXPECT_EQ(open({narrow}).natural_vocab(), 65536);
  const auto wide = write_ids<uint32_t>("w.bin", {7, 128000, 1});
  EXPECT_EQ(all(open({wide}, 1, TokenType::u32)), (std::vector<int32_t>{7, 128000, 1}));
  EXPECT_FALSE(open({narrow}).is_text());
}

TEST_F(DataCorpus, HeadersSayTheWidthAndFilesJoin) {
  const auto gpt2 = write_ids<uint16_t>("a.bin", {1, 50256}, {20240520, 1, 2});
  const auto llama = write_ids<uint32_t>("b.bin", {128255, 4, 5}, {20240801, 7, 3});
  EXPECT_EQ(open({gpt2}).natural_vocab(), 50257);
  EXPECT_EQ(open({llama}).natural_vocab(), 128256);
  const Corpus both = open({root.string()});
  EXPECT_EQ(all(both), (std::vector<int32_t>{1, 50256, 128255, 4, 5}));
  int32_t across[3];
  both.copy(1, 3, across);
  EXPECT_EQ(std::vector<int32_t>(across, across + 3), (std::vector<int32_t>{50256, 128255, 4}));
  EXPECT_THROW(both.copy(3, 3, across), Error);
  EXPECT_EQ(message([&] { both.check_vocab(60000); }),
            "--vocab 60000 is too small: " + llama + " holds token 128255: choose --vocab 128256");
}

TEST_F(DataCorpus, MessagesNameTheFileAndTheRemedy) {
  const auto missing = (root / "missing").string();
  EXPECT_EQ(failure({missing}),
            "--data " + missing + ": No such file or directory: name an existing file or folder");
  EXPECT_SAYS(failure({write("e", "")}), "the file is empty");
  EXPECT_SAYS(failure({write("e.bin", "")}), "the file is empty");
  fs::create_directory(root / "hollow");
  EXPECT_SAYS(failure({(root / "hollow").string()}), "no file in this folder");
  write("machine/code", std::string(3, '\0'));
  EXPECT_SAYS(failure({(root / "machine").string()}), "no text file in this folder");
  EXPECT_SAYS(failure({write("odd.bin", "12345")}), "5 bytes is not a multiple of 2");
  EXPECT_SAYS(failure({write("odd.bin", "123456")}, TokenType::u32), "multiple of 4 (--token-type");
  EXPECT_SAYS(failure({write("t", "text"), write("x.bin", "1234")}), "mixes token files");
  EXPECT_SAYS(failure({write_ids<uint32_t>("big.bin", {4000000000u})}, TokenType::u32),
              "token 4000000000");
  const std::vector<uint16_t> ids = {1, 2, 3};
  EXPECT_SAYS(failure({write_ids("short.bin", ids, {20240520, 1, 4})}),
              "the header says 4 tokens, 1032 bytes in all, but the file has 1030");
  EXPECT_SAYS(failure({write_ids("none.bin", ids, {20240520, 1, -1})}), "the header says -1");
  EXPECT_SAYS(failure({write_ids("version.bin", ids, {20240520, 2, 3})}), "version 2");
  EXPECT_SAYS(failure({write_ids<int32_t>("cut.bin", {20240520, 1})}), "truncated");
  EXPECT_THROW(parse_token_type("u8"), Error);
}

TEST_F(DataCorpus, TheDefaultIsTheSystemHeaders) {
  if (!fs::is_directory(kDefaultCorpus)) GTEST_SKIP() << kDefaultCorpus << " is not there";
  const Corpus corpus = open({}, 1 << 20);
  EXPECT_GT(corpus.size(), 1 << 19);
  EXPECT_LE(corpus.size() - corpus.files() + 1, 1 << 20);
  EXPECT_SAYS(corpus.description(), kDefaultCorpus);
}

}  // namespace
}  // namespace airmoe::scheduler
