#include "scheduler/store/stored_data.hpp"

#include <algorithm>
#include <cstring>

#include <fcntl.h>

#include "comm/base/buffer.hpp"
#include "comm/base/error.hpp"
#include "scheduler/store/src/crc32c.hpp"
#include "scheduler/store/src/posix_file.hpp"

namespace airmoe::scheduler {

namespace {

constexpr int64_t kPieceBytes = int64_t{64} << 20;

// Not finite: all bits of the exponent set.
template <class Word>
bool exponents_below(const void* data, int64_t count, Word exponent) {
  const auto* bytes = static_cast<const char*>(data);
  bool finite = true;
  for (int64_t i = 0; i < count; ++i) {
    Word word;
    std::memcpy(&word, bytes + i * static_cast<int64_t>(sizeof(Word)), sizeof(Word));
    finite &= (word & exponent) != exponent;
  }
  return finite;
}

}  // namespace

bool all_finite(DType dtype, const void* data, int64_t count) {
  if (dtype == DType::f32) return exponents_below<uint32_t>(data, count, 0x7f800000u);
  if (dtype == DType::f64) return exponents_below<uint64_t>(data, count, 0x7ff0000000000000u);
  return true;
}

std::string BlockFault::text(const DatasetInfo& dataset) const {
  const std::string where =
      fmt::format("{} block {} (rows {}-{})", dataset.path, block, row_begin, row_end - 1);
  if (kind == Kind::not_finite) return where + ": holds values that are not finite";
  return fmt::format("{}: CRC32C {:08x} stored, {:08x} read", where, stored, read);
}

struct StoredData::Impl {
  explicit Impl(const StoredFile& file) : posix(file.path, O_RDONLY) {}

  PosixFile posix;
  Buffer<char> piece;

  static void locate(const DatasetInfo& d, int64_t block, BlockFault& fault) {
    fault.block = block;
    fault.row_begin = block * d.block_rows;
    fault.row_end = std::min(fault.row_begin + d.block_rows, d.rows());
    fault.stored = d.checksums[static_cast<std::size_t>(block)];
  }
};

StoredData::StoredData(const StoredFile& file) : impl_(std::make_unique<Impl>(file)) {}
StoredData::~StoredData() = default;

void StoredData::drop_cache() {
  impl_->posix.drop_cache();
}

bool StoredData::verify_block(const DatasetInfo& d, int64_t block, BlockFault& fault) {
  Impl::locate(d, block, fault);
  const int64_t begin = fault.row_begin * d.row_bytes();
  const int64_t end = fault.row_end * d.row_bytes();
  bool finite = true;
  fault.read = 0;
  for (int64_t at = begin; at < end; at += kPieceBytes) {
    const int64_t size = std::min(kPieceBytes, end - at);
    impl_->piece.ensure(size);
    impl_->posix.read_at(impl_->piece.data(), size, d.offset + at);
    fault.read = crc32c(fault.read, impl_->piece.data(), size);
    finite = finite && all_finite(d.dtype, impl_->piece.data(), size / size_of(d.dtype));
  }
  fault.kind =
      fault.read != fault.stored ? BlockFault::Kind::checksum : BlockFault::Kind::not_finite;
  return fault.read == fault.stored && finite;
}

void StoredData::read_rows(const DatasetInfo& d, int64_t row_begin, int64_t row_count, void* out) {
  if (row_count == 0) return;
  const int64_t row_bytes = d.row_bytes();
  const int64_t row_end = row_begin + row_count;
  auto* target = static_cast<char*>(out);
  for (int64_t block = row_begin / d.block_rows; block * d.block_rows < row_end; ++block) {
    BlockFault fault;
    Impl::locate(d, block, fault);
    const int64_t size = (fault.row_end - fault.row_begin) * row_bytes;
    const bool whole = fault.row_begin >= row_begin && fault.row_end <= row_end;
    char* memory = target + (fault.row_begin - row_begin) * row_bytes;
    if (!whole) {
      impl_->piece.ensure(size);
      memory = impl_->piece.data();
    }
    impl_->posix.read_at(memory, size, d.offset + fault.row_begin * row_bytes);
    fault.read = crc32c(0, memory, size);
    if (fault.read != fault.stored) {
      fail(ExitCode::bad_data, "{}: {}", impl_->posix.path(), fault.text(d));
    }
    if (whole) continue;
    const int64_t first = std::max(fault.row_begin, row_begin);
    const int64_t last = std::min(fault.row_end, row_end);
    std::memcpy(target + (first - row_begin) * row_bytes,
                memory + (first - fault.row_begin) * row_bytes,
                static_cast<std::size_t>((last - first) * row_bytes));
  }
}

}  // namespace airmoe::scheduler
