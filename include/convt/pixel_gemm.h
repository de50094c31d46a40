// What the plan and the `pixel_gemm` kernel agree on: tile sizes, and the launch parameters of one problem.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

namespace convt {

// A warp multiplies row_blocks blocks of 16 rows by so many columns.
inline constexpr int kPixelGemmWarpColumns = 32;

// A thread block has warps_m x warps_n of them.
struct PixelGemmConfig {
  int row_blocks, warps_m, warps_n;

  constexpr int rows() const { return 16 * row_blocks * warps_m; }
  constexpr int columns() const { return kPixelGemmWarpColumns * warps_n; }
  constexpr int warps() const { return warps_m * warps_n; }
  constexpr int threads() const { return 32 * warps(); }
};

// The configurations compiled, the smallest first: of equal estimates the plan takes the first. It refers to
// them by index.
inline constexpr PixelGemmConfig kPixelGemmConfigs[] = {
    {1, 1, 2}, {1, 1, 4}, {1, 2, 2}, {2, 2, 2}, {2, 4, 2}};
inline constexpr int kPixelGemmConfigCount =
    static_cast<int>(sizeof(kPixelGemmConfigs) / sizeof(kPixelGemmConfigs[0]));

// Bytes of an image's channels that a warp reads and multiplies in one step, which is two products of tensor
// cores deep, and that are loaded together.
inline constexpr int kPixelGemmStepBytes = 64;
inline constexpr int kPixelGemmChunkSteps = 2;
inline constexpr int kPixelGemmChunkBytes = kPixelGemmChunkSteps * kPixelGemmStepBytes;
// Chunks in flight.
inline constexpr int kPixelGemmStages = 4;
// Lines of shared memory begin four banks on from one to the next, as neither ldmatrix nor reads of four
// neighbouring columns of as many lines then meet the same bank.
inline constexpr int kPixelGemmLinePadding = 16;

// One matrix product for each group. Its rows are images, its columns the outputs of one image and group as
// they lie in memory: [output channel][row][column] of NCHW, [row][column][output channel] of NHWC.
struct PixelGemmLaunch {
  int element_size = 2;  // of input, weight and output
  int parts = 1;         // of an operand: two for IEEE float32 (convt/device/tf32.cuh)
  int config = 0;
  int columns = 1;  // of a product
  int chunks = 1;   // over the channels of a group
  // Where outputs are NCHW and output channels of the weight lie side by side: taps of a thread block, 8 or
  // 4, whose columns are all output channels with those taps. 0 otherwise.
  int taps = 0;
  // Bytes copied at once, of channels of an image and of a channel's columns or, by taps, of output channels
  // of a tap: 16, 8 or 4; those of one element where they do not lie side by side.
  int input_bytes = 2, weight_bytes = 2;
  int store_bytes = 2;  // of an image's outputs, at once

  // Thread blocks along each direction; their product is the grid.
  int64_t image_tiles = 1, column_tiles = 1, tap_tiles = 1, groups = 1;

  size_t shared_bytes = 0, shared_limit = 0;

  const PixelGemmConfig& sizes() const { return kPixelGemmConfigs[config]; }
  int chunk_channels() const { return kPixelGemmChunkBytes / element_size; }
  int64_t blocks() const { return image_tiles * column_tiles * tap_tiles * groups; }
};

// The thread block's shared memory, in bytes from its start:
//
//   stages     [chunk, at most kPixelGemmStages of them] input [row][chunk channel], weight [chunk
//              channel][column], in lines of as many bytes and kPixelGemmLinePadding
//   columns    [column] 8 bytes: its bias, and whether any tap reaches it
struct PixelGemmShared {
  int input_pitch, weight_pitch;
  int weight_offset;  // of a stage
  int stage_bytes;
  size_t columns_offset, bytes;
};

constexpr PixelGemmShared pixel_gemm_shared(const PixelGemmConfig& config, int element_size, int chunks) {
  PixelGemmShared s{};
  s.input_pitch = kPixelGemmChunkBytes + kPixelGemmLinePadding;
  s.weight_pitch = config.columns() * element_size + kPixelGemmLinePadding;
  s.weight_offset = config.rows() * s.input_pitch;
  s.stage_bytes = s.weight_offset + kPixelGemmChunkBytes / element_size * s.weight_pitch;
  s.columns_offset = static_cast<size_t>(std::min(chunks, kPixelGemmStages)) * s.stage_bytes;
  s.bytes = s.columns_offset + size_t{8} * config.columns();
  return s;
}

}  // namespace convt
