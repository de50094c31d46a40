// Loader of the tensor-core kernels: brings the input under a tile into shared memory as channel planes,
//
//   [vector of channels][pixel of the tile and its halo] 16 bytes
//
// (8 channels of a 16-bit type, 4 of float), zeros outside the image and past the last channel. There a row
// of ldmatrix is one pixel's vector, a tap of the filter is an address offset, and the layout in memory no
// longer matters.
//
// The copies are asynchronous, started one turn ahead, and pass no register. NHWC has a pixel's channels side
// by side: they go to their planes at once. NCHW has a channel's pixels side by side: they wait as they are,
//
//   [channel][pixel of the tile and its halo] element
//
// until the block's turn, when a thread reads the same pixels of all channels of a vector, turns them in its
// registers (one byte permutation for two 16-bit elements), and writes a vector for each pixel.
//
// float32 is rounded to TF32, or split into two parts (convt/device/tf32.cuh), when it is turned; NHWC, which
// is not, is then read and written once more where it lies.
#pragma once

#include "convt/device/async_copy.cuh"
#include "convt/device/mma.cuh"
#include "convt/device/tf32.cuh"
#include "convt/device/tile_params.cuh"

namespace convt {
namespace tile_mma {

template <typename T>
inline constexpr int kChannelVector = 16 / static_cast<int>(sizeof(T));

// Word i of 16 or 8 bytes.
__device__ inline unsigned word(const uint4& x, int i) {
  return i == 0 ? x.x : i == 1 ? x.y : i == 2 ? x.z : x.w;
}
__device__ inline unsigned word(const uint2& x, int i) { return i == 0 ? x.x : x.y; }

// The channels of pixel i, from 16 or 8 bytes of pixels of each channel.
template <typename T, typename Pixels>
__device__ inline uint4 vector_of_pixel(const Pixels (&x)[kChannelVector<T>], int i) {
  if constexpr (sizeof(T) == 4) {
    return make_uint4(word(x[0], i), word(x[1], i), word(x[2], i), word(x[3], i));
  } else {
    const unsigned halves = i % 2 == 0 ? 0x5410 : 0x7632;
    return make_uint4(__byte_perm(word(x[0], i / 2), word(x[1], i / 2), halves),
                      __byte_perm(word(x[2], i / 2), word(x[3], i / 2), halves),
                      __byte_perm(word(x[4], i / 2), word(x[5], i / 2), halves),
                      __byte_perm(word(x[6], i / 2), word(x[7], i / 2), halves));
  }
}

// Copies an element or more to shared memory, zeros where `valid` is false.
template <typename T, int kBytes>
__device__ inline void stage_piece(unsigned destination, const T* source, bool valid) {
  if constexpr (kBytes >= kLeastCopyBytes) {
    copy_async<kBytes>(destination, source, valid);
  } else if constexpr (kBytes == 2) {
    const unsigned short bits = valid ? *reinterpret_cast<const unsigned short*>(source) : 0;
    asm volatile("st.shared.u16 [%0], %1;" ::"r"(destination), "h"(bits) : "memory");
  }
}

// Copies whose addresses a thread computes at once, as registers allow.
template <typename T>
inline constexpr int kCopiesAtOnce = sizeof(T) == 4 ? 2 : 4;

// NCHW, kBytes along W at a time, into `rows`. `channel` is the chunk's first. A thread takes one vector of
// one row, and walks over the channels; neighbouring threads take neighbouring vectors.
template <typename T, int kBytes, int kThreads>
__device__ inline void stage_rows(const Params<T>& p, const Tile& tile, const T* group_input, int channel,
                                  unsigned char* rows) {
  constexpr int kSize = static_cast<int>(sizeof(T)), kPixels = kBytes / kSize;
  const int channels = p.planes * kChannelVector<T>;
  const int existing = min(channels, p.cin_per_group - channel);
  const int first_h = tile.grid_h + p.taps_h.least_offset;
  // Rounded down, also below zero.
  const int first_w = (tile.grid_w + p.taps_w.least_offset) * p.taps_w.inputs & -kPixels;
  const auto start = p.tile_vectors.divide(static_cast<int>(threadIdx.x));
  // With fewer vectors than threads, several threads share a vector's channels.
  const int first_channel = start.quotient < p.channel_sharers ? start.quotient : channels;
  const int64_t source_step = p.channel_sharers * p.input_stride.c;
  for (int number = p.channel_sharers > 1 ? start.remainder : static_cast<int>(threadIdx.x);
       number < p.tile_vectors; number += kThreads) {
    const auto by_row = p.row_vectors.divide(number);
    const auto by_image = p.image_rows.divide(by_row.quotient);
    const int n = tile.image + by_image.quotient;
    const int h = first_h + by_image.remainder;
    const int w = first_w + by_row.remainder * kPixels;
    const bool exists =
        n < p.batch && h >= 0 &&
        (p.flat_rows ? h * p.input_w + w < p.input_h * p.input_w : h < p.input_h && w >= 0 && w < p.input_w);
    const T* source = group_input + n * p.input_stride.n + h * p.input_stride.h + w +
                      (channel + first_channel) * p.input_stride.c;
    const unsigned destination =
        shared_address(rows) + (by_image.quotient * p.shared.staged_image +
                                by_image.remainder * p.shared.staged_cols + by_row.remainder * kPixels) *
                                   kSize;
    const int end = exists ? existing : 0;
    int c = first_channel;
    const auto place = [&] {
      return destination + (c * p.shared.row_pitch + c / kChannelVector<T> * p.shared.row_padding) * kSize;
    };
#pragma unroll(kCopiesAtOnce<T>)
    for (; c < end; c += p.channel_sharers) {
      stage_piece<T, kBytes>(place(), source, true);
      source += source_step;
    }
#pragma unroll 1
    for (; c < channels; c += p.channel_sharers) stage_piece<T, kBytes>(place(), group_input, false);
  }
}

// Reads neighbouring pixels, from `pixel` on, of all channels of a staged plane.
template <typename T, typename Pixels>
__device__ inline void read_staged(const Params<T>& p, const unsigned char* rows, int plane, int pixel,
                                   Pixels (&x)[kChannelVector<T>]) {
  constexpr int kChannels = kChannelVector<T>;
  const T* source = reinterpret_cast<const T*>(rows) +
                    plane * (kChannels * p.shared.row_pitch + p.shared.row_padding) + pixel;
#pragma unroll
  for (int c = 0; c < kChannels; ++c)
    x[c] = *reinterpret_cast<const Pixels*>(source + c * p.shared.row_pitch);
}

// Writes a pixel's vector to `destination`, as the tensor cores take it; further parts lie `part_planes` on.
template <typename T, int kParts>
__device__ inline void store_vector(uint4* destination, int part_planes, const uint4& vector) {
  if constexpr (sizeof(T) == 2) {
    *destination = vector;
  } else {
    uint4 parts[kParts];
    split_tf32(vector, parts);
#pragma unroll
    for (int part = 0; part < kParts; ++part) destination[part * part_planes] = parts[part];
  }
}

// Vectors from one part of a chunk's planes to the next.
template <typename T>
__device__ inline int part_planes(const Params<T>& p) {
  return p.planes * p.shared.plane;
}

// Rounds or splits planes of float32 that hold what was copied, kAtOnce vectors of a thread at a time.
template <int kParts, int kThreads, int kAtOnce>
__device__ inline void split_planes(const Params<float>& p, unsigned char* planes) {
  uint4* const vectors = reinterpret_cast<uint4*>(planes);
  const int count = part_planes(p);
#pragma unroll 1
  for (int first = threadIdx.x; first < count; first += kAtOnce * kThreads) {
    uint4 copied[kAtOnce];
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      if (first + i * kThreads < count) copied[i] = vectors[first + i * kThreads];
    }
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      if (first + i * kThreads < count)
        store_vector<float, kParts>(vectors + first + i * kThreads, count, copied[i]);
    }
  }
}

