// depthwise: what its plan (cuda/plan_depthwise.cpp) and its kernels (cuda/depthwise.cu,
// cuda/depthwise_rolling.cu) agree on.
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
// Strides and dilations are less than this, so that coordinates beyond the last row fit in 32 bits.
inline constexpr int kDepthwiseMaxStep = 1 << 13;
// What every device gives a block without being asked.
inline constexpr int kDepthwiseMaxSharedBytes = 48 << 10;

enum class DepthwiseMapping {
  kColumns,   // lanes along W, weights from global memory; any layout
  kChannels,  // lanes along the channels of NHWC, weights from shared memory
  kRolling,   // a filter of kRollingFilters in registers, one input channel a group: lanes along W of NCHW;
              // or, of NHWC with as many output channels, along the channels
};

// A filter as both axes have it, and the padding along W that the kernel is compiled for. A phase is a
// padding modulo the stride; the padding along H is any.
struct RollingFilter {
  int kernel, stride, phase;

  // Input columns that a thread reads before that of its first base (convt/phases.h).
  constexpr int columns_before() const { return (kernel - 1 - phase) / stride; }
  // The padding with which an output has `stride` times the columns of the input, where need be with an
  // output_padding.
  constexpr int same_padding() const { return (kernel - stride + 1) / 2; }
  // Whether the kernel is also compiled for threads whose own input columns are one vector; so they are with
  // that padding alone.
  constexpr bool has_vectors(int columns) const {
    return same_padding() % stride == phase && columns > stride;
  }
};
inline constexpr RollingFilter kRollingFilters[] = {{2, 2, 0}, {3, 1, 0}, {3, 2, 0}, {3, 2, 1},
                                                    {4, 2, 0}, {4, 2, 1}, {4, 4, 0}};
// Outputs that a thread of NCHW stores at once, its columns; of NHWC it has as many columns as the stride,
// and kDepthwiseVector channels.
inline constexpr int kRollingVectorBytes = 16;
// Blocks that an SM has registers for; those of NHWC hold a filter for each of their channels.
constexpr int rolling_blocks(int kernel, bool channels_last) {
  return !channels_last ? 7 : kernel == 4 ? 3 : kernel == 3 ? 4 : 6;
}

// Everything about one launch that does not depend on pointers.
struct DepthwiseLaunch {
  DepthwiseMapping mapping = DepthwiseMapping::kColumns;
  // Neighbouring columns or channels of a thread: 1 or kDepthwiseVector. Its columns in kRolling: of
  // kRollingVectorBytes or, of NHWC, as many as the stride.
  int vector = 1;
  bool shares_input = false;  // neighbouring channels are of one group: they multiply the same inputs
  // Output rows of a set: 1 or kDepthwiseRows of one H-phase, all a thread's at a time; in kRolling, of a
  // base.
  int rows = 1;
  bool long_sums = false;  // an output may have more than kMaxSummedProducts products
  int row_sets = 1;        // sets that cover an H-phase; in kRolling, the image
  AxisPhases<int> phases_h, phases_w;

  // kColumns, kRolling
  int sets_per_thread = 1;
  int runs = 1;  // of sets_per_thread sets
  int channels_per_thread = 1;
  int channel_runs = 1;  // of channels_per_thread channels
  int threads = 1;

  // kRolling
  int filter = 0;  // of kRollingFilters
  // Of NCHW: a thread's own input columns are a vector, if the input's address is aligned. Channels of NHWC
  // always are.
  bool loads_vectors = false;

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
