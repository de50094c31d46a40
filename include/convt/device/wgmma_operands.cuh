// How operands of warpgroup products lie in shared memory, and the descriptors that say so (PTX ISA 9.7.15).
#pragma once

namespace convt {

// The sums of 64 columns: eight C fragments.
inline constexpr int kWgmmaSumColumns = 64;
using WgmmaSums = float[kWgmmaSumColumns / 8][4];

// The descriptor of an operand without swizzle, in two words: the address in 16 bytes and, from bit 16 on,
// how far apart its 8 x 8 blocks lie along the products' depth, in 16 bytes; then how far apart they lie
// along its rows or columns: 128 bytes, side by side. Addresses of a cluster's blocks differ above those that
// a block has itself.
inline constexpr unsigned kWgmmaDescriptorHigh = 128 / 16;

__device__ inline unsigned wgmma_descriptor(unsigned address, unsigned depth_pitch) {
  return depth_pitch << 16 | (address / 16 & 0x3fff);
}

// ---- operands with the 128-byte swizzle: lines of 128 bytes whose eight 16-byte pieces are swapped, piece i
// of line j in place i ^ j % 8, eight lines one after the other 1024 bytes from the next eight. A line is the
// 64 channels of a pixel, or 64 rows or columns of a channel; such blocks of 64 columns lie `column_pitch`
// apart. The descriptor's upper word: how far apart the eights lie, and the swizzle.
inline constexpr unsigned kWgmmaSwizzledHigh = 1024 / 16 | 1u << 30;

__device__ inline unsigned wgmma_swizzled_descriptor(unsigned address, unsigned column_pitch) {
  return column_pitch / 16 << 16 | (address / 16 & 0x3fff);
}

inline constexpr int kWgmmaColumnStep = 16, kWgmmaMostColumns = 256;  // of the products here

}  // namespace convt