// Turns staged rows into planes. Neighbouring threads take neighbouring planes, whose vectors lie in
// different banks on both sides.
template <typename T, int kParts, int kThreads>
__device__ inline void turn_rows(const Params<T>& p, const unsigned char* rows, unsigned char* planes) {
  constexpr int kPixels = 16 / static_cast<int>(sizeof(T));
  const int units = p.planes * (p.shared.row_pitch / kPixels);
#pragma unroll 1
  for (int index = threadIdx.x; index < units; index += kThreads) {
    const auto by_plane = p.planes.divide(index);
    uint4 x[kChannelVector<T>];
    read_staged(p, rows, by_plane.remainder, by_plane.quotient * kPixels, x);
    uint4* destination =
        reinterpret_cast<uint4*>(planes) + by_plane.remainder * p.shared.plane + by_plane.quotient * kPixels;
#pragma unroll
    for (int i = 0; i < kPixels; ++i) {
      store_vector<T, kParts>(destination + i, part_planes(p), vector_of_pixel<T>(x, i));
    }
  }
}

// NHWC, kBytes along C at a time, into `planes`. A thread takes one piece of one column's channels, and walks
// over the rows; neighbouring threads take neighbouring channels.
template <typename T, int kBytes, int kThreads>
__device__ inline void stage_pixels(const Params<T>& p, const Tile& tile, const T* group_input, int channel,
                                    unsigned char* planes) {
  constexpr int kPieces = 16 / kBytes;  // of a vector
  constexpr int kElements = kBytes / static_cast<int>(sizeof(T));
  const int first_h = tile.grid_h + p.taps_h.least_offset;
  const int units = p.channel_pieces * p.shared.input_cols * p.taps_w.inputs;
  for (int unit = threadIdx.x; unit < units; unit += kThreads) {
    const auto by_col = p.channel_pieces.divide(unit);
    const int piece = by_col.remainder;
    const int w = (tile.grid_w + p.taps_w.least_offset) * p.taps_w.inputs + by_col.quotient;
    const int pixel =
        p.taps_w.point_of(by_col.quotient) + p.taps_w.input_of(by_col.quotient) * p.shared.second_inputs;
    const int c = channel + piece * kElements;
    const bool exists = w >= 0 && w < p.input_w && c < p.cin_per_group;
    unsigned destination =
        shared_address(planes) + (piece / kPieces * p.shared.plane + pixel) * 16 + piece % kPieces * kBytes;
    for (int image = 0; image < p.images; ++image) {
      const int n = tile.image + image;
      // Rows of the image are h with 0 <= h < end.
      const unsigned end = exists && n < p.batch ? static_cast<unsigned>(p.input_h) : 0;
      const T* source = group_input + n * p.input_stride.n + first_h * p.input_stride.h +
                        w * p.input_stride.w + c * p.input_stride.c;
      int h = first_h;
#pragma unroll(kCopiesAtOnce<T>)
      for (int row = 0; row < p.image_rows; ++row) {
        const bool valid = static_cast<unsigned>(h) < end;
        stage_piece<T, kBytes>(destination, valid ? source : group_input, valid);
        ++h;
        source += p.input_stride.h;
        destination += p.shared.input_cols * 16;
      }
      destination += (p.shared.image_pixels - p.image_rows * p.shared.input_cols) * 16;
    }
  }
}

// Starts to stage p.planes planes from channel `channel` of the group: into rows for NCHW, planes for NHWC.
template <typename T, int kThreads>
__device__ inline void stage_input(const Params<T>& p, const Tile& tile, const T* group_input, int channel,
                                   unsigned char* stage) {
  // No copy is narrower than an element.
  if (p.input_channels_last) {
    with_width(p.load_bytes, [&](auto width) {
      constexpr int kBytes = decltype(width)::value;
      if constexpr (kBytes >= sizeof(T)) {
        stage_pixels<T, kBytes, kThreads>(p, tile, group_input, channel, stage);
      }
    });
  } else {
    with_width(p.load_bytes, [&](auto width) {
      constexpr int kBytes = decltype(width)::value;
      if constexpr (kBytes >= sizeof(T)) {
        stage_rows<T, kBytes, kThreads>(p, tile, group_input, channel, stage);
      }
    });
  }
}

}  // namespace tile_mma
}  // namespace convt
