// Boxes of tensors that are copied at once (convt/device/tensor_copy.cuh).
#pragma once

#include <cuda.h>

#include <cstdint>

namespace convt {

inline constexpr int kTensorRank = 5;

// A tensor's sides and the distances in bytes between neighbours along each but the first, whose neighbours
// lie side by side; and the box of one copy, whose lines of 128 bytes are swapped in shared memory as wgmma's
// 128-byte swizzle has it, or whose elements lie side by side there.
struct TensorBox {
  CUtensorMapDataType type;
  const void* address;
  int64_t sides[kTensorRank], pitches[kTensorRank - 1];
  int box[kTensorRank];
  bool swizzled = true;
};

// A copy's address and distances are multiples of this, and the bytes of the first side of a box whose
// elements lie side by side.
inline constexpr int kTensorAlignment = 16;

// Where a box begins.
struct BoxPlace {
  int at[kTensorRank];
};

}  // namespace convt
