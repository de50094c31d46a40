// What the plan, pack_weights and the `tile_mma` kernel agree on: the compiled tile shapes, how an output
// pixel's taps are found, and the launch parameters of one problem.
#pragma once

#include <cstddef>
#include <cstdint>

#include "convt/alignment.h"
#include "convt/axis_taps.h"
#include "convt/divisor.h"
#include "convt/macros.h"
#include "convt/problem.h"

namespace convt {

// A warp's tile is `blocks_m` blocks of 16 rows (output channels and phases) times `blocks_n` blocks of 8
// pixels; a block of threads has warps_m x warps_n of them.
struct TileMmaConfig {
  int blocks_m;  // at most 8: a mask of them has 8 bits
  int blocks_n;  // even: B fragments are read two at a time
  int warps_m;
  int warps_n;
  int min_blocks;  // thread blocks an SM must be able to hold: bounds the registers

  constexpr int rows() const { return 16 * blocks_m; }
  constexpr int warp_pixels() const { return 8 * blocks_n; }
  constexpr int pixels() const { return warp_pixels() * warps_n; }
  constexpr int warps() const { return warps_m * warps_n; }
  constexpr int threads() const { return 32 * warps(); }
  // Whether a lane's registers have room for sums of float32, which are there twice where operands are split.
  constexpr bool takes_float32() const { return blocks_m * blocks_n <= 16; }
};

// The configurations compiled. The plan refers to them by index.
inline constexpr TileMmaConfig kTileMmaConfigs[] = {
    {4, 8, 1, 4, 2},  // 64 rows x 256 pixels: many pixels
    {4, 8, 2, 2, 2},  // 128 x 128: many channels, fewer pixels
    {2, 8, 1, 4, 2},  // 32 x 256: up to 32 rows, or 16 output channels with both phases of a stride of 2
    {4, 4, 2, 2, 2},  // 128 x 64: few pixels
    {6, 4, 1, 4, 2},  // 96 x 128: three, five or six phases along W
    {1, 8, 1, 4, 2},  // 16 x 256: few output channels
};
inline constexpr int kTileMmaConfigCount =
    static_cast<int>(sizeof(kTileMmaConfigs) / sizeof(kTileMmaConfigs[0]));

// Limits of the tables below.
inline constexpr int kTileMmaMaxTaps = 1024;  // of the whole filter

// The rows of a warp's tile: (phase along H, phase along W, output channel) of one phase set, the channel
// fastest. couts is a power of two, and either a multiple of 16 or a divisor of 16; in the latter case all
// phases of a block of 16 rows have the same offsets, so that no row multiplies an input it must not see.
//
//   row = (phase_h * phases_w.set_size + phase_w) * couts + cout
//
// With phases_in_halves, the two phases of a set take turns every 8 rows instead, so that one thread receives
// the sums of both for the same pixels:
//
//   row = (cout / 8 * 2 + phase_w) * 8 + cout % 8
//
// A row tile is one phase set of `couts` output channels. Row tiles are numbered cout tile by cout tile, in
// each one phase set after the other, W fastest.
//
// The packed weight holds A fragments in the order in which warps read them:
//
//   [group][row tile][chunk][offset][channel step of the chunk][block of 16 rows][lane] 16 bytes
//
// A channel step is two 16-byte vectors of channels: 16 channels of 16-bit types, 8 of float32. Blocks
// without a tap at an offset hold zeros that no product uses. One more step's fragments follow at the end,
// for the read ahead.
//
// float32 is multiplied as TF32. With two parts, every operand is the sum of two such numbers (convt/device/
// tf32.cuh): planes and, in each channel step, the packed weight hold all first parts and then all second
// ones.
struct TileMmaLaunch {
  int config = 0;        // index into kTileMmaConfigs
  int element_size = 2;  // of input, weight and output
  int parts = 1;         // of an operand
  int images = 1;  // the tile in points of the grid: images x rows x cols <= pixels() of the configuration
  int rows = 1;
  int cols = 1;
  int log2_couts = 4;           // output channels of a row tile
  int cout_tiles = 1;           // over cout_per_group
  int row_tiles_per_block = 1;  // row tiles that a thread block computes one after the other
  int channel_steps = 1;        // over cin_per_group
  int chunk_steps = 1;          // channel steps staged at a time
  int chunks = 1;               // per split
  int splits = 1;               // parts of the channels summed by different thread blocks
  bool prefetches = false;      // a block has more than one turn: it stages the next while it multiplies
  int load_vector = 1;          // input elements read at once: along W for NCHW, along C for NHWC
  bool input_channels_last = false;
  bool flat_rows = false;         // a tile's rows are neighbours in memory: read as one
  int max_offsets = 1;            // of any phase set: stride of the packed weight
  int blocks_m = 1;               // blocks of 16 rows of a row tile
  bool phases_in_halves = false;  // see above
  bool packs_blocks = false;      // the packed weight is that of tile_wgmma (convt/tile_wgmma.h)
  // Phases of a row tile have different offsets: rows multiply inputs that their outputs must not see by
  // zeros, which makes NaN of those that are not finite. Behind the packed weight a word tells whether any
  // output is NaN, and launch_generic_repair computes those that are once more.
  bool repairs = false;

