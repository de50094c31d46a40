// What the plan and the `col2im` kernel agree on: how pixels and output channels are divided among thread
// blocks, and the launch parameters of one problem.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "convt/phases.h"

namespace convt {

// A thread block multiplies `groups` warpgroups' rows with `pixels` columns.
struct Col2imConfig {
  int groups, pixels;
};

// The configurations compiled. The plan refers to them by index.
inline constexpr Col2imConfig kCol2imConfigs[] = {{2, 128}, {2, 256}};
inline constexpr int kCol2imConfigCount =
    static_cast<int>(sizeof(kCol2imConfigs) / sizeof(kCol2imConfigs[0]));

inline constexpr int kCol2imLoaders = 128;  // threads that load
// Rows of a warpgroup's product: the taps of its output channels.
inline constexpr int kCol2imRows = 64;
inline constexpr int kCol2imChunk = 64;  // channels loaded and multiplied together
inline constexpr int kCol2imMaxStages = 8;

// A piece of work is `couts` output channels for each warpgroup and a tile of pixels, which is one of two
// things:
//
//   flat     successive ones of all images' pixels, where every output sees one input pixel at most;
//   else     of `images` images, the window of window_h x window_w pixels that rows_out x cols_out outputs
//            see. Windows of neighbouring tiles overlap.
struct Col2imLaunch {
  int config = 0;
  bool flat = false;
  int couts = 1;  // of a warpgroup
  // The row of tap t of the warpgroup's output channel c is c * row_cout + t * row_tap: as they follow each
  // other in memory.
  int row_cout = 1, row_tap = 1;
  int images = 1;
  int window_h = 1, window_w = 1;
  int align_w = 1;  // windows begin at multiples of this
  int rows_out = 1, cols_out = 1;
  int origin_h = 0, origin_w = 0;  // of the first tile, in outputs: 0, or below where tiles begin with a base
  int chunks = 1, stages = 2;
  // Products take the place of the stages: more of these, but nothing is loaded while outputs are gathered.
  bool reuses_stages = false;
  // Bytes copied at once: 16, 8, 4, or 2, which pass through registers.
  int weight_bytes = 2, input_bytes = 2;
  bool input_channels_last = false;
  int store_couts = 1;  // stored at once, of NHWC
  int most_terms = 0;   // of an output along each axis if it is 1 or 2, else 0
  int grid = 1;
  AxisPhases<int> phases_h, phases_w;

  // Works along each direction.
  int64_t cout_tiles = 1, tiles_w = 1, tiles_h = 1, image_tiles = 1, groups = 1;

  size_t shared_bytes = 0, shared_limit = 0;

  int pixels() const { return kCol2imConfigs[config].pixels; }
  int warpgroups() const { return kCol2imConfigs[config].groups; }
  int tile_couts() const { return warpgroups() * couts; }
  int64_t works() const { return cout_tiles * tiles_w * tiles_h * image_tiles * groups; }
};

// The block's shared memory, in bytes from its start, which is a multiple of 1024:
//
//   stages     [stages] weight [warpgroup][chunk channel][64 rows] and input, of NCHW [64 pixels][chunk
//              channel][64 pixels], of NHWC [pixel][chunk channel]; 2 bytes an element, in lines of 128 bytes
//              whose 16-byte pieces are swapped (device/col2im.cuh)
//   products   [tap][output channel of the tile][pixels] float; may begin where the stages do
//   pixels     [pixels] 8 bytes: where they lie in the input
//   bias       [output channel of the tile] float
//   phases     [strides of both axes] 8 bytes
//   barriers   [stages] full, [stages] empty, gathered
struct Col2imShared {
  size_t stage_bytes, products, pixels, phases, bias, barriers, bytes;
};

inline Col2imShared col2im_shared(const Col2imLaunch& launch) {
  Col2imShared s;
  const size_t pixels = static_cast<size_t>(launch.pixels()),
               rows = static_cast<size_t>(launch.warpgroups()) * kCol2imRows;
  s.stage_bytes = 2 * kCol2imChunk * (rows + pixels);
  const size_t stages = launch.stages * s.stage_bytes, products = sizeof(float) * rows * pixels;
  s.products = launch.reuses_stages ? 0 : stages;
  s.pixels = launch.reuses_stages ? std::max(stages, products) : stages + products;
  s.bias = s.pixels + 8 * pixels;
  s.phases = s.bias + sizeof(float) * rows;
  s.barriers = s.phases + size_t{8} * (launch.phases_h.stride + launch.phases_w.stride);
  s.bytes = s.barriers + 8 * (size_t{2} * launch.stages + 1);
  return s;
}

}  // namespace convt
