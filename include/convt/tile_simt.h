// What the plan and the `tile_simt` kernel agree on: the compiled tile shapes and the launch parameters of
// one problem.
#pragma once

#include <cstddef>
#include <cstdint>

#include "convt/phases.h"

namespace convt {

// A tile is `couts()` output channels times `pixels()` bases; a base is a point of the input grid, and all
// the phases of its outputs belong to the tile. A warp's 32 lanes are lanes_cout x lanes_pixel.
struct TileSimtConfig {
  int couts_per_thread;   // 1, or a multiple of 4
  int lanes_cout;         // lanes of a warp along the output channels
  int warps_cout;         // warps of a block along the output channels
  int pixels_per_thread;  // accumulators: couts_per_thread * pixels_per_thread
  int warps_pixel;        // warps of a block along the pixels
  int channel_vector;     // input channels that lie together in shared memory: 4, or 1 for fewer than 4 per
                          // group
  int min_blocks;         // blocks an SM must be able to hold: bounds the registers

  constexpr int lanes_pixel() const { return 32 / lanes_cout; }
  constexpr int threads() const { return 32 * warps_cout * warps_pixel; }
  constexpr int couts() const { return couts_per_thread * lanes_cout * warps_cout; }
  constexpr int pixels() const { return pixels_per_thread * lanes_pixel() * warps_pixel; }
};

// The configurations compiled, from many to few output channels. The plan refers to them by index.
inline constexpr TileSimtConfig kTileSimtConfigs[] = {
    {8, 4, 2, 8, 2, 4, 2},  // 64 couts x 128 pixels
    {8, 4, 1, 4, 4, 4, 3},  // 32 x 128
    {8, 2, 1, 4, 4, 4, 3},  // 16 x 256
    {8, 1, 1, 4, 4, 4, 3},  //  8 x 512
    {4, 1, 1, 4, 4, 4, 3},  //  4 x 512
    {1, 1, 1, 4, 4, 4, 4},  //  1 x 512
    {8, 2, 1, 4, 4, 1, 3},  // 16 x 256, 1 to 3 input channels per group
    {4, 1, 1, 4, 4, 1, 4},  //  4 x 512, likewise
    {1, 1, 1, 4, 4, 1, 4},  //  1 x 512, likewise
};
inline constexpr int kTileSimtConfigCount =
    static_cast<int>(sizeof(kTileSimtConfigs) / sizeof(kTileSimtConfigs[0]));

// Taps of the whole filter that the block's tap table can hold.
inline constexpr int kTileSimtMaxTaps = 1024;
// Beyond it a block would spend its time going through phases that hold the bias alone.
inline constexpr int kTileSimtMaxStride = 256;

// The weight as pack_weights lays it out: [groups][taps][cin][cout] float, taps in the order of
// convt/device/tap_order.cuh, channels padded with zeros to whole chunks and tiles.
struct PackedWeights {
  int taps = 0, cin = 0, cout = 0;
};

// Everything about one launch that does not depend on pointers.
struct TileSimtLaunch {
  int config = 0;  // index into kTileSimtConfigs
  int images = 1;  // the tile in bases: images x rows x cols <= pixels() of the configuration
  int rows = 1;
  int cols = 1;
  int channel_chunk = 4;      // input channels staged at a time: a power of two, a multiple of channel_vector
  int channel_chunks = 1;     // steps of channel_chunk over cin_per_group
  int tap_chunk = 1;          // taps of a phase staged at a time
  int row_phases = 1;         // H-phases that one block computes one after the other
  bool vector_input = false;  // NHWC input whose channels can be read channel_vector at a time

  AxisPhases<int> phases_h, phases_w;
  int first_base_h = 0, first_base_w = 0;  // base of output 0
  int bases_h = 1, bases_w = 1;            // bases that have at least one output

  // Blocks along each direction; their product is the grid.
  int64_t tiles_cout = 1, tiles_w = 1, tiles_h = 1, tiles_n = 1, row_phase_splits = 1, groups = 1;

  bool packs_weights = false;  // pack_weights runs first, into a workspace of workspace_bytes
  PackedWeights packed;
  size_t workspace_bytes = 0;

  size_t shared_bytes = 0;  // of a block
  size_t shared_limit = 0;  // what the device allows a block

  int64_t blocks() const { return tiles_cout * tiles_w * tiles_h * tiles_n * row_phase_splits * groups; }
};

// The block's shared memory, in bytes from its start:
//
//   tap table     [taps of the filter] {tap along H, along W, offset into the input tile}
//   input         [buffers][channel_chunk / channel_vector][plane][channel_vector] float
//   weights       [2][tap_chunk][channel_chunk][couts] float
//   output rows   [couts][images * rows][pitch] element of the output; NCHW output only
//
// A plane holds the input pixels of the tile and its halo, images x (rows + halo_h) x (cols + halo_w), padded
// to an odd number so that planes start in different banks.
struct TileSimtShared {
  int halo_h, halo_w;
  int input_rows, input_cols;
  int plane;
  int input_buffers;
  int output_pitch;  // elements of an output row; odd
  size_t input_offset, weights_offset, output_offset, bytes;
};

CONVT_HOST_DEVICE inline size_t align16(size_t bytes) { return (bytes + 15) / 16 * 16; }

CONVT_HOST_DEVICE inline TileSimtShared tile_simt_shared(const TileSimtLaunch& launch, int couts,
                                                         int output_element_size, bool output_channels_last) {
  TileSimtShared s;
  s.halo_h = largest_shift(launch.phases_h);
  s.halo_w = largest_shift(launch.phases_w);
  s.input_rows = launch.rows + s.halo_h;
  s.input_cols = launch.cols + s.halo_w;
  s.plane = (launch.images * s.input_rows * s.input_cols) | 1;
  s.input_buffers = launch.channel_chunks > 1 ? 2 : 1;
  s.output_pitch = (launch.cols * launch.phases_w.stride) | 1;
  const size_t taps = static_cast<size_t>(launch.phases_h.kernel) * launch.phases_w.kernel;
  s.input_offset = align16(taps * 2 * sizeof(int));
  s.weights_offset =
      s.input_offset + align16(sizeof(float) * s.input_buffers * launch.channel_chunk * s.plane);
  s.output_offset =
      s.weights_offset + align16(sizeof(float) * 2 * launch.tap_chunk * launch.channel_chunk * couts);
  s.bytes = s.output_offset;
  if (!output_channels_last) {
    s.bytes += align16(static_cast<size_t>(output_element_size) * couts * launch.images * launch.rows *
                       s.output_pitch);
  }
  return s;
}

}  // namespace convt