  AxisTaps taps_h, taps_w;
  int grid_h = 1, grid_w = 1;  // points q along each axis

  // Pieces of work along each direction.
  int64_t tiles_m = 1, tiles_w = 1, tiles_h = 1, tiles_n = 1, groups = 1;

  size_t packed_bytes = 0;
  size_t workspace_bytes = 0;  // packed weight, then the splits' sums, or the word of `repairs`

  int64_t grid = 1;  // thread blocks launched, each takes every grid-th piece of work

  size_t shared_bytes = 0;  // of a thread block
  size_t shared_limit = 0;  // what the device allows one

  int couts() const { return 1 << log2_couts; }
  int vector_channels() const { return 16 / element_size; }
  int step_channels() const { return 2 * vector_channels(); }
  int phase_sets() const { return taps_h.sets * taps_w.sets; }
  int row_tiles() const { return cout_tiles * phase_sets(); }
  int64_t works() const { return tiles_m * tiles_w * tiles_h * tiles_n * splits * groups; }
};

// The block's shared memory, in bytes from its start:
//
//   offsets      [offsets of all phase sets] {bytes into the staged input, mask of row blocks}
//   planes       [plane_buffers][parts][2 * chunk_steps][plane] 16 bytes: channel planes
//   rows         [2 * chunk_steps * channels of a vector][row_pitch] element, for NCHW: input that waits to
//   be
//                turned into planes; row_padding elements after the channels of each plane
//   output       [warps][output_bytes]: each warp turns its sums into lines of the output here
//
// A plane holds 16 bytes of channels of every pixel of the tile and its halo, images x input_rows x
// input_cols, padded to an odd number of pixels: then neither 16-byte stores of one pixel's planes nor
// ldmatrix have bank conflicts.
struct TileMmaShared {
  int input_rows, input_cols;
  int image_pixels;               // of a plane, per image
  int second_inputs;              // of a plane: where the second inputs of all points begin, if they have any
  int staged_cols, staged_image;  // of the rows: elements of a row and of an image of a channel
  int row_numbers, image_numbers;  // pixel numbers of a row and of an image of the tile
  int plane;
  int plane_buffers, row_buffers;
  int row_pitch, row_padding;
  int output_pitch;  // elements from line to line
  int output_bytes;  // of a warp
  size_t planes_offset, rows_offset, output_offset, bytes;
};

// The most columns before a tile's first that are read, because NCHW is read from a column that is a multiple
// of the vector.
inline int columns_before(const TileMmaLaunch& launch) {
  const int vector = launch.input_channels_last ? 1 : launch.load_vector, inputs = launch.taps_w.inputs;
  return launch.cols * inputs % vector == 0 ? launch.taps_w.least_offset * inputs & (vector - 1) : vector - 1;
}

// Elements after the channels of each staged plane, so that the lanes that turn different planes read
// different banks. `channels` are those of a plane.
inline int staged_row_padding(int chunk_steps, int channels) {
  const int planes = 2 * chunk_steps;
  return (planes < 8 ? 8 / planes : 1) * channels;
}

// Sets what concerns the staged input.
inline void set_staged_input(TileMmaShared& s, const TileMmaLaunch& launch) {
  const int vector = launch.input_channels_last ? 1 : launch.load_vector;
  const int exact = launch.cols + launch.taps_w.span, before = columns_before(launch);
  s.input_rows = launch.rows + launch.taps_h.span;
  s.input_cols = launch.flat_rows ? exact : (exact + before + vector - 1) / vector * vector;
  s.image_pixels = (s.input_rows * s.input_cols + vector - 1) / vector * vector;
  s.staged_cols = launch.flat_rows ? s.image_pixels : s.input_cols;
  s.staged_image = s.image_pixels;
  s.row_numbers = launch.cols;
  s.image_numbers = launch.rows * launch.cols;
  s.second_inputs = 0;
  const int channels = launch.vector_channels();
  const int pixels = launch.images * s.image_pixels;
  s.row_pitch = (pixels + channels - 1) / channels * channels;
  s.row_padding = staged_row_padding(launch.chunk_steps, channels);
  s.plane = (launch.input_channels_last ? pixels : s.row_pitch) | 1;
}

// Bytes of one buffer of planes.
inline size_t plane_bytes(const TileMmaShared& s, const TileMmaLaunch& launch) {
  return static_cast<size_t>(launch.parts) * 2 * launch.chunk_steps * s.plane * 16;
}

// Bytes of one buffer of rows.
inline size_t row_bytes(const TileMmaShared& s, const TileMmaLaunch& launch) {
  const size_t channels = static_cast<size_t>(launch.vector_channels());
  return 2 * static_cast<size_t>(launch.chunk_steps) * (channels * s.row_pitch + s.row_padding) *
         launch.element_size;
}

// Elements between the output channels of a pixel and those of the next: 16 bytes, so that pixels are aligned
// and the lanes of a warp write different banks.
inline int channels_padding(const TileMmaLaunch& launch) { return launch.vector_channels(); }

inline TileMmaShared tile_mma_shared(const TileMmaLaunch& launch, const TileMmaConfig& config,
                                     bool output_channels_last) {
  TileMmaShared s;
  set_staged_input(s, launch);
  s.plane_buffers = launch.input_channels_last && launch.prefetches ? 2 : 1;
  s.row_buffers = launch.input_channels_last ? 0 : 1;
  const int slots = launch.taps_h.set_size * launch.taps_w.set_size;
  if (output_channels_last) {
    s.output_pitch = launch.log2_couts >= 3 ? launch.couts() + channels_padding(launch) : launch.couts();
    s.output_bytes = slots * config.warp_pixels() * s.output_pitch * launch.element_size;
  } else {
    s.output_pitch = (config.warp_pixels() + 8) * launch.taps_w.set_size;
    s.output_bytes = launch.taps_h.set_size * launch.couts() * s.output_pitch * launch.element_size;
  }
  s.output_bytes = (s.output_bytes + 15) / 16 * 16;
  const size_t offsets = static_cast<size_t>(launch.taps_h.begin[launch.taps_h.sets]) *
                         static_cast<size_t>(launch.taps_w.begin[launch.taps_w.sets]);
  s.planes_offset = (offsets * 8 + 15) / 16 * 16;
  s.rows_offset = s.planes_offset + static_cast<size_t>(s.plane_buffers) * plane_bytes(s, launch);
  s.output_offset = s.rows_offset + s.row_buffers * row_bytes(s, launch);
  s.bytes = s.output_offset + static_cast<size_t>(config.warps()) * s.output_bytes;
  return s;
}

// What one warp lays out at once: output channels and, of NCHW, phases along W of each.
struct LineShape {
  int couts, phases_w;
};

// Bytes that a lane may store at once, as far as sizes decide; the output's address may allow less.
inline int aligned_store_bytes(const Problem& problem, const TileMmaLaunch& launch,
                               const TileMmaShared& shared, const LineShape& lines) {
  const int element_size = launch.element_size;
  if (problem.output_channels_last) {
    return common_power_of_two(16, problem.cout_per_group * element_size, lines.couts * element_size);
  }
  const int row = common_power_of_two(16, problem.w.output * element_size, launch.taps_w.crop * element_size);
  if (lines.phases_w != launch.taps_w.stride) {
    // The phases of one pixel are neighbours, pixels are not.
    return common_power_of_two(row, lines.phases_w * element_size, launch.taps_w.stride * element_size);
  }
  const int pixel = lines.phases_w * element_size;
  return common_power_of_two(row, launch.cols * pixel, shared.row_numbers * pixel,
                             shared.image_numbers * pixel);
}

}  // namespace convt
