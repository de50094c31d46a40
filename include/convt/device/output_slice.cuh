// Rows of the output that are put together in shared memory, as far from a multiple of 16 bytes as the
// output's own rows are, and leave in pieces of 16 bytes: by bulk copies (compute capability 9.0), or in
// whole lines of memory by threads. The epilogue of scatter_gemm and phase_gemm.
#pragma once

#include <cstdint>

#include "convt/device/async_copy.cuh"
#include "convt/device/scalar.cuh"
#include "convt/device/shared_words.cuh"

namespace convt {
namespace output_slice {

inline constexpr int kPiece = 16;     // bytes that are copied at once
inline constexpr int kLineLanes = 8;  // that copy a line of memory, or more

// Stores kBytes of `words` from shared address `to` on, in stores of kWidth bytes.
template <int kWidth, int kBytes>
__device__ inline void store_words(unsigned to, const unsigned (&words)[kBytes / 4]) {
#pragma unroll
  for (int i = 0; i < kBytes / 4; i += kWidth / 4) {
    if constexpr (kWidth == 16) {
      store_shared(to + 4 * i, words[i], words[i + 1], words[i + 2], words[i + 3]);
    } else if constexpr (kWidth == 8) {
      store_shared(to + 4 * i, words[i], words[i + 1]);
    } else {
      store_shared(to + 4 * i, words[i]);
    }
  }
}

// Four bytes of an output, rounded.
template <typename T>
__device__ inline unsigned repeated(float value) {
  if constexpr (sizeof(T) == 4) {
    return __float_as_uint(value);
  } else {
    return pack_pair<T>(value, value);
  }
}

// How far an output is from a multiple of 16 bytes.
template <typename T>
__device__ inline int shift_of(const T* output) {
  return static_cast<int>(reinterpret_cast<uintptr_t>(output) % kPiece);
}

// What a slice holds of its rows: bytes from the first place's first output on.
struct Extent {
  int begin, end;
};

template <typename T>
__device__ inline void copy_element(unsigned char* to, unsigned from, int at, int end) {
  if (at >= end) return;
  if constexpr (sizeof(T) == 4) {
    *reinterpret_cast<unsigned*>(to + at) = load_word(from + at);
  } else {
    *reinterpret_cast<unsigned short*>(to + at) = load_half_word(from + at);
  }
}

// Copies a row from shared address `row`, a multiple of 16 bytes, to `output`: whole pieces, then what is
// left over at both ends. By `lanes` threads, kLineLanes or a multiple of it; the caller commits bulk copies.
template <typename T>
__device__ inline void copy_row(T* output, unsigned row, const Extent& extent, int lane, int lanes) {
  constexpr int kSize = sizeof(T);
  static_assert(kLineLanes * kSize >= kPiece);
  unsigned char* const to = reinterpret_cast<unsigned char*>(output);
  const int shift = shift_of(output);
  const unsigned from = row + static_cast<unsigned>(shift);
  // Without a whole piece, everything is left over at the end.
  const int end = max((shift + extent.end) / kPiece * kPiece - shift, extent.begin);
  const int begin = min((shift + extent.begin + kPiece - 1) / kPiece * kPiece - shift, end);
  if constexpr (kHasBulkCopies) {
    if (lane == 0 && begin < end) copy_bulk(to + begin, from + begin, end - begin);
  } else {
    // Whole lines of memory at a time: parts of sectors cost as much as sectors.
    const int line = static_cast<int>(reinterpret_cast<uintptr_t>(to + begin) % (kLineLanes * kPiece));
#pragma unroll 4
    for (int at = begin - line + lane * kPiece; at < end; at += lanes * kPiece) {
      if (at >= begin) *reinterpret_cast<uint4*>(to + at) = load_words(from + at);
    }
  }
  copy_element<T>(to, from, extent.begin + lane * kSize, begin);
  copy_element<T>(to, from, end + lane * kSize, extent.end);
}

}  // namespace output_slice
}  // namespace convt
