// What the plan and the `tile_wgmma` kernel agree on beyond convt/tile_mma.h, whose tiles and taps it uses.
#pragma once

#include <algorithm>

#include "convt/tile_mma.h"

namespace convt {

// A warpgroup multiplies `row_tiles` row tiles of 64 rows with `pixels` pixels at a time.
struct TileWgmmaConfig {
  int row_tiles;
  int pixels;

  // Whether it is compiled for operands of so many parts: their sums take 128 registers of a thread.
  constexpr bool takes(int parts) const { return parts * row_tiles * pixels == 256; }
};

// The configurations compiled. The plan refers to them by index.
inline constexpr TileWgmmaConfig kTileWgmmaConfigs[] = {
    {1, 256},
    {2, 128},
    {1, 128},  // of split operands, whose sums are there twice
};
inline constexpr int kTileWgmmaConfigCount =
    static_cast<int>(sizeof(kTileWgmmaConfigs) / sizeof(kTileWgmmaConfigs[0]));

inline constexpr int kTileWgmmaRows = 64;      // of a row tile
inline constexpr int kTileWgmmaSlice = 64;     // pixels whose sums are laid out at once
inline constexpr int kTileWgmmaGroups = 2;     // warpgroups that multiply
inline constexpr int kTileWgmmaLoaders = 2;    // warps that copy the weight, one for each of them
inline constexpr int kTileWgmmaStagers = 192;  // threads that stage input
inline constexpr int kTileWgmmaThreads = kTileWgmmaStagers + 32 * kTileWgmmaLoaders + 128 * kTileWgmmaGroups;

// The packed weight: what a channel step of an offset needs is two columns of 8 x 8 blocks,
//
//   [group][row tile][chunk][offset][channel step of the chunk] [vector of channels][row] 16 bytes
//
// so that steps which are multiplied one after the other lie one after the other, and are copied together.
//
// Split operands have both columns twice, [part] [vector of channels][row].
inline constexpr int kTileWgmmaStepBytes = kTileWgmmaRows * 32;  // of one part
inline constexpr int kTileWgmmaGroupSteps = 8;  // multiplied together, and copied together at most

// What the two warpgroups divide between them.
enum class TileWgmmaDivision {
  kTiles,     // pieces of work: each takes every other one
  kRowTiles,  // of a piece of work
  kPixels,    // of a tile: each takes half of their numbers
};

// Row tiles have one phase along H, and one along W or two in halves: of a stride of 2 or more or, where
// points have two inputs (convt/axis_taps.h), of a stride of 1. `config` counts in kTileWgmmaConfigs. The
// pixels of a tile are its points, numbered along the planes, halo included; a plane has first the first
// inputs of all, then the second ones. `channel_steps` counts whole chunks: channels past the last are zeros.
// There is one split.
struct TileWgmmaLaunch : TileMmaLaunch {
  TileWgmmaDivision division = TileWgmmaDivision::kTiles;
  int stages = 2;             // buffers of planes
  int row_stages = 0;         // buffers of NCHW rows
  int phases_w = 1;           // along W that one thread stores together, of NCHW: 1, 2 or 4
  bool keeps_weight = false;  // a thread block holds the whole weight
  int weight_stages = 1;      // buffers of a warpgroup's weight
  int weight_steps = 1;       // channel steps in a buffer
  // Thread blocks that take the same row tiles of neighbouring tiles of pixels at a time: each loads half of
  // the weight for both.
  int cluster = 1;

