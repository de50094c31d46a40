// What the plan and the `thin` kernel agree on: how the products of a tile are divided among warps, and the
// launch parameters of one problem.
#pragma once

#include <cstddef>
#include <cstdint>

#include "convt/axis_taps.h"
#include "convt/phases.h"

namespace convt {

// A warp multiplies up to so many blocks of 16 rows by 32 pixels. More leave too few warps to hide the reads
// of the input.
inline constexpr int kThinMostRowBlocks = 2;
inline constexpr int kThinPixels = 32;
inline constexpr int kThinMaxWarps = 8;
inline constexpr int kThinMaxWarpsM = 4;
// Rows of a product.
inline constexpr int kThinMaxRows = 16 * kThinMostRowBlocks * kThinMaxWarpsM;
// Threads that an SM must have registers for: more than a thread block has, so that several fit. As many as
// the compiler manages without spills, which depends on what it compiles for.
constexpr int thin_threads(int parts, int compute_capability) {
  if (parts == 2) return 256;
  return compute_capability == 90 ? 512 : compute_capability < 90 ? 384 : 256;
}
// The same of launches that walk, whose products of several points are in registers.
constexpr int thin_walk_threads(int parts, int compute_capability) {
  return parts == 1 && compute_capability == 90 ? 384 : 256;
}
// Points that are in registers together, where launches walk; split operands leave no registers for the most.
inline constexpr int kThinFewestOffsets = 2, kThinMostOffsets = 3;
constexpr bool thin_may_walk(int parts, int row_blocks, int offsets) {
  return offsets >= kThinFewestOffsets && offsets <= kThinMostOffsets &&
         (parts == 1 || row_blocks * offsets <= 4);
}
// Channel steps that a warp reads at once: 128 bytes of every pixel.
inline constexpr int kThinChunkSteps = 4;

// Along H, outputs are numbered by points q and phases (AxisTaps): all phases in one set where they see the
// same inputs, else each in its own. A row of the product of a set is an output channel, a phase of the set
// and a tap along W:
//
//   row = (cout * set_size + phase) * kernel_w + kw
//
// Its columns are the input pixels of a strip: `cols` neighbours of one row of an image, or whole rows of
// `images` images side by side. Its depth runs over the set's offsets along H and the channels. A thread
// block computes `couts` output channels and goes down the strip, `rows` points at a step.
struct ThinLaunch {
  int element_size = 2;  // of input, weight and output
  int parts = 1;         // of an operand: two for IEEE float32 (convt/device/tf32.cuh)
  int row_blocks = 1;    // of a warp
  int warps_m = 1;       // warps along the rows of the product
  int groups_w = 1;      // warps along a row of the strip
  int rows = 1;          // points along H of a step; warps_m * groups_w * rows warps
  int couts = 1;         // output channels of a thread block
  int images = 1;        // side by side
  int cols = 1;          // input columns of each
  int chunks = 1;        // over the channels of a group
  bool along_w = false;  // reads 4 neighbours along W at once; else
  bool along_c = false;  // 16 bytes of channels at once; else element by element
  // Whether a row of the input is read once, for all offsets of the only set, which follow each other; of one
  // point at a step.
  bool walks = false;
  int stages = 2;  // chunks of channels that a warp has in shared memory, where it walks

  AxisTaps taps_h;
  int grid_h = 1;  // points along H
  AxisPhases<int> phases_w;
  int span_w = 0;        // largest shift along W
  int first_base_w = 0;  // base of output 0
  int bases_w = 1;       // bases that have at least one output

  int origin_w = 0;      // first input column of the first strip
  int strip_step = 1;    // columns from strip to strip
  int strip_halo = 0;    // columns at the begin of a strip, but the first, that others also have
  int segment_rows = 1;  // points along H of a thread block

  // Thread blocks along each direction; their product is the grid.
  int64_t cout_tiles = 1, strips = 1, segments = 1, image_tiles = 1, groups = 1;

  int gather_columns = 1;  // threads side by side along a line of the output
  int columns = 1;         // of such a line
  int pitch = 1;           // floats from one row of products to the next
  size_t shared_bytes = 0, shared_limit = 0;

  int warps() const { return warps_m * groups_w * rows; }
  int all_row_blocks() const { return row_blocks * warps_m; }
  int set_rows() const { return couts * taps_h.set_size * static_cast<int>(phases_w.kernel); }
  int64_t blocks() const { return cout_tiles * strips * segments * image_tiles * groups; }
};

// The thread block's shared memory, in bytes from its start:
//
//   weight     [offsets of all sets][chunk][step][part][block of 16 rows][lane] 16 bytes: A fragments
//   products   [2][rows][sets][set_rows][pitch] float
//   bias       [couts] float
//
// and, of launches that walk,
//
//   lines      16 bytes, and [columns] 16 bytes: where outputs are gathered from
//   places     [threads] 16 bytes: the pixels that a thread reads along C
//   stages     [warp][stages] 4096 bytes: chunks of channels of a warp's pixels
struct ThinShared {
  size_t products_offset, bias_offset, lines_offset, places_offset, stages_offset, bytes;
};

inline constexpr size_t kThinColumnBytes = 16;

// Floats of the products of a step; of launches that walk also a zero at the end.
inline size_t thin_half_floats(const ThinLaunch& launch) {
  return static_cast<size_t>(launch.rows) * launch.taps_h.sets * launch.set_rows() * launch.pitch +
         (launch.walks ? 4 : 0);
}

inline ThinShared thin_shared(const ThinLaunch& launch) {
  ThinShared s;
  s.products_offset = static_cast<size_t>(launch.taps_h.begin[launch.taps_h.sets]) * launch.chunks *
                      kThinChunkSteps * launch.parts * launch.all_row_blocks() * 512;
  s.bias_offset = s.products_offset + 2 * thin_half_floats(launch) * sizeof(float);
  s.lines_offset = (s.bias_offset + static_cast<size_t>(launch.couts) * sizeof(float) + 15) / 16 * 16;
  s.places_offset = s.stages_offset = s.lines_offset;
  s.bytes = s.bias_offset + static_cast<size_t>(launch.couts) * sizeof(float);
  if (launch.walks) {
    s.places_offset += kThinColumnBytes * (1 + static_cast<size_t>(launch.columns));
    s.stages_offset = s.places_offset + (launch.along_w ? 0 : size_t{512} * launch.warps());
    s.bytes = s.stages_offset + size_t{4096} * launch.warps() * launch.stages;
  }
  return s;
}

}  // namespace convt
