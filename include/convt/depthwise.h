// depthwise: what its plan (cuda/plan_depthwise.cpp) and its kernels (cuda/depthwise.cu) agree on.
#pragma once

#include <cstddef>
#include <cstdint>

#include "convt/phases.h"

namespace convt {

inline constexpr int kDepthwiseThreads = 128;
// Neighbouring outputs of a thread that lie side by side in memory, where they may.
inline constexpr int kDepthwiseVector = 4;
// Output rows of a thread, where the image has that many.
inline constexpr int kDepthwiseRows = 8;
// Products that are summed before the sum is added to a total: keeps the rounding error of long sums below
// 1e-6 of the sum of magnitudes.
inline constexpr int kDepthwiseMaxProducts = 64;
// Strides and dilations are less than this, so that coordinates beyond the last row fit in 32 bits.
inline constexpr int kDepthwiseMaxStep = 1 << 13;
// What every device gives a block without being asked.
inline constexpr int kDepthwiseMaxSharedBytes = 48 << 10;

enum class DepthwiseMapping {
  kColumns,   // lanes along W, weights from global memory; any layout
  kChannels,  // lanes along the channels of NHWC, weights from shared memory
};

// Everything about one launch that does not depend on pointers.
struct DepthwiseLaunch {
  DepthwiseMapping mapping = DepthwiseMapping::kColumns;
  int vector = 1;             // neighbouring columns or channels of a thread: 1 or kDepthwiseVector
  bool shares_input = false;  // neighbouring channels are of one group: they multiply the same inputs
  int rows = 1;               // output rows of a thread, all of one H-phase: 1 or kDepthwiseRows
  bool long_sums = false;     // an output may have more than kDepthwiseMaxProducts products
  int row_sets = 1;           // sets of `rows` rows that cover an H-phase
  AxisPhases<int> phases_h, phases_w;

  // kColumns
  int sets_per_thread = 1;
  int runs = 1;  // of sets_per_thread sets
  int channels_per_thread = 1;
  int channel_runs = 1;  // of channels_per_thread channels
  int threads = 1;

  // kChannels. An item is one output column of one row set of one H-phase; the lanes of a block that hold
  // different channels share it.
  int lanes = 1;  // of an item: a tile of lanes * vector channels
  int channel_tiles = 1;
  int items = 1;            // of an image
  int items_at_once = 1;    // of a block
  int passes = 1;           // of items_at_once items, one after the other
  int blocks_an_image = 1;  // and channel tile
  bool phase_first = true;  // the next item is the next H-phase of the column, not the next column
  int pitch = 1;            // floats between the weights of two taps in shared memory
  size_t shared_bytes = 0;

  int64_t blocks = 1;
};

}  // namespace convt
