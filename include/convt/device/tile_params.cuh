// What every piece of a tensor-core kernel knows: the launch parameters, and where a thread block's tile
// lies.
#pragma once

#include "convt/divisor.h"
#include "convt/problem.h"
#include "convt/tile_mma.h"

namespace convt {
namespace tile_mma {

template <typename T>
struct Params {
  const T* input;
  const uint4* packed_weight;
  const T* bias;
  T* output;
  float4* partial_sums;  // of the splits; null when there is one
  ActivationStrides input_stride, output_stride;
  int64_t bias_stride;

  int batch, cin_per_group, cout_per_group;
  int input_h, input_w, output_h, output_w;
  AxisTaps taps_h, taps_w;

  int works;                                                // pieces of work: tiles x splits x groups
  Divisor<int> tiles_m, tiles_w, tiles_h, tiles_n, splits;  // of them, innermost first; then groups
  int groups;
  int images;
  Divisor<int> rows, cols;                       // the tile in points of the grid
  Divisor<int> planes, image_rows, row_vectors;  // what the loader walks, outermost last
  Divisor<int> phases_w;                         // of a set
  int log2_couts, row_tiles, row_tiles_per_block;
  int channel_steps, chunk_steps, chunks, all_chunks;  // chunks of a split, and of all
  int max_offsets;
  int load_bytes;       // input read at once
  int store_bytes;      // output written at once
  int log2_line_lanes;  // lanes that write one line of the output
  bool input_channels_last, output_channels_last, flat_rows;
  TileMmaShared shared;
};

// A piece of work: a share of the output, and of the channels.
struct Tile {
  int group, split, first_row_tile, end_row_tile, image, grid_h, grid_w;
  int pixel_tile;  // its number among the tiles of one group's output channels
};

template <typename T>
__device__ inline Tile locate_tile(const Params<T>& p, int work) {
  int rest = work;
  const auto next = [&rest](const Divisor<int>& size) {
    const auto result = size.divide(rest);
    rest = result.quotient;
    return result.remainder;
  };
  Tile tile;
  tile.first_row_tile = next(p.tiles_m) * p.row_tiles_per_block;
  tile.end_row_tile = min(tile.first_row_tile + p.row_tiles_per_block, p.row_tiles);
  const int tile_w = next(p.tiles_w), tile_h = next(p.tiles_h), tile_n = next(p.tiles_n);
  tile.pixel_tile = (tile_n * p.tiles_h + tile_h) * p.tiles_w + tile_w;
  tile.grid_w = tile_w * p.cols;
  tile.grid_h = tile_h * p.rows;
  tile.image = tile_n * p.images;
  tile.split = next(p.splits);
  tile.group = rest;
  return tile;
}

// The point of the grid that pixel `pixel` of the tile stands for; `image` counts from the tile's first.
struct Point {
  int image, row, col;
};

template <typename T>
__device__ inline Point point_of_pixel(const Params<T>& p, int pixel) {
  const auto by_row = p.cols.divide(pixel);
  const auto by_image = p.rows.divide(by_row.quotient);
  return {by_image.quotient, by_image.remainder, by_row.remainder};
}

}  // namespace tile_mma
}  // namespace convt
