// What every piece of a tensor-core kernel knows: the launch parameters, and where a thread block's tile
// lies.
#pragma once

#include <algorithm>

#include "convt/alignment.h"
#include "convt/device/async_copy.cuh"
#include "convt/device/launch.cuh"
#include "convt/device/scalar.cuh"
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
  ActivationParams<float> activation;

  int batch, cin_per_group, cout_per_group;
  int input_h, input_w, output_h, output_w;
  AxisTaps taps_h, taps_w;

  int works;                                                // pieces of work: tiles x splits x groups
  Divisor<int> tiles_m, tiles_w, tiles_h, tiles_n, splits;  // of them, innermost first; then groups
  int groups;
  int images;
  int rows, cols;                                // the tile in points of the grid
  Divisor<int> row_numbers, image_numbers;       // pixel numbers of a row and of an image of the tile
  Divisor<int> planes, image_rows, row_vectors;  // what the loader walks, outermost last; one part of planes
  Divisor<int> tile_vectors;                     // of NCHW: of all rows of a tile's channel
  int channel_sharers;                           // threads that share such a vector's channels
  Divisor<int> channel_pieces;                   // of NHWC: of a pixel's staged channels
  Divisor<int> phases_w;                         // of a set
  Divisor<int> phase_sets, phase_sets_w;         // of all, along W
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

// The point of the grid that pixel `pixel` of the tile stands for; `image` counts from the tile's first,
// `number` is the pixel's in its image. Where pixels are numbered along the planes, some stand for no point:
// their row or column lies past the tile's.
struct Point {
  int image, number, row, col;
};

template <typename T>
__device__ inline Point point_of_pixel(const Params<T>& p, int pixel) {
  const auto by_image = p.image_numbers.divide(pixel);
  const auto by_row = p.row_numbers.divide(by_image.remainder);
  return {by_image.quotient, by_image.remainder, by_row.quotient, by_row.remainder};
}

// The first of a phase set's offsets in the table.
template <typename T>
__device__ inline int first_offset(const Params<T>& p, int set_h, int set_w) {
  return p.taps_h.begin[set_h] * p.taps_w.begin[p.taps_w.sets] +
         p.taps_h.offsets(set_h) * p.taps_w.begin[set_w];
}

// Calls `visit` once for every offset of every phase set, by the kThreads threads of a block: its place in
// the table, its entries in taps_h and taps_w, and how many pixels of a plane it moves.
template <int kThreads, typename T, typename Visit>
__device__ inline void for_each_offset(const Params<T>& p, const Visit& visit) {
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  for (int set = warp; set < p.taps_h.sets * p.taps_w.sets; set += kThreads / 32) {
    const int set_h = set / p.taps_w.sets, set_w = set % p.taps_w.sets;
    const int count_w = p.taps_w.offsets(set_w);
    for (int i = lane; i < p.taps_h.offsets(set_h) * count_w; i += 32) {
      const int entry_h = p.taps_h.begin[set_h] + i / count_w, entry_w = p.taps_w.begin[set_w] + i % count_w;
      const int row = p.taps_h.offset[entry_h] - p.taps_h.least_offset;
      const int offset = p.taps_w.offset[entry_w];
      const int col = p.taps_w.point_of(offset) - p.taps_w.least_offset +
                      p.taps_w.input_of(offset) * p.shared.second_inputs;
      visit(first_offset(p, set_h, set_w) + i, entry_h, entry_w, row * p.shared.input_cols + col);
    }
  }
}

// A row tile of a group.
template <typename T>
struct RowTile {
  int index;  // of the group's
  int set_h, set_w, first_cout, couts;

  __device__ RowTile(const Params<T>& p, int number) : index(number) {
    const auto by_cout = p.phase_sets.divide(number);
    const auto by_row = p.phase_sets_w.divide(by_cout.remainder);
    first_cout = by_cout.quotient << p.log2_couts;
    couts = min(1 << p.log2_couts, p.cout_per_group - first_cout);
    set_h = by_row.quotient;
    set_w = by_row.remainder;
  }
};

// ---------------------------------------------------------------- launch

template <typename T>
void set_params(Params<T>& p, const Problem& problem, const TileMmaLaunch& launch,
                const TileMmaShared& shared, const LineShape& lines, int stagers, void* workspace) {
  constexpr int kSize = static_cast<int>(sizeof(T));
  set_problem(p, problem);
  p.packed_weight = static_cast<const uint4*>(workspace);
  p.partial_sums =
      launch.splits > 1
          ? reinterpret_cast<float4*>(static_cast<unsigned char*>(workspace) + launch.packed_bytes)
          : nullptr;
  p.taps_h = launch.taps_h;
  p.taps_w = launch.taps_w;
  p.tiles_m = static_cast<int>(launch.tiles_m);
  p.tiles_w = static_cast<int>(launch.tiles_w);
  p.tiles_h = static_cast<int>(launch.tiles_h);
  p.tiles_n = static_cast<int>(launch.tiles_n);
  p.splits = launch.splits;
  p.images = launch.images;
  p.rows = launch.rows;
  p.cols = launch.cols;
  p.row_numbers = shared.row_numbers;
  p.image_numbers = shared.image_numbers;
  p.log2_couts = launch.log2_couts;
  p.row_tiles = launch.row_tiles();
  p.row_tiles_per_block = launch.row_tiles_per_block;
  p.channel_steps = launch.channel_steps;
  p.chunk_steps = launch.chunk_steps;
  p.chunks = launch.chunks;
  p.all_chunks = launch.chunks * launch.splits;
  p.works = static_cast<int>(launch.works());
  p.groups = static_cast<int>(launch.groups);
  p.max_offsets = launch.max_offsets;
  p.input_channels_last = launch.input_channels_last;
  p.output_channels_last = problem.output_channels_last;
  p.flat_rows = launch.flat_rows;
  p.shared = shared;
  p.planes = 2 * launch.chunk_steps;
  // The pointer may be aligned to less than the plan hoped; the tile is laid out for the plan's vector.
  p.load_bytes = aligned_bytes(problem.input, launch.load_vector * kSize);
  const int vector = launch.input_channels_last ? 1 : p.load_bytes / kSize;
  p.image_rows = launch.flat_rows ? 1 : p.shared.input_rows;
  p.row_vectors = p.shared.staged_cols / vector;
  const int tile_vectors = launch.images * p.image_rows * p.row_vectors;
  p.tile_vectors = tile_vectors;
  p.channel_sharers = std::max(1, stagers / tile_vectors);
  p.channel_pieces = p.planes * (16 / p.load_bytes);
  p.phases_w = lines.phases_w;
  p.phase_sets = launch.phase_sets();
  p.phase_sets_w = launch.taps_w.sets;
  p.store_bytes = aligned_bytes(problem.output, aligned_store_bytes(problem, launch, shared, lines));
  const int line = problem.output_channels_last ? lines.couts : launch.cols * lines.phases_w;  // elements
  p.log2_line_lanes = 0;
  while (p.log2_line_lanes < 5 && (p.store_bytes << p.log2_line_lanes) < line * kSize) ++p.log2_line_lanes;
}

}  // namespace tile_mma
}  // namespace convt
