// What the plan and the `tile_wgmma` kernel agree on beyond convt/tile_mma.h, whose tiles, taps and packed
// weight it uses.
#pragma once

#include "convt/tile_mma.h"

namespace convt {

// A warpgroup multiplies `row_tiles` row tiles of 64 rows with `segments` runs of 128 pixels. A thread block
// has one warpgroup that stages input and two that multiply.
struct TileWgmmaConfig {
  int row_tiles;
  int segments;

  constexpr int pixels() const { return 128 * segments; }
};

// The configurations compiled. The plan refers to them by index.
inline constexpr TileWgmmaConfig kTileWgmmaConfigs[] = {
    {1, 2},  // 64 rows x 256 pixels
    {2, 1},  // 128 x 128
};
inline constexpr int kTileWgmmaConfigCount =
    static_cast<int>(sizeof(kTileWgmmaConfigs) / sizeof(kTileWgmmaConfigs[0]));

inline constexpr int kTileWgmmaRows = 64;      // of a row tile
inline constexpr int kTileWgmmaSegment = 128;  // pixels
inline constexpr int kTileWgmmaSlice = 64;     // pixels whose sums are laid out at once
inline constexpr int kTileWgmmaGroups = 2;     // warpgroups that multiply
inline constexpr int kTileWgmmaThreads = 128 * (1 + kTileWgmmaGroups);

// Row tiles have one phase along H, and one along W or two in halves. `config` counts in kTileWgmmaConfigs.
// A tile's columns are a multiple of 128, or its pixels are numbered along the planes: either way a segment
// is a run of a plane. `channel_steps` counts whole chunks: channels past the last are zeros. There is one
// split.
struct TileWgmmaLaunch : TileMmaLaunch {
  bool separate_tiles = false;  // the two warpgroups take different tiles, not different rows of one
  int stages = 2;               // buffers of planes
  int row_stages = 0;           // buffers of NCHW rows
  int phases_w = 1;             // along W that one thread stores together, of NCHW: 1, 2 or 4

  // The ring holds all chunks of a tile: they are staged once for all row tiles.
  bool keeps_planes() const { return chunks <= stages; }
};

// The block's shared memory, in bytes from its start:
//
//   sizes        16 bytes of the launch parameters
//   offsets      [offsets of all phase sets] pixels into a plane
//   barriers     [stages] full, [stages] empty
//   planes       [stages][2 * chunk_steps][plane] 16 bytes
//   rows         [row_stages][...] as in TileMmaShared, for NCHW
//   output       [warps that multiply][output_bytes]: 64 pixels of a warp's rows at a time
//   fragments    [warps that multiply][kTileWgmmaFragmentPairs][2][lane] 16 bytes of A
//
// Products of pixels that stand for no point may read past the planes, at most kTileWgmmaOverread bytes.
inline constexpr size_t kTileWgmmaOverread = 16 << 10;
inline constexpr int kTileWgmmaPairBytes = 1024, kTileWgmmaFragmentPairs = 4;
inline constexpr int kTileWgmmaLinePitch = 48;  // bytes of a pixel's 16 rows, and padding

inline TileMmaShared tile_wgmma_shared(const TileWgmmaLaunch& launch, int element_size,
                                       bool output_channels_last) {
  TileMmaShared s;
  set_staged_input(s, launch, element_size);
  s.plane_buffers = launch.stages;
  s.row_buffers = launch.row_stages;
  if (output_channels_last) {
    const int couts = launch.phases_in_halves ? 8 : 16;
    s.output_pitch = couts + 8;
    s.output_bytes = 16 / couts * kTileWgmmaSlice * s.output_pitch * element_size;
  } else {
    // The rows of the warp's one or two blocks, those of different phases in one line.
    const bool two_blocks = launch.phases_w == (launch.phases_in_halves ? 4 : 2);
    s.output_pitch = (kTileWgmmaSlice + 8) * launch.phases_w;
    s.output_bytes = (two_blocks ? 32 : 16) / launch.phases_w * s.output_pitch * element_size;
  }
  const size_t offsets = static_cast<size_t>(launch.taps_h.begin[launch.taps_h.sets]) *
                         static_cast<size_t>(launch.taps_w.begin[launch.taps_w.sets]);
  const size_t barriers_offset = (16 + offsets * 4 + 7) / 8 * 8;
  s.planes_offset = (barriers_offset + 16 * static_cast<size_t>(launch.stages) + 127) / 128 * 128;
  s.rows_offset =
      s.planes_offset + static_cast<size_t>(launch.stages) * 2 * launch.chunk_steps * s.plane * 16;
  s.output_offset =
      s.rows_offset + launch.row_stages * tile_mma_row_bytes(s, launch.chunk_steps, element_size);
  s.bytes = s.output_offset + static_cast<size_t>(4 * kTileWgmmaGroups) *
                                  (s.output_bytes + kTileWgmmaFragmentPairs * kTileWgmmaPairBytes);
  if (s.bytes < s.rows_offset + kTileWgmmaOverread) s.bytes = s.rows_offset + kTileWgmmaOverread;
  return s;
}

}  // namespace convt
