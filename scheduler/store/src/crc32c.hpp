#pragma once
// CRC32C (Castagnoli), the checksum of iSCSI, ext4 and the blocks of our files.

#include <cstdint>

namespace airmoe::scheduler {

/// CRC32C of the bytes seen so far (`crc`, 0 at the start) followed by `size` bytes at `data`.
/// Local.
uint32_t crc32c(uint32_t crc, const void* data, int64_t size);

/// CRC32C of a followed by b from the CRCs of both and the bytes of b. O(log second_bytes).
uint32_t crc32c_combine(uint32_t first, uint32_t second, int64_t second_bytes);

}  // namespace airmoe::scheduler
