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
#pragma once

#include "convt/device/async_copy.cuh"
#include "convt/device/tile_params.cuh"

namespace convt {
namespace tile_mma {

template <typename T>
inline constexpr int kChannelVector = 16 / static_cast<int>(sizeof(T));

// Word i of 16 bytes.
__device__ inline unsigned word(const uint4& x, int i) {
  return i == 0 ? x.x : i == 1 ? x.y : i == 2 ? x.z : x.w;
}

// The channels of pixel i, from 16 bytes of pixels of each channel.
template <typename T>
__device__ inline uint4 vector_of_pixel(const uint4 (&x)[kChannelVector<T>], int i) {
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

// NCHW, kBytes along W at a time, into `rows`. `channel` is the chunk's first. A warp takes a row of the
// tile, neighbouring lanes neighbouring pixels of a channel.
template <typename T, int kBytes, int kThreads>
__device__ inline void stage_rows(const Params<T>& p, const Tile& tile, const T* group_input, int channel,
                                  unsigned char* rows) {
  constexpr int kPixels = kBytes / static_cast<int>(sizeof(T));
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int log2_lanes = min(32 - __clz(p.row_vectors - 1), 5);  // lanes of a row
  const int first_channel = lane >> log2_lanes, channel_step = 32 >> log2_lanes;
  const int channels = p.planes * kChannelVector<T>;
  const int64_t source_step = channel_step * p.input_stride.c;
  const int first_h = tile.grid_h + p.taps_h.least_offset;
  const int exact_w = tile.grid_w + p.taps_w.least_offset;
  const int first_w = exact_w & -kPixels;  // rounded down, also below zero
  for (int row = static_cast<int>(threadIdx.x) / 32; row < p.images * p.image_rows; row += kThreads / 32) {
    const auto by_image = p.image_rows.divide(row);
    const int n = tile.image + by_image.quotient;
    const int h = first_h + by_image.remainder;
    const bool row_exists = n < p.batch && h >= 0;
    for (int vector = lane & ((1 << log2_lanes) - 1); vector < p.row_vectors; vector += 32) {
      const int w = first_w + vector * kPixels;
      const bool exists = row_exists && (p.flat_rows ? h * p.input_w + w < p.input_h * p.input_w
                                                     : h < p.input_h && w >= 0 && w < p.input_w);
      const T* source = group_input + n * p.input_stride.n + h * p.input_stride.h + w +
                        (channel + first_channel) * p.input_stride.c;
      T* const pixel = reinterpret_cast<T*>(rows) + by_image.quotient * p.shared.image_pixels +
                       by_image.remainder * p.shared.input_cols + vector * kPixels;
#pragma unroll 4
      for (int c = first_channel; c < channels; c += channel_step) {
        const bool valid = exists && channel + c < p.cin_per_group;
        T* const destination = pixel + c * p.shared.row_pitch + c / kChannelVector<T> * p.shared.row_padding;
        if constexpr (kBytes >= 4) {
          copy_async<kBytes>(destination, valid ? source : group_input, valid);
        } else {
          *reinterpret_cast<unsigned short*>(destination) =
              valid ? *reinterpret_cast<const unsigned short*>(source) : 0;
        }
        source += source_step;
      }
    }
  }
}

// Turns staged rows into planes. Neighbouring threads take neighbouring planes, whose vectors lie in
// different banks on both sides.
template <typename T, int kThreads>
__device__ inline void turn_rows(const Params<T>& p, const unsigned char* rows, unsigned char* planes) {
  constexpr int kChannels = kChannelVector<T>;
  constexpr int kPixels = 16 / static_cast<int>(sizeof(T));
  const int units = p.planes * (p.shared.row_pitch / kPixels);
#pragma unroll 1
  for (int index = threadIdx.x; index < units; index += kThreads) {
    const auto by_plane = p.planes.divide(index);
    const T* source = reinterpret_cast<const T*>(rows) +
                      by_plane.remainder * (kChannels * p.shared.row_pitch + p.shared.row_padding) +
                      by_plane.quotient * kPixels;
    uint4 x[kChannels];
#pragma unroll
    for (int c = 0; c < kChannels; ++c)
      x[c] = *reinterpret_cast<const uint4*>(source + c * p.shared.row_pitch);
    uint4* destination =
        reinterpret_cast<uint4*>(planes) + by_plane.remainder * p.shared.plane + by_plane.quotient * kPixels;
#pragma unroll
    for (int i = 0; i < kPixels; ++i) destination[i] = vector_of_pixel<T>(x, i);
  }
}

// NHWC, kBytes along C at a time. A warp takes a row of the tile, neighbouring lanes neighbouring channels of
// a pixel.
template <typename T, int kBytes, int kThreads>
__device__ inline void stage_pixels(const Params<T>& p, const Tile& tile, const T* group_input, int channel,
                                    unsigned char* planes) {
  constexpr int kPieces = 16 / kBytes;  // of a vector
  constexpr int kElements = kBytes / static_cast<int>(sizeof(T));
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int pieces = p.planes * kPieces;
  const int log2_lanes = min(32 - __clz(pieces - 1), 5);  // lanes of a pixel
  const int first_col = lane >> log2_lanes, col_step = 32 >> log2_lanes;
  const int first_h = tile.grid_h + p.taps_h.least_offset;
  const int first_w = tile.grid_w + p.taps_w.least_offset + first_col;
  const int64_t source_step = col_step * p.input_stride.w;
  for (int row = static_cast<int>(threadIdx.x) / 32; row < p.images * p.image_rows; row += kThreads / 32) {
    const auto by_image = p.image_rows.divide(row);
    const int n = tile.image + by_image.quotient;
    const int h = first_h + by_image.remainder;
    const bool row_exists = n < p.batch && h >= 0 && h < p.input_h;
    const int pixel =
        by_image.quotient * p.shared.image_pixels + by_image.remainder * p.shared.input_cols + first_col;
    for (int piece = lane & ((1 << log2_lanes) - 1); piece < pieces; piece += 32) {
      const int c = channel + piece * kElements;
      const bool exists = row_exists && c < p.cin_per_group;
      const T* source = group_input + n * p.input_stride.n + h * p.input_stride.h +
                        first_w * p.input_stride.w + c * p.input_stride.c;
      unsigned char* destination =
          planes + (piece / kPieces * p.shared.plane + pixel) * 16 + piece % kPieces * kBytes;
      int w = first_w;
#pragma unroll 4
      for (int col = first_col; col < p.shared.input_cols; col += col_step) {
        const bool valid = exists && w >= 0 && w < p.input_w;
        if constexpr (kBytes >= 4) {
          copy_async<kBytes>(destination, valid ? source : group_input, valid);
        } else {
          *reinterpret_cast<unsigned short*>(destination) =
              valid ? *reinterpret_cast<const unsigned short*>(source) : 0;
        }
        w += col_step;
        source += source_step;
        destination += col_step * 16;
      }
    }
  }
}

// Starts to stage p.planes planes from channel `channel` of the group: into rows for NCHW, planes for NHWC.
template <typename T, int kThreads>
__device__ inline void stage_input(const Params<T>& p, const Tile& tile, const T* group_input, int channel,
                                   unsigned char* stage) {
  if (p.input_channels_last) {
    switch (p.load_bytes) {
      case 16:
        return stage_pixels<T, 16, kThreads>(p, tile, group_input, channel, stage);
      case 8:
        return stage_pixels<T, 8, kThreads>(p, tile, group_input, channel, stage);
      case 4:
        return stage_pixels<T, 4, kThreads>(p, tile, group_input, channel, stage);
      default:
        if constexpr (sizeof(T) == 2) stage_pixels<T, 2, kThreads>(p, tile, group_input, channel, stage);
        return;
    }
  }
  switch (p.load_bytes) {
    case 16:
      return stage_rows<T, 16, kThreads>(p, tile, group_input, channel, stage);
    case 8:
      return stage_rows<T, 8, kThreads>(p, tile, group_input, channel, stage);
    case 4:
      return stage_rows<T, 4, kThreads>(p, tile, group_input, channel, stage);
    default:
      if constexpr (sizeof(T) == 2) stage_rows<T, 2, kThreads>(p, tile, group_input, channel, stage);
      return;
  }
}

}  // namespace tile_mma
}  // namespace convt