  // Of the weight of a channel step.
  int step_bytes() const { return parts * kTileWgmmaStepBytes; }
  // The ring holds all chunks of a tile: they are staged once for all row tiles.
  bool keeps_planes() const { return chunks <= stages; }
  // What a warp lays out at once.
  LineShape lines() const { return {phases_in_halves ? 8 : 16, phases_w}; }
  // Whether output is stored in pieces of `bytes`: a pixel or more of a row, or eight output channels.
  bool stores_pieces(int bytes, bool output_channels_last) const {
    return output_channels_last ? bytes == 16 : phases_w == taps_w.stride && bytes >= element_size * phases_w;
  }
  // Warpgroups that multiply different rows at a time, or at different times, have their own weight.
  int weight_streams() const {
    return keeps_weight || division == TileWgmmaDivision::kPixels ? 1 : kTileWgmmaGroups;
  }
};

// The block's shared memory, in bytes from its start:
//
//   barriers     [stages] full, [stages] empty, then for each stream [weight_stages] full, [..] empty
//   notes        [warps] kTileWgmmaNoteBytes: where the warp's tile lies, and what it puts aside
//   steps        [phase set][offset][channel step of a chunk] 4 bytes: from the first plane, in 16 bytes
//   weight       [streams][weight_stages][weight_steps] step_bytes()
//   planes       [stages][parts][2 * chunk_steps][plane] 16 bytes
//   rows         [row_stages][...] as in TileMmaShared, for NCHW
//   output       [warps that multiply][output_bytes]: 64 pixels of a warp's rows at a time
//
// Products of pixels that stand for no point may read past the planes, at most kTileWgmmaOverread bytes.
struct TileWgmmaShared : TileMmaShared {
  size_t notes_offset, steps_offset, weight_offset;
};

inline constexpr size_t kTileWgmmaOverread = 512 * 16;
inline constexpr int kTileWgmmaNoteBytes = 64;

// Bytes of a pixel's 64 rows, and padding: stores and loads of 16 bytes then meet different banks.
CONVT_HOST_DEVICE constexpr int tile_wgmma_pixel_pitch(int element_size) {
  return kTileWgmmaRows * element_size + 16;
}

// Sets what concerns the staged input.
inline void set_staged_input(TileWgmmaShared& s, const TileWgmmaLaunch& launch) {
  const int channels = launch.vector_channels();
  const auto whole_vectors = [channels](int columns) {
    return (columns + channels - 1) / channels * channels;
  };
  const int exact = launch.cols + launch.taps_w.span, inputs = launch.taps_w.inputs;
  s.input_rows = launch.rows + launch.taps_h.span;
  // Points, where those have two inputs. Two whose numbers are 2 i and 2 i + 1 lie in the same row.
  s.input_cols = launch.flat_rows ? launch.cols : exact + exact % 2;
  s.image_pixels = s.input_rows * s.input_cols;
  s.row_numbers = s.input_cols;
  s.image_numbers = s.image_pixels;
  s.staged_cols = whole_vectors(launch.flat_rows ? s.image_pixels : columns_before(launch) + inputs * exact);
  s.staged_image = (launch.flat_rows ? 1 : s.input_rows) * s.staged_cols;
  s.row_pitch = launch.images * s.staged_image;
  s.row_padding = staged_row_padding(launch.chunk_steps, channels);
  s.second_inputs = launch.images * s.image_pixels;
  s.plane = (inputs * s.second_inputs) | 1;
}

inline TileWgmmaShared tile_wgmma_shared(const TileWgmmaLaunch& launch, bool output_channels_last) {
  const int element_size = launch.element_size;
  TileWgmmaShared s;
  set_staged_input(s, launch);
  s.plane_buffers = launch.stages;
  s.row_buffers = launch.row_stages;
  if (output_channels_last) {
    const int couts = launch.phases_in_halves ? 8 : 16;
    s.output_pitch = couts + channels_padding(launch);
    // A quarter of whole pixels, or the warp's rows of all pixels.
    s.output_bytes = std::max(kTileWgmmaSlice / 4 * tile_wgmma_pixel_pitch(element_size),
                              16 / couts * kTileWgmmaSlice * s.output_pitch * element_size);
  } else {
    // The rows of the warp's one or two blocks, those of different phases in one line.
    const bool two_blocks = launch.phases_w == (launch.phases_in_halves ? 4 : 2);
    s.output_pitch = (kTileWgmmaSlice + 8) * launch.phases_w;
    s.output_bytes = (two_blocks ? 32 : 16) / launch.phases_w * s.output_pitch * element_size;
  }
  const size_t steps = static_cast<size_t>(launch.taps_h.begin[launch.taps_h.sets]) *
                       static_cast<size_t>(launch.taps_w.begin[launch.taps_w.sets]) *
                       static_cast<size_t>(launch.chunk_steps);
  const size_t weight_buffers = static_cast<size_t>(launch.weight_streams()) * launch.weight_stages;
  s.notes_offset = 16 * (launch.stages + weight_buffers);
  s.steps_offset = s.notes_offset + kTileWgmmaThreads / 32 * kTileWgmmaNoteBytes;
  // Lanes that have no step read on past the last.
  s.weight_offset = (s.steps_offset + 4 * (steps + kTileWgmmaGroupSteps) + 127) / 128 * 128;
  s.planes_offset = s.weight_offset + weight_buffers * launch.weight_steps * launch.step_bytes();
  s.rows_offset = s.planes_offset + static_cast<size_t>(launch.stages) * plane_bytes(s, launch);
  s.output_offset = s.rows_offset + launch.row_stages * row_bytes(s, launch);
  s.bytes = s.output_offset + static_cast<size_t>(4 * kTileWgmmaGroups) * s.output_bytes;
  if (s.bytes < s.rows_offset + kTileWgmmaOverread) s.bytes = s.rows_offset + kTileWgmmaOverread;
  return s;
}

}  // namespace convt
